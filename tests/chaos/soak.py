"""Mixed traffic for a long time, with nobody killed: does anything grow that should not?

    python -m tests.chaos.soak --minutes 30

The same changes as in the chaos run, two sessions that search, one worker for the whole time, and
the nightly pass every twentieth of it, with histories kept for no days, so that whatever still
grows would grow for ever. Exits with 1 for a child left behind, a worker or table that grows, or a
fault that the chaos run would find too.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from tests.chaos.__main__ import Chaos
from tests.conftest import ROOT, cluster_script, start_cluster

MB = 2**20
# Between the second quarter of the time and the last. What autovacuum leaves behind goes up and down.
MEMORY_GROWTH = 8 * MB
TABLE_GROWTH = 4 * MB
SIZES = """
select c.oid::regclass::text, pg_total_relation_size(c.oid)
from pg_class c where c.relnamespace = 'rag'::regnamespace and c.relkind = 'r'"""


@dataclass(frozen=True)
class Sample:
    """What there is at one moment; `memory` in bytes, anonymous, of each process by name."""

    minute: float
    memory: dict[str, int]
    children: int
    tables: dict[str, int]


class Soak:
    def __init__(self, run: Chaos, minutes: float) -> None:
        self.run = run
        self.minutes = minutes
        self.worker_pid = 0
        self.searches: Counter[str] = Counter()
        self.samples: list[Sample] = []

    def work(self) -> None:
        """One session for the whole time, in calls as long as those that pg_cron makes."""
        with self.run.cluster.connect(self.run.cluster.database) as db:
            self.worker_pid = db.info.backend_pid
            while not self.run.stopping.is_set():
                db.execute("call rag.drain(run_for => interval '120 s')")

    def search(self, db: psycopg.Connection) -> None:
        query = f"what belongs to word{random.randrange(60)}x"
        found = db.execute("select * from rag.search_documents(%s)", [query]).fetchall()
        self.searches["with rows" if found else "without"] += 1
        time.sleep(random.random() * 0.2)

    def maintain(self, db: psycopg.Connection) -> None:
        db.execute("call rag.maintain()")
        time.sleep(self.minutes * 3)

    def watch(self) -> None:
        started = time.monotonic()
        print("  minute  worker MB  extract MB  embed MB  children  tables MB    done  searches")
        with self.run.cluster.connect(self.run.cluster.database) as db:
            while (minute := (time.monotonic() - started) / 60) < self.minutes:
                time.sleep(self.minutes * 60 / 40)
                self.sample(db, minute)

    def sample(self, db: psycopg.Connection, minute: float) -> None:
        worker = psutil.Process(self.worker_pid)
        memory: Counter[str] = Counter(worker=anonymous(worker))
        children = worker.children()
        for child in children:
            for name in child.cmdline()[-1:]:
                memory[name] += anonymous(child)
        tables = dict(db.execute(SIZES).fetchall())
        self.samples.append(Sample(minute, memory, len(children), tables))
        (done,) = db.execute("select documents from rag.workers").fetchone() or (0,)
        sizes = [memory[name] / MB for name in ("worker", "extract", "embed")]
        print(
            f"{minute:8.1f} {sizes[0]:10.1f} {sizes[1]:11.1f} {sizes[2]:9.1f} {len(children):9} "
            f"{sum(tables.values()) / MB:10.1f} {done:7} {sum(self.searches.values()):9}",
            flush=True,
        )

    def faults(self) -> list[str]:
        faults = []
        quarter = len(self.samples) // 4
        early, late = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        for name in ("worker", "extract", "embed"):
            grown = median(s.memory[name] for s in late) - median(s.memory[name] for s in early)
            print(f"{name} grew by {grown / MB:+.1f} MB")
            if grown > MEMORY_GROWTH:
                faults.append(f"{name} grew by {grown / MB:.1f} MB")
        for table in self.samples[-1].tables:
            grown = median(s.tables[table] for s in late) - median(s.tables[table] for s in early)
            if grown > TABLE_GROWTH:
                faults.append(f"{table} grew by {grown / MB:.1f} MB")
        if most := max(s.children for s in self.samples):
            print(f"at most {most} child processes at a time")
        if most > 2:
            faults.append(f"the worker had {most} children at a time")
        if not self.searches["with rows"]:
            faults.append("no search found anything")
        return faults


def median(values: object) -> float:
    return statistics.median(values)


def anonymous(process: psutil.Process) -> int:
    """Memory that is the process's own, which no file or other process explains."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def soak(directory: Path, minutes: float, seed: int) -> list[str]:
    """The run and its faults, in a cluster of its own."""
    root = Path(tempfile.mkdtemp(prefix="ragstone-soak-"))
    root.chmod(0o755)
    try:
        run = Chaos(start_cluster(directory, port=54334), directory, root, random.Random(seed))
        run.prepare(None)
        it = Soak(run, minutes)
        with run.cluster.connect(run.cluster.database) as db:
            db.execute(
                "select rag.set('worker_max_documents', '0'), rag.set('job_history_days', '0'), rag.set('version_history_days', '0')"
            )
        worker = threading.Thread(target=it.work)
        others = [run._change, run._change, it.search, it.search, it.maintain]
        threads = [threading.Thread(target=run._keep_at, args=[other]) for other in others]
        for thread in [worker, *threads]:
            thread.start()
        try:
            time.sleep(2)
            it.watch()
        finally:
            run.stopping.set()
            for thread in threads:
                thread.join()
            with run.cluster.connect(run.cluster.database) as db:
                db.execute("select rag.stop_workers()")
            worker.join()
        left = [p for p in psutil.process_iter(["cmdline"]) if is_child(p, it.worker_pid)]
        faults = it.faults() + run.faults() + [f"left behind: {process}" for process in left]
        print(f"{sum(run.changes.values())} changes, {dict(it.searches)} searches, {run.summary}")
        return faults
    finally:
        shutil.rmtree(root)
        cluster_script("destroy", directory)


def is_child(process: psutil.Process, parent: int) -> bool:
    try:
        return process.ppid() == parent
    except psutil.Error:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    faults = soak(ROOT / f".cluster-soak-{os.getpid()}", options.minutes, options.seed)
    for fault in faults[:40]:
        print("FAULT", fault)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Kill everything, over and over, while rows change; then see whether anything is lost or wrong.

    python -m tests.chaos --events 200 --seed 1
    python -m tests.chaos --events 30 --sabotage fence     must fail, as must fold and death

The source table itself is the truth: every row's file says by a word of its own which file it is,
so that a stale, mixed or foreign chunk is recognised.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.conftest import ROOT, Cluster, cluster_script, start_cluster

FILES = 60
UNREADABLE = ("empty.txt", "missing.txt")
# Mistakes that queues have had, to see that a run notices them.
SABOTAGE = {
    # A change during the work counts as done by it.
    "fold": """
        create function public.sabotage() returns trigger language plpgsql as $$
        begin
          if exists (select from rag.ingestion_queue q
                     where (q.source_id, q.document_id, q.pipeline_id) = (new.source_id, new.document_id, new.pipeline_id)) then
            return null;
          end if;
          return new;
        end $$;
        create trigger sabotage before insert on rag.ingestion_queue for each row execute function public.sabotage()""",
    # The same, and what was computed for the older state is stored.
    "fence": """
        do $do$ begin
          execute replace(pg_get_functiondef('rag._fenced_job'::regproc), 'if _current is distinct', 'if false and _current is distinct');
        end $do$""",
    # A job whose worker died is taken for done.
    "death": """
        create or replace function rag._requeue(job rag.ingestion_queue, attempts integer) returns void
          language sql set search_path = pg_catalog, pg_temp as $$ select rag._finish_job(job, 'done') $$""",
}


def text_of(number: int) -> str:
    """One to six chunks, each of which holds the file's word."""
    return "\n\n".join(
        f"Section {part} of word{number}x. " + f"This belongs to word{number}x alone. " * 12
        for part in range(1 + number % 6)
    )


@dataclass
class Chaos:
    cluster: Cluster
    directory: Path
    root: Path
    rng: random.Random
    stopping: threading.Event = field(default_factory=threading.Event)
    done: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)

    def prepare(self, sabotage: str | None) -> None:
        for number in range(FILES):
            (self.root / f"{number}.txt").write_text(text_of(number))
        (self.root / "empty.txt").write_text("")
        with self.cluster.connect(self.cluster.database) as db:
            db.execute("create extension ragstone cascade")
            db.execute("select rag.set('document_root', %s)", [str(self.root)])
            db.execute("select rag.set('retry_delays_s', '0'), rag.set('poll_interval_ms', '20')")
            db.execute("create table files (id integer primary key, path text, tenant integer)")
            attach = "select rag.attach_source('files', path_column => 'path', tenant_column => 'tenant')"
            db.execute(attach)
            if sabotage == "fence":
                db.execute(SABOTAGE["fold"])
            if sabotage:
                db.execute(SABOTAGE[sabotage])

    # What goes on all the time

    def _keep_at(
        self, work: Callable[[psycopg.Connection], None], stopping: threading.Event | None = None
    ) -> None:
        """Do it again and again in one session, and in another when that is gone."""
        stopping = stopping or self.stopping
        while not stopping.is_set():
            try:
                with self.cluster.connect(self.cluster.database) as db:
                    while not stopping.is_set():
                        work(db)
            except psycopg.Error:
                time.sleep(0.02)

    def _drain(self, db: psycopg.Connection) -> None:
        db.execute("call rag.drain(run_for => '20 s')")

    def _change(self, db: psycopg.Connection) -> None:
        rng = self.rng
        # A few rows change so often that they are being worked on when they do.
        row, rows = rng.randrange(rng.choice([8, 120])), sorted(rng.sample(range(120), 5))
        path = rng.choice(UNREADABLE) if rng.random() < 0.03 else f"{rng.randrange(FILES)}.txt"
        kind = rng.choices(
            [
                "upsert",
                "update",
                "touch",
                "tenant",
                "delete",
                "reinsert",
                "many",
                "bulk",
                "truncate",
            ],
            [40, 25, 5, 5, 12, 8, 6, 2, 0.5],
        )[0]
        upsert = "insert into files values (%s, %s, 1) on conflict (id) do update set path = excluded.path"
        with db.transaction():
            if kind == "upsert":
                db.execute(upsert, [row, path])
            elif kind == "update":
                db.execute("update files set path = %s where id = %s", [path, row])
            elif kind == "touch":
                db.execute("update files set path = path where id = %s", [row])
            elif kind == "tenant":
                db.execute("update files set tenant = tenant + 1 where id = %s", [row])
            elif kind == "delete":
                db.execute("delete from files where id = %s", [row])
            elif kind == "reinsert":
                db.execute("delete from files where id = %s", [row])
                db.execute(upsert, [row, path])
            elif kind == "many":
                db.execute("update files set path = %s where id = any (%s)", [path, rows])
            elif kind == "bulk":
                bulk = """insert into files select n, (random() * %s)::integer || '.txt', 2
                          from generate_series(1000, 1150) n on conflict (id) do update set path = excluded.path"""
                db.execute(bulk, [FILES - 1])
            else:
                db.execute("truncate files")
        self.changes[kind] += 1
        time.sleep(rng.random() * 0.1)

    # What happens to it

    def _pids(self, condition: str) -> list[int]:
        with self.cluster.connect("postgres") as db:
            found = (
                f"select pid from pg_stat_activity where pid <> pg_backend_pid() and {condition}"
            )
            return [pid for (pid,) in db.execute(found).fetchall()]

    def _workers(self) -> list[int]:
        return self._pids("query ~ '^call rag.drain'")

    def _kill(self, pids: list[int], with_signal: int = signal.SIGKILL) -> bool:
        if not pids:
            return False
        try:
            os.kill(self.rng.choice(pids), with_signal)
        except ProcessLookupError:
            return False
        return True

    def _children(self) -> list[int]:
        """Child processes of this cluster's workers."""
        backends, found = set(self._workers()), []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and parent_of(int(entry)) in backends:
                    found.append(int(entry))
            except (OSError, ValueError, IndexError):
                continue
        return found

    def _restart(self) -> None:
        try:
            cluster_script("start", self.directory)
        except subprocess.CalledProcessError:
            # Whoever outlives the postmaster keeps the server from being started again.
            print("still there:", *self._survivors(), sep="\n", file=sys.stderr)
            raise

    def _survivors(self) -> list[str]:
        data = os.fspath((self.cluster.home / "data").resolve())
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "cwd") == data:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    waits = (entry / "wchan").read_text()
                    found.append(
                        f"{entry.name} {parent_of(int(entry.name))} {waits} {command.strip()}"
                    )
            except OSError:
                continue
        return found

    def events(self) -> dict[str, Callable[[], bool]]:
        def postmaster() -> bool:
            os.kill(self.cluster.postmaster_pid, signal.SIGKILL)
            self._restart()
            return True

        def immediate() -> bool:
            pid = self.cluster.postmaster_pid
            os.kill(pid, signal.SIGQUIT)
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.02)
            self._restart()
            return True

        return {
            "kill -9 worker": lambda: self._kill(self._workers()),
            "kill -9 child": lambda: self._kill(self._children()),
            "kill -9 any backend": lambda: self._kill(self._pids("true")),
            "kill -9 postmaster": postmaster,
            "immediate shutdown": immediate,
            "cancel worker": lambda: self._kill(self._workers(), signal.SIGINT),
            "terminate worker": lambda: self._kill(self._workers(), signal.SIGTERM),
            "cancel client": lambda: self._kill(self._pids("query !~ 'rag.drain'"), signal.SIGINT),
            "terminate client": lambda: self._kill(
                self._pids("backend_type = 'client backend' and query !~ 'rag.drain'"),
                signal.SIGTERM,
            ),
        }

    def run(self, events: int) -> None:
        at_rest = threading.Event()
        threads = [threading.Thread(target=self._keep_at, args=[self._drain]) for _ in range(2)]
        threads += [
            threading.Thread(target=self._keep_at, args=[self._change, at_rest]) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        try:
            actions = self.events()
            while sum(self.done.values()) < events:
                time.sleep(self.rng.random() * 0.8)
                name = self.rng.choice(list(actions))
                try:
                    if actions[name]():
                        self.done[name] += 1
                        self._await_server()
                except psycopg.Error:
                    self._await_server()
            # What is being worked on now was changed meanwhile, and no later change makes up for it.
            at_rest.set()
            time.sleep(3)
        finally:
            at_rest.set()
            self.stopping.set()
            # Those who work for a while yet are told to stop.
            for pid in self._await_server():
                os.kill(pid, signal.SIGINT)
            for thread in threads:
                thread.join()

    def _await_server(self) -> list[int]:
        started = time.monotonic()
        while True:
            try:
                workers = self._workers()
            except psycopg.Error:
                if time.monotonic() - started > 60:
                    self._restart()
                time.sleep(0.02)
                continue
            self.recoveries.append(time.monotonic() - started)
            return workers

    # What is left

    def faults(self) -> list[str]:
        """What is lost or wrong once everything has come to rest."""
        with self.cluster.connect(self.cluster.database) as db:
            left = "select count(*) from rag.ingestion_queue where status <> 'dead'"
            for _ in range(20):
                db.execute("call rag.drain()")
                if db.execute(left).fetchone() == (0,):
                    break
            faults = [
                f"{problem}: document {document_id} of pipeline {pipeline}, {detail}"
                for problem, _, document_id, pipeline, detail in db.execute(
                    "select * from rag.check_consistency()"
                )
            ]
            dead = dict(db.execute("select document_id, error from rag.dead_letters").fetchall())
            contents: dict[int, list[str]] = {}
            for document_id, content in db.execute(
                "select document_id, content from rag.document_chunks"
            ):
                contents.setdefault(document_id, []).append(content)
            hashes = dict(db.execute("select document_id, sha256 from rag.documents").fetchall())
            rows = db.execute("select id, path from files").fetchall()
            for document_id, path in rows:
                if document_id in dead:
                    if not dead[document_id]:
                        faults.append(f"document {document_id} is dead without a reason")
                    continue
                if path in UNREADABLE:
                    faults.append(f"document {document_id} cannot be read, yet is not dead")
                    continue
                words = {
                    w for c in contents.get(document_id, []) for w in re.findall(r"word\d+x", c)
                }
                if words != {f"word{path.removesuffix('.txt')}x"}:
                    faults.append(f"document {document_id} is {path}, its chunks hold {words}")
                if (
                    hashes.get(document_id)
                    != hashlib.sha256((self.root / path).read_bytes()).digest()
                ):
                    faults.append(f"document {document_id} is {path}, its hash is another file's")
            if foreign := contents.keys() - {document_id for document_id, _ in rows}:
                faults.append(f"chunks of deleted documents {sorted(foreign)}")
            poison = sum("worker died" in error for error in dead.values())
            self.summary = (
                f"{len(rows)} rows, {len(dead)} dead letters ({poison} for a killed worker)"
            )
        return faults


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def chaos(
    directory: Path, events: int, seed: int, sabotage: str | None = None
) -> tuple[Chaos, list[str]]:
    """The run and its faults, in a cluster of its own."""
    root = Path(tempfile.mkdtemp(prefix="ragstone-chaos-"))
    root.chmod(0o755)
    try:
        run = Chaos(start_cluster(directory, port=54332), directory, root, random.Random(seed))
        run.prepare(sabotage)
        run.run(events)
        return run, run.faults()
    finally:
        shutil.rmtree(root)
        try:
            cluster_script("destroy", directory)
        except subprocess.CalledProcessError:
            print(f"the cluster in {directory} could not be removed", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sabotage", choices=sorted(SABOTAGE), help="break it: the run must fail")
    options = parser.parse_args()
    started = time.monotonic()
    directory = ROOT / f".cluster-chaos-{os.getpid()}"
    run, faults = chaos(directory, options.events, options.seed, options.sabotage)
    for name, count in sorted(run.done.items()):
        print(f"{count:6}  {name}")
    print(
        f"{sum(run.done.values())} events and {sum(run.changes.values())} changes in "
        f"{time.monotonic() - started:.0f} s, seed {options.seed}: {run.summary}"
    )
    waits = sorted(run.recoveries)
    print(
        f"the server answered again after {waits[len(waits) // 2]:.2f} s (median), {waits[-1]:.2f} s (longest)"
    )
    for fault in faults[:40]:
        print("FAULT", fault)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""How fast work ends that is cancelled or terminated, and how fast another worker goes on.

In each stage of a document and in a search. A worker is stopped at a random moment of the stage, and
the time is that until its client has the error and no child is left. A statement's timeout does what
a cancel does, at a moment that a client cannot know; a fast shutdown terminates.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg

from bench.harness import (
    BenchError,
    Connection,
    Database,
    Report,
    Row,
    Server,
    attach_folder,
    library_texts,
    one,
    percentile,
    shared_folder,
)

LIMIT_MS = 250
TAKEOVER_LIMIT_MS = 1_000
WAYS = ("cancel", "terminate")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--times", type=int, default=20, help="stops of each way in each stage")


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    report = Report("stops", vars(options))
    with server.database() as database, shared_folder() as folder, database.connect() as db:
        attach_folder(db, folder)
        one(db, "select rag.set('max_file_bytes', '500000000'), rag.set('retry_delays_s', '0')")
        one(db, "select rag.set('max_text_characters', '100000000')")
        text = "\n\n".join(library_texts(400_000))
        stages = documents(folder, text)
        report.table(
            f"ms until a worker has stopped, at most {LIMIT_MS} asked of 99 in 100",
            [
                row(
                    name, way, [stop_worker(database, db, stage, way) for _ in range(options.times)]
                )
                for name, stage in stages.items()
                for way in WAYS
            ],
        )
        report.table(
            "ms until a search has stopped",
            [
                row("search", way, [stop_search(database, way) for _ in range(options.times)])
                for way in WAYS
            ],
        )
        report.table(
            "after a worker's end",
            [
                row(
                    "until another has its job",
                    "terminate",
                    takeovers(database, db, options.times),
                    TAKEOVER_LIMIT_MS,
                )
            ],
        )
    return report


def row(name: str, way: str, seconds: list[float], limit_ms: float = LIMIT_MS) -> Row:
    """Percentiles in milliseconds, and how many kept the limit."""
    return {
        "stage": name,
        "stopped by": way,
        "p50 ms": 1000 * percentile(seconds, 50),
        "p99 ms": 1000 * percentile(seconds, 99),
        "most ms": 1000 * max(seconds),
        "times": len(seconds),
        "in time": sum(1000 * s <= limit_ms for s in seconds),
    }


# --- stages ------------------------------------------------------------------------------------


class Stage:
    """A document that is long in one stage, and how to see that it has come there."""

    def __init__(self, path: str, seen: Callable[[Connection, int], bool], most_s: float) -> None:
        self.path = path
        self.seen = seen
        self.most_s = most_s


def documents(folder: Path, text: str) -> dict[str, Stage]:
    """One for each stage; the time is how long it is sure to stay there."""
    (folder / "read.txt").write_bytes(b"plain text\n" * 40_000_000)
    (folder / "extract.html").write_text("<p>" + "</p><p>".join([text] * 40))
    (folder / "embed.txt").write_text(text)
    (folder / "store.txt").write_text(
        "\n\n".join(f"Part {n}. {text[n : n + 40]}" for n in range(4000))
    )
    return {
        "read": Stage("read.txt", lambda db, pid: claimed(db), 0.2),
        "extract": Stage("extract.html", lambda db, pid: child(pid, "extract"), 0.5),
        "embed": Stage("embed.txt", lambda db, pid: child(pid, "embed"), 2.0),
        "store": Stage("store.txt", is_writing, 0.3),
    }


def claimed(db: Connection) -> bool:
    return one(db, "select exists (select from rag.ingestion_queue where status = 'running')")[0]


def child(pid: int, name: str) -> bool:
    return any(c.cmdline()[-1:] == [name] and c.cpu_times().user > 0.05 for c in children(pid))


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def is_writing(db: Connection, pid: int) -> bool:
    """Nothing else that a worker writes takes longer than a few milliseconds."""
    writing = """select exists (select from pg_stat_activity where pid = %s
                 and xact_start < clock_timestamp() - interval '30 ms' and backend_xid is not null)"""
    return one(db, writing, pid)[0]


# --- stopping ----------------------------------------------------------------------------------


class Background:
    """A statement in a thread of its own; `ended` is the moment at which its client had the error."""

    def __init__(self, connection: Connection, sql: str) -> None:
        self.pid = connection.info.backend_pid
        self.ended = 0.0
        self.error: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._run, args=[connection, sql], daemon=True)
        self._thread.start()

    def _run(self, connection: Connection, sql: str) -> None:
        try:
            connection.execute(sql)
        except psycopg.Error as error:
            self.error = error
        self.ended = time.perf_counter()

    def wait(self) -> None:
        self._thread.join(60)
        if self.error is None:
            raise BenchError("the statement ended before it was stopped")


@contextmanager
def queued(db: Connection, path: str) -> Iterator[None]:
    """The one document in the queue, and none of it left afterwards."""
    db.execute("insert into documents values (1, %s)", [path])
    yield
    db.execute("truncate documents")
    db.execute("call rag.drain()")


def stop_worker(database: Database, db: Connection, stage: Stage, way: str) -> float:
    with queued(db, stage.path), database.connect() as session:
        worker = Background(session, "call rag.drain()")
        until(lambda: stage.seen(db, worker.pid))
        time.sleep(random.uniform(0, stage.most_s))
        started = stop(db, worker, way)
        worker.wait()
        until(lambda: not children(worker.pid))
        return time.perf_counter() - started


def stop(db: Connection, background: Background, way: str) -> float:
    """Stop it; returns the moment."""
    started = time.perf_counter()
    stopper = "pg_terminate_backend" if way == "terminate" else "pg_cancel_backend"
    one(db, f"select {stopper}(%s)", background.pid)
    return started


def stop_search(database: Database, way: str) -> float:
    """In a new session, whose first search loads the model: the longest that there is."""
    with database.connect() as session, database.connect() as db:
        session.execute("set statement_timeout = '1 h'")
        search = Background(
            session, "select * from rag.search_documents(md5(random()::text)), pg_sleep(1)"
        )
        time.sleep(random.uniform(0, 0.3))
        started = stop(db, search, way)
        search.wait()
        return search.ended - started


def takeovers(database: Database, db: Connection, times: int) -> list[float]:
    """From the end of a worker in the middle of a document until another has claimed it."""
    found = []
    for _ in range(times):
        with queued(db, "embed.txt"), database.connect() as session, database.connect() as other:
            worker = Background(session, "call rag.drain()")
            until(lambda pid=worker.pid: child(pid, "embed"))
            second = Background(other, "call rag.drain(run_for => '1 h')")
            time.sleep(random.uniform(0.5, 1))
            started = stop(db, worker, "terminate")
            until(lambda pid=second.pid: has_job(db, pid))
            found.append(time.perf_counter() - started)
            stop(db, second, "cancel")
            second.wait()
    return found


def has_job(db: Connection, pid: int) -> bool:
    job = """select exists (select from rag.ingestion_queue q join rag.workers w using (worker_id)
             where w.pid = %s and q.status = 'running')"""
    return one(db, job, pid)[0]


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > deadline:
            raise BenchError("a stage was not reached in two minutes")
        time.sleep(0.002)

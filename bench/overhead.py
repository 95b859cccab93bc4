"""What it costs to be watched: the same documents ingested with and without status, metrics and logs.

Watched means: a line in the log for every document, a notification for every job with a session that
listens, and another session that every second reads rag.status, rag.progress, rag.worker_activity,
rag.failures and rag.metrics(), some fifteen times as often as an exporter does. In turns with the
same worker unwatched; the counting that rag.metrics() shows is on in both.
"""

from __future__ import annotations

import argparse
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psycopg

from bench.harness import BenchError, Database, Report, Server, library_texts, one, shared_folder
from bench.ingest import drain_folder, write_texts

LIMIT_PERCENT = 2
LOOKS = (
    "select * from rag.status",
    "select * from rag.progress",
    "select * from rag.worker_activity",
    "select * from rag.failures",
    "select rag.metrics()",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--size", type=int, default=800_000, help="bytes of text")
    parser.add_argument("--rounds", type=int, default=5, help="times to repeat, in turns")


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    report = Report("overhead", vars(options))
    rates: dict[str, list[float]] = {"unwatched": [], "watched": []}
    with shared_folder() as folder:
        write_texts(folder, library_texts(options.size))
        paths = sorted(path.name for path in folder.iterdir())
        for number in range(options.rounds):
            # Each goes first in every other round.
            for kind in sorted(rates, reverse=bool(number % 2)):
                with server.database() as database:
                    rates[kind].append(rate(database, folder, paths, is_watched=kind == "watched"))
    rows = [
        {"round": str(number), "unwatched tokens/s": bare, "watched tokens/s": seen}
        | {"cost %": 100 * (bare / seen - 1)}
        for number, (bare, seen) in enumerate(zip(*rates.values(), strict=True), 1)
    ]
    report.table(f"{len(paths)} documents", rows)
    bare, seen = (statistics.median(values) for values in rates.values())
    report.table(
        "of the medians",
        [{"what": "cost of being watched", "%": 100 * (bare / seen - 1), "limit": LIMIT_PERCENT}],
    )
    return report


def rate(database: Database, folder: Path, paths: list[str], is_watched: bool) -> float:
    """Tokens a second of one worker."""
    with watched(database) if is_watched else nullcontext():
        return drain_folder(database, folder, paths).rate


@contextmanager
def watched(database: Database) -> Iterator[None]:
    """All that can be seen is looked at meanwhile."""
    over = threading.Event()
    failed: list[psycopg.Error] = []

    def look() -> None:
        try:
            with database.connect() as db:
                while not over.wait(1):
                    for sql in LOOKS:
                        db.execute(sql).fetchall()
        except psycopg.Error as error:
            failed.append(error)

    with database.connect() as db:
        one(db, "select rag.set('log_min_duration_ms', '0')")
        one(db, "select rag.set('status_notifications', 'on')")
        db.execute("listen document_status")
        looker = threading.Thread(target=look, daemon=True)
        looker.start()
        try:
            yield
        finally:
            over.set()
            looker.join()
    if failed:
        raise BenchError(f"it was not watched: {failed[0]}")

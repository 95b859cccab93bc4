"""How long a search takes, what part of it is the query's own embedding, and in how much memory.

Warm: the same session; cold: a new connection each time. No query is asked twice, so none comes
from the cache, unless the row says cached.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil
import psycopg

from bench.harness import (
    BenchError,
    Connection,
    Database,
    Report,
    Server,
    Stopwatch,
    Watch,
    attach_folder,
    drain,
    insert_paths,
    latency_row,
    library_texts,
    one,
    shared_folder,
)
from bench.ingest import write_texts

HYBRID = "select count(*) from rag.search_documents(%s)"
WARM = {
    "hybrid": HYBRID,
    "the query's embedding alone": "select rag.embed(%s)",
    "text only (semantic_weight 0)": "select count(*) from rag.search_documents(%s, "
    "semantic_weight => 0)",
    "dense only (semantic_weight 1)": "select count(*) from rag.search_documents(%s, "
    "semantic_weight => 1)",
}
COLD_TARGET_MS = 150
PRIVATE_TARGET_MB = 60
MEMORY_QUERIES = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--size", type=int, default=800_000, help="bytes of text to search in")
    parser.add_argument("--queries", type=int, default=200, help="warm queries of each kind")
    parser.add_argument("--connections", type=int, default=40, help="cold queries of each kind")
    parser.add_argument("--at-once", type=int, default=200, help="connections that search at once")


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    report = Report("search", vars(options))
    texts = library_texts(options.size)
    queries = make_queries(
        texts,
        len(WARM) * options.queries
        + 3 * options.connections
        + 2
        + MEMORY_QUERIES
        + 2 * options.at_once,
    )
    with server.database() as database:
        chunks = load(database, texts)
        warm(report, database, queries, options.queries, chunks)
        cold(report, database, queries, options.connections)
        memory(report, database, queries)
        at_once(report, database, queries, options.at_once)
    return report


def make_queries(texts: Sequence[str], count: int) -> list[str]:
    """Different questions: four to ten neighbouring words of a text, frequent ones included."""
    chance = random.Random(2)
    queries: dict[str, None] = {}
    for _ in range(20 * count):
        words = re.findall(r"[A-Za-z]{2,}", chance.choice(texts))
        length = chance.randint(4, 10)
        start = chance.randrange(max(1, len(words) - length))
        queries[" ".join(words[start : start + length])] = None
        if len(queries) == count:
            return list(queries)
    raise BenchError(f"the text gives no {count} different queries: ask for more --size")


def load(database: Database, texts: Sequence[str]) -> int:
    """Take the texts in and return the number of chunks."""
    with shared_folder() as folder, database.connect() as connection:
        write_texts(folder, texts)
        attach_folder(connection, folder)
        insert_paths(connection, sorted(path.name for path in folder.iterdir()))
        drain(connection)
        connection.execute("vacuum analyze")
        (chunks,) = one(connection, "select count(*) from rag.document_chunks")
    return int(chunks)


def warm(report: Report, database: Database, queries: list[str], count: int, chunks: int) -> None:
    """All kinds in turns, in one session."""
    seconds: dict[str, list[float]] = {name: [] for name in [*WARM, "hybrid, cached"]}
    with database.connect() as connection:
        timed(connection, HYBRID, queries.pop())  # loads the model
        for _ in range(count):
            for name, sql in WARM.items():
                query = queries.pop()
                seconds[name].append(timed(connection, sql, query))
                if name == "hybrid":
                    seconds["hybrid, cached"].append(timed(connection, sql, query))
    report.table(
        f"warm search in {chunks:,} chunks",
        [latency_row(name, values) for name, values in seconds.items()],
    )


def cold(report: Report, database: Database, queries: list[str], count: int) -> None:
    """Each in a session of its own; connecting is timed apart."""
    seconds: dict[str, list[float]] = {}
    for _ in range(count):
        for name, sql in (("hybrid", HYBRID), *list(WARM.items())[1:3]):
            with Stopwatch() as watch:
                connection = database.connect()
            with connection:
                seconds.setdefault("connecting", []).append(watch.seconds)
                first = timed(connection, sql, queries.pop())
            seconds.setdefault(name, []).append(first)
            if name == "hybrid":
                seconds.setdefault("connecting and hybrid", []).append(watch.seconds + first)
    report.table(
        "cold search: first statement of a new connection",
        [
            latency_row(name, values, COLD_TARGET_MS if name == "hybrid" else None)
            for name, values in seconds.items()
        ],
    )


def memory(report: Report, database: Database, queries: list[str]) -> None:
    """Of one searching backend beside another, as it would be: what both map is not private."""
    with database.connect() as other, database.connect() as connection:
        timed(other, HYBRID, queries.pop())
        with Watch(connection.info.backend_pid) as watch:
            for query in [queries.pop() for _ in range(MEMORY_QUERIES)]:
                timed(connection, HYBRID, query)
            timed(connection, "select pg_sleep(%s)", "0.2")
    report.table("peak memory of a searching backend", [watch.backend.row("backend")])


def at_once(report: Report, database: Database, queries: list[str], count: int) -> None:
    """All connections ask at the same time, first cold and then warm; then their memory, together.

    Shared memory and files that several map are counted once (proportional set size).
    """
    with ExitStack() as stack:
        try:
            connections = [stack.enter_context(database.connect()) for _ in range(count)]
        except psycopg.OperationalError as error:
            raise BenchError(f"{error}\nRaise max_connections, or say --at-once less") from error
        rows = []
        with ThreadPoolExecutor(count) as pool:
            for name in ("first search of each", "second"):
                asked = [queries.pop() for _ in connections]
                with Stopwatch() as watch:
                    seconds = list(pool.map(timed, connections, [HYBRID] * count, asked))
                rows.append(latency_row(name, seconds) | {"all answered in s": watch.seconds})
        report.table(f"{count} connections that search at once", rows)
        sizes = [
            psutil.Process(connection.info.backend_pid).memory_full_info()
            for connection in connections
        ]
        private = [size.uss / 2**20 for size in sizes]
        report.table(
            f"memory of {count} connections that have searched",
            [
                {
                    "what": "backends",
                    "together MB": sum(size.pss for size in sizes) / 2**20,
                    "private MB, mean": sum(private) / count,
                    "private MB, most": max(private),
                    "target": PRIVATE_TARGET_MB,
                }
            ],
        )


def timed(connection: Connection, sql: str, value: str) -> float:
    """Seconds as the client sees them."""
    with Stopwatch() as watch:
        connection.execute(sql, [value]).fetchall()
    return watch.seconds

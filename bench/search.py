"""How long a search takes, what part of it is the query's own embedding, and in how much memory.

Warm: the same session; cold: a new connection each time. No query is asked twice, so none comes
from the cache, unless the row says cached.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence

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
MEMORY_QUERIES = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--size", type=int, default=800_000, help="bytes of text to search in")
    parser.add_argument("--queries", type=int, default=200, help="warm queries of each kind")
    parser.add_argument("--connections", type=int, default=40, help="cold queries of each kind")


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    report = Report("search", vars(options))
    texts = library_texts(options.size)
    queries = make_queries(
        texts, len(WARM) * options.queries + 3 * options.connections + 1 + MEMORY_QUERIES
    )
    with server.database() as database:
        chunks = load(database, texts)
        warm(report, database, queries, options.queries, chunks)
        cold(report, database, queries, options.connections)
        memory(report, database, queries)
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


def memory(report: Report, database: Database, queries: Sequence[str]) -> None:
    """Of one searching backend beside another, as it would be: what both map is not private."""
    with database.connect() as other, database.connect() as connection:
        timed(other, HYBRID, queries[0])
        with Watch(connection.info.backend_pid) as watch:
            for query in queries[1:]:
                timed(connection, HYBRID, query)
            timed(connection, "select pg_sleep(%s)", "0.2")
    report.table("peak memory of a searching backend", [watch.backend.row("backend")])


def timed(connection: Connection, sql: str, value: str) -> float:
    """Seconds as the client sees them."""
    with Stopwatch() as watch:
        connection.execute(sql, [value]).fetchall()
    return watch.seconds

"""What the triggers add to an INSERT of many rows, and to many of one row."""

from __future__ import annotations

import argparse
import statistics

from bench.harness import Connection, Report, Server, Stopwatch

TARGET_RATIO = 1.5
TABLES = ("plain", "attached")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=10_000, help="rows of one statement")
    parser.add_argument("--single", type=int, default=500, help="statements of one row")
    parser.add_argument("--rounds", type=int, default=9, help="medians are over these")


def run(server: Server, options: argparse.Namespace) -> Report:
    """Two tables that differ in nothing but the triggers, in turns; no worker runs."""
    report = Report("triggers", vars(options))
    with server.database() as database, database.connect() as connection:
        connection.execute("select rag.set('document_root', '/tmp')")
        for table in TABLES:
            connection.execute(
                f"""create table {table} (id bigint generated always as identity primary key,
                                          path text not null, title text, created timestamptz default now())"""
            )
        connection.execute(
            "select rag.attach_source('attached', path_column => 'path', title_column => 'title')"
        )
        report.table(
            "median time of inserts without and with triggers",
            [
                row(connection, "one statement", options.rows, 1, options.rounds),
                row(connection, "statements of one row", 1, options.single, options.rounds),
            ],
        )
    return report


def row(
    connection: Connection, name: str, rows: int, statements: int, rounds: int
) -> dict[str, str | float | None]:
    seconds: dict[str, list[float]] = {table: [] for table in TABLES}
    for _ in range(rounds):
        for table in TABLES:
            with Stopwatch() as watch:
                for _ in range(statements):
                    connection.execute(
                        f"""insert into {table} (path, title)
                            select 'folder/file_' || n || '.pdf', 'Title ' || n from generate_series(1, %s) n""",
                        [rows],
                    )
            seconds[table].append(watch.seconds)
    plain, attached = (statistics.median(seconds[table]) for table in TABLES)
    return {
        "insert": f"{name}: {rows * statements:,} rows",
        "plain ms": 1000 * plain,
        "with triggers ms": 1000 * attached,
        "ratio": attached / plain,
        "target ratio": TARGET_RATIO if rows > 1 else None,
    }

"""What each single-row statement of an application costs more once its table is attached.

Two tables that differ in nothing but the triggers, in turns; no worker runs. Each round inserts rows,
changes them and deletes them, so that it begins with empty tables like the one before. Commits do not
wait for the disk, which would hide the difference.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict

from bench.harness import Connection, Database, Report, Row, Server, Throughput, pgbench

TABLES = ("plain", "attached")
CLIENTS = (1, 8)
INSERT_TARGET_MS = 0.5
# :id is another row in each statement of each client.
NEXT_ROW = """\\set row :row + 1
\\set id :row * :clients + :client_id
"""
STATEMENTS = {
    "insert": "insert into {table} (id, path, title) values (:id, 'folder/' || :id || '.pdf', 'Title ' || :id)",
    "update of a watched column": "update {table} set title = 'Another title ' || :id where id = :id",
    "update of another column": "update {table} set note = 'Note ' || :id where id = :id",
    "delete": "delete from {table} where id = :id",
}
Key = tuple[str, int, str]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument(
        "--statements", type=int, default=1_000, help="of each kind, client and round"
    )
    parser.add_argument("--rounds", type=int, default=5, help="medians are over these")


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    report = Report("attach", vars(options))
    measured: dict[Key, list[Throughput]] = defaultdict(list)
    with server.database() as database, database.connect() as connection:
        make_tables(connection)
        connection.execute(f"alter database {database.name} set synchronous_commit = off")
        for number in range(options.rounds):
            for clients in CLIENTS:
                # Each goes first in every other round.
                for table in sorted(TABLES, reverse=bool(number % 2)):
                    for kind, sql in STATEMENTS.items():
                        script = f"{NEXT_ROW}{sql.format(table=table)};\n"
                        measured[kind, clients, table].append(
                            statements(connection, database, script, clients, options.statements)
                        )
                    connection.execute(f"truncate {table}")
    report.table(
        "medians of single-row statements; ms as one client waits for one statement",
        [row(measured, kind, clients) for clients in CLIENTS for kind in STATEMENTS],
    )
    return report


def make_tables(connection: Connection) -> None:
    """One is attached, with a path and a title."""
    connection.execute("select rag.set('document_root', '/tmp')")
    for table in TABLES:
        connection.execute(
            f"create table {table} (id bigint primary key, path text not null, title text, note text)"
        )
    connection.execute(
        "select rag.attach_source('attached', path_column => 'path', title_column => 'title')"
    )


def statements(
    connection: Connection, database: Database, script: str, clients: int, count: int
) -> Throughput:
    """So many of each client, prepared, each a transaction."""
    variables = ("-D", "row=0", "-D", f"clients={clients}")
    return pgbench(
        connection, database, script, clients, "-M", "prepared", "-t", str(count), *variables
    )


def row(measured: dict[Key, list[Throughput]], kind: str, clients: int) -> Row:
    """Plain and attached, and how they differ."""
    ms = {
        table: statistics.median(each.mean_ms for each in measured[kind, clients, table])
        for table in TABLES
    }
    per_second = {
        table: statistics.median(each.per_second for each in measured[kind, clients, table])
        for table in TABLES
    }
    return {
        "statement": kind,
        "clients": clients,
        "plain ms": ms["plain"],
        "attached ms": ms["attached"],
        "difference ms": ms["attached"] - ms["plain"],
        "target ms": INSERT_TARGET_MS if (kind, clients) == ("insert", 1) else None,
        "ratio": ms["attached"] / ms["plain"],
        "plain/s": per_second["plain"],
        "attached/s": per_second["attached"],
    }

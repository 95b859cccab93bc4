"""Searches on a streaming replica."""

from __future__ import annotations

import os
import subprocess
import time

import psycopg
import pytest
from conftest import ROOT
from helpers import rows, value

PORT = 54332


def server_program(*command):
    """Run as the server's account: PostgreSQL refuses root."""
    account = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    subprocess.run([*account, *map(str, command)], check=True, cwd="/", stdout=subprocess.DEVNULL)


@pytest.fixture
def replica(own_cluster):
    """A primary with a document found in it, and its standby, caught up."""
    primary = own_cluster()
    bindir = subprocess.run(
        ["sh", "-c", "$(tools/deps.sh pg_config) --bindir"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    with primary.connect(primary.database) as db:
        db.execute("create extension ragstone cascade")
        db.execute("create table facts (id integer primary key, body text)")
        db.execute("select rag.attach_source('facts', content_column => 'body')")
        db.execute(
            "insert into facts select n, 'Fact ' || n || ' on honey and bees' from generate_series(1, 50) n"
        )
        db.execute("call rag.drain()")
        db.execute("select from rag.search_documents('asked before')")

        folder = primary.home / "standby"
        server_program(
            f"{bindir}/pg_basebackup",
            "-D",
            folder,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "-h",
            primary.host,
            "-p",
            primary.port,
            "-U",
            "postgres",
        )
        server_program(
            f"{bindir}/pg_ctl",
            "start",
            "-w",
            "-D",
            folder,
            "-l",
            primary.home / "standby.log",
            "-o",
            f"-p {PORT}",
        )
        try:
            with psycopg.connect(
                host=primary.host,
                port=PORT,
                user="postgres",
                dbname=primary.database,
                autocommit=True,
            ) as standby:
                db.execute("insert into facts values (51, 'A late fact on wax')")
                db.execute("call rag.drain()")
                caught_up(db, standby)
                yield db, standby
        finally:
            server_program(f"{bindir}/pg_ctl", "stop", "-w", "-m", "immediate", "-D", folder)


def caught_up(db, standby):
    position = value(db, "select pg_current_wal_lsn()")
    for _ in range(200):
        if value(standby, "select pg_last_wal_replay_lsn() >= %s::pg_lsn", position):
            return
        time.sleep(0.1)
    raise AssertionError("the standby did not catch up")


@pytest.mark.parametrize(
    "search",
    [
        "search_documents('honey', match_count => 60)",
        "search_documents('asked before')",
        "search_documents('wax', mode => 'text')",
        "search_documents('honey', document_filter => array[7, 51], context_chunks => 1, highlight => true)",
        "find_documents('late fact', max_per_document => 1)",
    ],
)
def test_a_standby_finds_the_same_and_writes_nothing(replica, search):
    db, standby = replica
    assert value(standby, "select pg_is_in_recovery()")
    notices = []
    standby.add_notice_handler(lambda n: notices.append(n.message_primary))
    on_standby = rows(standby, f"select * from rag.{search}")
    assert on_standby
    assert on_standby == rows(db, f"select * from rag.{search}")
    assert notices == []

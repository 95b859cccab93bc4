"""Searches on a streaming replica."""

from __future__ import annotations

import subprocess
import time

import psycopg
import pytest
from conftest import ROOT
from helpers import AS_SERVER, claim, rows, value

PORT = 54332


def server_program(*command):
    """Run as the server's account."""
    subprocess.run([*AS_SERVER, *map(str, command)], check=True, cwd="/", stdout=subprocess.DEVNULL)


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
            # No question is cancelled because the machine is slow and the primary's vacuum is not.
            f"-p {PORT} -c max_standby_streaming_delay=-1",
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


def test_a_promoted_standby_finishes_what_the_primary_had_begun_and_starts_workers(replica):
    """pg_cron sleeps on a standby and wakes when it is promoted; the dead primary's jobs are free."""
    db, standby = replica
    db.execute("select rag.start_workers(1)")
    worker = value(db, "select rag._register_worker()")
    db.execute("insert into facts values (52, 'A fact on nectar')")
    assert [job["document_id"] for job in claim(db, worker)] == [52]
    db.execute("insert into facts values (53, 'A fact on pollen')")
    caught_up(db, standby)
    assert (
        value(standby, "select detail from rag.check() where \"check\" = 'workers'")
        == "none: this is a standby"
    )
    assert rows(standby, "select * from rag.check() where not ok and \"check\" <> 'pgvector'") == []
    with pytest.raises(psycopg.Error):
        standby.execute("call rag.drain()")
    before = rows(standby, "select content, hybrid_score from rag.search_documents('honey')")

    assert value(standby, "select pg_promote()")
    assert (
        rows(standby, "select content, hybrid_score from rag.search_documents('honey')") == before
    )
    waiting = "select document_id, status from rag.ingestion_queue order by 1"
    assert rows(standby, waiting) == [(52, "running")]
    assert value(standby, "select count(*) from rag._changes where keys = '{53}'") == 1
    for _ in range(150):  # the next full minute
        if value(standby, "select count(*) from rag.job_history where document_id in (52, 53)") == 2:
            break
        time.sleep(0.5)
    assert rows(standby, waiting) == []
    assert (
        value(standby, "select content from rag.search_documents('nectar', match_count => 1)")
        == "A fact on nectar"
    )
    assert value(standby, "select count(*) from rag.job_history where document_id in (52, 53)") == 2
    standby.execute("insert into facts values (54, 'A fact on drones')")
    # pg_cron's jobs are in this database; all is as on a primary.
    assert rows(standby, "select * from rag.check() where not ok and \"check\" <> 'pgvector'") == []
    standby.execute("select rag.stop_workers()")

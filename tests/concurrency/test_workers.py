"""Workers that die, are cancelled, or meet a change halfway."""

from __future__ import annotations

import os
import signal
import time

import psycopg
import pytest
from helpers import children_of, claim, eventually, in_background, long_text, rows, value


def running(db):
    return value(db, "select count(*) from rag.ingestion_queue where status = 'running'")


def test_two_workers_share_the_queue_and_do_nothing_twice(db, connect, add, drain):
    for number in range(40):
        add(number, f"Document number {number}.")
    threads = [in_background(connect(), "call rag.drain()") for _ in range(2)]
    for thread, errors in threads:
        thread.join(120)
        assert errors == []
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 40
    assert value(db, "select count(*) from rag.job_history") == 40
    assert value(db, "select count(*) from rag.document_chunks") == 40


def test_jobs_of_a_terminated_worker_are_free_at_once(db, connect, add, drain):
    add(1, long_text(300))
    worker = connect()
    thread, errors = in_background(worker, "call rag.drain()")
    eventually(lambda: running(db))
    db.execute("select pg_terminate_backend(%s)", [worker.info.backend_pid])
    thread.join(30)
    assert errors
    drain()
    assert rows(db, "select status, retry_count from rag.ingestion_log") == [("completed", 0)]
    assert value(db, "select attempts from rag.job_history") == 2


def test_cancel_takes_effect_at_once_and_gives_the_jobs_back(db, connect, add):
    add(1, long_text(400))
    add(2, "Claimed with the first.")
    worker = connect()
    thread, errors = in_background(worker, "call rag.drain()")
    eventually(lambda: running(db))
    time.sleep(1)
    db.execute("select pg_cancel_backend(%s)", [worker.info.backend_pid])
    thread.join(20)
    assert not thread.is_alive()
    assert isinstance(errors[0], psycopg.errors.QueryCanceled)
    assert rows(db, "select distinct status, attempts from rag.ingestion_queue") == [("queued", 0)]
    assert worker.execute("select 1").fetchone() == (1,), "the session goes on"
    assert value(db, "select count(*) from rag.workers") == 0
    assert children_of(worker.info.backend_pid) == []


def test_statement_timeout_stops_a_drain(db, add):
    add(1, long_text(400))
    db.execute("set statement_timeout = '1500ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        db.execute("call rag.drain()")
    db.execute("set statement_timeout = 0")
    assert value(db, "select status from rag.ingestion_queue") == "queued"


@pytest.mark.parametrize("name", ["extract", "embed"])
def test_a_killed_child_costs_its_document_an_attempt_and_no_other(db, connect, add, name):
    db.execute("select rag.set('retry_delays_s', '0')")
    for number in range(3):
        add(number, f"Document number {number}.")
    worker = connect()
    thread, errors = in_background(worker, "call rag.drain(run_for => '2 s')")
    for pid in eventually(lambda: children_of(worker.info.backend_pid, name)):
        os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert errors == []
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 3


def test_a_change_during_the_work_discards_the_outdated_result(
    db, connect, add, table, document_root
):
    add(1, long_text(150))
    worker = connect()
    thread, errors = in_background(worker, "call rag.drain()")
    eventually(lambda: running(db))
    (document_root / "new.txt").write_text("The new text.")
    db.execute(f"update {table} set \"DocumentFilePath\" = 'new.txt'")
    thread.join(120)
    assert errors == []
    assert rows(db, "select content from rag.document_chunks") == [("The new text.",)]
    assert rows(db, "select outcome from rag.job_history order by job_id") == [
        ("superseded",),
        ("done",),
    ]


def test_a_delete_during_the_work_leaves_no_chunk(db, connect, add, table):
    add(1, long_text(150))
    worker = connect()
    thread, errors = in_background(worker, "call rag.drain()")
    eventually(lambda: running(db))
    db.execute(f"delete from {table}")
    thread.join(120)
    assert errors == []
    assert value(db, "select count(*) from rag.document_chunks") == 0
    assert value(db, "select count(*) from rag.documents") == 0


def test_a_deleted_and_reinserted_row_never_gets_the_old_text(
    db, connect, add, table, document_root
):
    add(1, long_text(150), "old.txt")
    worker = connect()
    thread, errors = in_background(worker, "call rag.drain()")
    eventually(lambda: running(db))
    (document_root / "new.txt").write_text("The new text.")
    db.execute(f"delete from {table}")
    db.execute(f"insert into {table} values (1, 'new.txt')")
    thread.join(120)
    assert errors == []
    assert rows(db, "select content from rag.document_chunks") == [("The new text.",)]


def test_no_transaction_is_open_while_the_model_works(db, connect, add):
    add(1, long_text(300))
    worker = connect()
    thread, _ = in_background(worker, "call rag.drain()")
    eventually(lambda: running(db))
    held = []
    while thread.is_alive() and len(held) < 40:
        held.append(
            value(
                db,
                "select backend_xmin is not null from pg_stat_activity where pid = %s",
                worker.info.backend_pid,
            )
        )
        time.sleep(0.05)
    db.execute("select pg_cancel_backend(%s)", [worker.info.backend_pid])
    thread.join(60)
    # It has a snapshot for the microseconds of each statement, seldom seen from outside.
    assert sum(held) <= len(held) / 2, held


def test_kill_minus_nine_of_a_worker_loses_nothing(own_cluster, document_root):
    cluster = own_cluster()
    with cluster.connect("cron") as db:
        db.execute("create extension ragstone cascade")
        db.execute("select rag.set('document_root', %s)", [str(document_root)])
        db.execute("create table files (id integer primary key, path text)")
        db.execute("select rag.attach_source('files', path_column => 'path')")
        for number in range(12):
            (document_root / f"{number}.txt").write_text(long_text(3) + f" Document {number}.")
            db.execute("insert into files values (%s, %s)", [number, f"{number}.txt"])
        worker = cluster.connect("cron")
        thread, _ = in_background(worker, "call rag.drain()")
        eventually(lambda: running(db))
        os.kill(worker.info.backend_pid, signal.SIGKILL)
        thread.join(30)
    # The server restarts itself: all sessions are gone.
    eventually(lambda: "reinitializing" in cluster.log)
    db = eventually(lambda: reconnect(cluster))
    db.execute("call rag.drain()")
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 12
    assert value(db, "select count(distinct document_id) from rag.document_chunks") == 12
    assert value(db, "select count(*) from rag.document_chunks") == value(
        db, "select sum(chunks) from rag.documents"
    )
    db.close()


def reconnect(cluster):
    try:
        connection = cluster.connect("cron")
        connection.execute("select 1")
        return connection
    except psycopg.OperationalError:
        return None


def test_a_document_that_kills_its_worker_ends_in_the_dead_letters(db, connect, add, drain):
    """The kill is simulated where the worker cannot defend itself: its session ends."""
    db.execute("select rag.set('retry_delays_s', '0'), rag.set('max_attempts', '3')")
    add(1, "The poison.")
    add(2, "An innocent document of the same batch.")
    for attempt in range(3):
        worker = connect()
        jobs = claim(worker, value(worker, "select rag._register_worker()"))
        assert 1 in [job["document_id"] for job in jobs]
        assert len(jobs) == (2 if attempt == 0 else 1), "after the first death it is claimed alone"
        pid = worker.info.backend_pid
        worker.close()
        eventually(
            lambda pid=pid: (
                not value(db, "select count(*) from pg_stat_activity where pid = %s", pid)
            )
        )
        # Freed by this look, and then in front of the innocent one again.
        db.execute("select rag._free_jobs_of_dead_workers()")
        db.execute("update rag.ingestion_queue set run_at = 'epoch' where document_id = 1")
    drain()
    assert rows(db, "select document_id, status from rag.ingestion_log order by 1") == [
        (1, "failed"),
        (2, "completed"),
    ]
    dead = rows(db, "select failure, stage, error_code, attempts from rag.dead_letters")
    assert dead == [("poison", "worker", "worker_died", 3)]


def test_pg_cron_starts_workers_and_they_stop_when_told(own_cluster, document_root):
    cluster = own_cluster()
    with cluster.connect("cron") as db:
        db.execute("create extension ragstone cascade")
        db.execute("select rag.set('document_root', %s)", [str(document_root)])
        (document_root / "a.txt").write_text("Found by a worker that pg_cron started.")
        db.execute("create table files (id integer primary key, path text)")
        db.execute("select rag.attach_source('files', path_column => 'path')")
        assert value(db, "select rag.start_workers(2)") == 2
        db.execute("insert into files values (1, 'a.txt')")
        eventually(
            lambda: value(db, "select count(*) from rag.search_documents('worker')"), seconds=100
        )
        eventually(lambda: value(db, "select count(*) from rag.worker_activity") == 2, seconds=30)
        assert value(db, "select rag.stop_workers()") == 2
        eventually(lambda: value(db, "select count(*) from rag.worker_activity") == 0, seconds=30)
        assert value(db, "select count(*) from cron.job") == 0


def test_start_workers_without_pg_cron_here_says_what_to_type(db):
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as error:
        db.execute("select rag.start_workers()")
    assert "cron.schedule_in_database" in error.value.diag.message_hint
    for wrong in ("0", "-1", "65", "null"):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            db.execute(f"select rag.start_workers({wrong})")


def test_claims_pass_over_no_remains_that_vacuum_cannot_remove(db, connect, table):
    """Planned in an empty queue, as by a worker that has just started, and kept while it grows."""
    worker_id = value(db, "select rag._register_worker()")
    feed = """
      with documents as (
        insert into rag.documents (source_id, document_id, source_key)
        select 1, n, n from (select nextval('rag._document_id_seq') as n from generate_series(1, %s)) s
        returning source_id, document_id)
      insert into rag.ingestion_queue (source_id, document_id, pipeline_id)
      select source_id, document_id, 1 from documents"""
    claim_sql = "select array_agg((job).job_id) from rag._claim_jobs(%s, 0::smallint, 0, %s, %s)"

    def finish(first: int) -> int:
        while jobs := value(db, claim_sql, worker_id, first, 200):
            db.execute("delete from rag.ingestion_queue where job_id = any (%s)", [jobs])
            first = max(jobs) + 1
        return first

    first = 0
    for _ in range(10):
        db.execute(feed, [2])
        first = finish(first)
    holder = connect()
    holder.execute("begin isolation level repeatable read")
    holder.execute("select txid_current()")
    db.execute(feed, [20_000])
    first = finish(first)
    db.execute(feed, [16])
    explained = f"explain (analyze, buffers, format json) {claim_sql}"
    (plan,) = value(db, explained, worker_id, first, 16)
    read = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    assert read < 16 * 30
    assert value(db, "select count(*) from rag.ingestion_queue where status = 'running'") == 16
    holder.execute("rollback")

"""How workers begin, wait, end, and are told to."""

from __future__ import annotations

import os
import re
import time

import psutil
import pytest
from helpers import children_of, eventually, in_background, long_text, rows, value

LAUNCHER = "select max(pid) from pg_stat_activity where backend_type = 'pg_cron launcher'"


def state(db):
    return rows(db, "select state from rag.worker_activity")


def completed(db):
    return value(db, "select count(*) from rag.documents where status = 'completed'")


@pytest.fixture
def worker(connect):
    """A worker in a session of its own that stays for a while; it is told to stop at the end."""
    session = connect()
    thread, errors = in_background(session, "call rag.drain(run_for => '5 min')")
    yield session.info.backend_pid
    stopper = connect()
    stopper.execute("select rag.set('workers_paused', 'off'), rag.stop_workers()")
    thread.join(60)
    assert not thread.is_alive()
    assert errors == []


@pytest.mark.parametrize(
    ("setting", "hold", "release", "expected"),
    [
        ("workers_paused", "on", "off", "paused"),
        ("min_available_memory_bytes", "10000000000000", "0", "short of memory"),
    ],
)
def test_a_worker_that_may_not_work_waits_and_then_goes_on(
    db, add, worker, setting, hold, release, expected
):
    db.execute("select rag.set(%s, %s)", [setting, hold])
    eventually(lambda: state(db) == [(expected,)])
    add(1, "Put off, not failed.")
    time.sleep(1)
    assert rows(db, "select status, attempts from rag.ingestion_queue") == [("queued", 0)]
    db.execute("select rag.set(%s, %s)", [setting, release])
    eventually(lambda: completed(db) == 1)
    assert value(db, "select attempts from rag.job_history") == 1


def test_want_of_memory_is_told_once(connect, add):
    messages = []
    session = connect()
    session.add_notice_handler(lambda notice: messages.append(notice.message_primary))
    session.execute("select rag.set('min_available_memory_bytes', '10000000000000')")
    session.execute("call rag.drain(run_for => '2 s')")
    (message,) = messages
    assert message.startswith("work is put off: the machine has ")


@pytest.mark.parametrize(
    ("setting", "limit"), [("worker_max_documents", "2"), ("worker_max_memory_bytes", "1")]
)
def test_a_worker_that_has_done_its_part_ends_and_leaves_the_rest(db, add, setting, limit):
    db.execute("select rag.set(%s, %s), rag.set('claim_documents', '2')", [setting, limit])
    for number in range(5):
        add(number, f"Document number {number}.")
    db.execute("call rag.drain(run_for => '10 min')")
    assert completed(db) == 2
    assert rows(db, "select distinct status, attempts from rag.ingestion_queue") == [("queued", 0)]
    assert rows(db, "select * from rag.workers") == []


def test_a_document_over_the_time_limit_fails_with_it_and_the_others_go_on(db, add, drain):
    db.execute("select rag.set('job_time_limit_s', '3'), rag.set('max_attempts', '1')")
    add(1, long_text(1500))
    add(2, "A short one.")
    drain()
    assert rows(db, "select document_id, stage, error_code from rag.dead_letters") == [
        (1, "embed", "timeout")
    ]
    assert "job_time_limit_s" in value(
        db, "select error_hint from rag.ingestion_log where document_id = 1"
    )
    assert completed(db) == 1


def test_an_idle_worker_gives_its_memory_back_and_still_works(db, add, worker):
    db.execute("select rag.set('model_idle_s', '0')")
    for number in (1, 2):
        add(number, f"Document number {number}.")
        eventually(lambda number=number: completed(db) == number)
        eventually(lambda: children_of(worker) == [])
    eventually(lambda: state(db) == [("idle",)])


def test_the_memory_of_a_worker_and_its_children_is_told(db, add, worker):
    add(1, "One document has the children started.")
    eventually(lambda: completed(db) == 1)
    own = psutil.Process(worker).memory_info()
    told = value(db, "select sum(rag._process_memory_bytes(pid)) from rag.workers")
    assert told > own.rss - own.shared
    assert value(db, "select worker_memory ~ '^[0-9]+ MB$' from rag.status")
    shown = re.search(
        r"^ragstone_worker_memory_bytes (\d+)$", value(db, "select rag.metrics()"), re.M
    )
    assert int(shown[1]) > own.rss - own.shared


def test_two_databases_of_a_cluster_have_workers_of_their_own(
    cluster, db, add, connect, document_root
):
    """A worker's sign of life is a lock with its number, and both databases count from 1."""
    name = f"other_{os.getpid()}"
    with cluster.connect("postgres") as admin:
        admin.execute(f"create database {name} template ragstone_template")
    try:
        with cluster.connect(name) as other:
            other.execute("create table notes (id integer primary key, body text)")
            other.execute("select rag.attach_source('notes', content_column => 'body')")
            other.execute("insert into notes values (1, 'Only in the other database.')")
            add(1, long_text(400))
            here = connect()
            thread, errors = in_background(here, "call rag.drain()")
            eventually(
                lambda: value(
                    db, "select count(*) from rag.ingestion_queue where status = 'running'"
                )
            )
            other.execute("call rag.drain()")
            assert completed(other) == 1
            assert (
                value(
                    other,
                    "select count(*) from rag.search_documents('chapter of a long book', mode => 'text')",
                )
                == 0
            )
            db.execute("select pg_terminate_backend(%s)", [here.info.backend_pid])
            thread.join(60)
            assert errors
            other.execute("call rag.drain()")
            assert value(db, "select count(*) from rag.worker_activity") == 0
            db.execute("call rag.drain()")
            assert completed(db) == 1
    finally:
        with cluster.connect("postgres") as admin:
            admin.execute(f"drop database {name} with (force)")


def test_what_pg_cron_notes_of_our_jobs_is_pruned_and_nothing_else(own_cluster):
    cluster = own_cluster()
    with cluster.connect("cron") as db:
        db.execute("create extension ragstone cascade")
        db.execute("select rag.start_workers(1)")
        assert rows(
            db, "select jobname, schedule, command from cron.job where jobname like '%maintenance%'"
        ) == [("ragstone maintenance in cron", "37 2 * * *", "call rag.maintain()")]
        db.execute(
            """insert into cron.job_run_details (jobid, runid, database, command, end_time)
               select 1, -n, 'cron', command, now() - age
               from unnest(array['call rag.drain()', 'call rag.drain()', 'vacuum'],
                           array[interval '40 days', '1 day', '40 days']) with ordinality as u (command, age, n)"""
        )
        db.execute("call rag.maintain()")
        assert rows(db, "select command from cron.job_run_details where runid < 0 order by 1") == [
            ("call rag.drain()",),
            ("vacuum",),
        ]
        assert (
            value(
                db, "select count from rag.maintenance_log where task = 'notes of pg_cron removed'"
            )
            == 1
        )


def check(db, name):
    return rows(db, 'select ok, detail, hint from rag.check() where "check" = %s', name)[0]


def test_what_keeps_pg_cron_from_starting_workers_is_told(own_cluster):
    """The one who scheduled a worker is gone; no process is left for others; the launcher has ended."""
    cluster = own_cluster(max_worker_processes="3")
    with cluster.connect("cron") as db:
        db.execute("create extension ragstone cascade")
        db.execute("select rag.start_workers(3)")
        eventually(lambda: check(db, "pg_cron")[0])

        db.execute("create role gone superuser")
        db.execute("update cron.job set username = 'gone' where jobname like 'ragstone worker 1 %'")
        db.execute("drop role gone")
        ok, detail, hint = check(db, "workers")
        assert (ok, hint) == (False, "Type: select rag.start_workers(3);")
        assert 'role "gone", which is gone' in detail
        db.execute(hint.removeprefix("Type: "))
        assert rows(db, "select distinct username from cron.job") == [("postgres",)]
        assert value(db, "select count(*) from cron.job") == 4

        # pg_cron itself says nothing of it but in the server's log.
        ok, detail, hint = check(db, "worker_processes")
        assert ok is False and "max_worker_processes 3; needed 5" in detail
        assert "max_worker_processes = " in hint
        launcher = eventually(lambda: value(db, LAUNCHER))
        db.execute("select pg_terminate_backend(%s)", [launcher])
        eventually(lambda: value(db, LAUNCHER) is None)
        ok, detail, hint = check(db, "pg_cron")
        assert ok is False and "launcher is not running" in detail and "Restart" in hint

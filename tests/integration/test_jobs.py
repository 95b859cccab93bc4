"""Failed jobs are seen, tried again, given up, stopped; nobody waits behind another's flood."""

from __future__ import annotations

import psycopg
import pytest
from helpers import claim, rows, value

DEAD = "select document_id, failure, stage, error_code, attempts from rag.dead_letters order by 1"


@pytest.fixture
def consistent(db):
    """After the test, nothing contradicts itself."""
    yield
    assert rows(db, "select * from rag.check_consistency()") == []


@pytest.fixture
def failed(db, add, table, drain):
    """One document that can never be read, and one whose file is missing for now."""
    db.execute("select rag.set('max_attempts', '1')")
    add(1, b"", "empty.txt")
    db.execute(f"insert into {table} values (2, 'late.txt')")
    drain()


def test_dead_letters_say_what_where_and_why(db, failed, consistent):
    assert rows(db, DEAD) == [
        (1, "permanent", "read", "empty", 1),
        (2, "transient", "read", "not_found", 1),
    ]
    seen = "select error, hint, failed_at, created_at, file_path, source, pipeline from rag.dead_letters"
    assert all(None not in row for row in rows(db, seen))


def test_retry_by_class_tries_only_those(db, failed, document_root, drain, consistent):
    (document_root / "late.txt").write_text("Better late than never.")
    assert value(db, "select rag.retry(error_code => 'not_found')") == 1
    assert value(db, "select status from rag.ingestion_log where document_id = 2") == "pending"
    drain()
    assert value(db, "select status from rag.ingestion_log where document_id = 2") == "completed"
    assert [row[0] for row in rows(db, DEAD)] == [1]


def test_retry_of_one_and_of_all(db, failed, drain, consistent):
    job = value(db, "select job_id from rag.dead_letters where document_id = 1")
    assert value(db, "select rag.retry(%s)", job) == 1
    assert value(db, "select rag.retry()") == 1, "the other one; the first has its attempts"
    drain()
    assert len(rows(db, DEAD)) == 2
    with pytest.raises(psycopg.errors.UndefinedObject) as error:
        db.execute("select rag.retry(999999)")
    assert "rag.job(999999)" in error.value.diag.message_hint


def test_a_discarded_letter_is_gone_and_its_document_says_failed(db, failed, consistent):
    assert value(db, "select rag.discard(stage => 'read', error_code => 'empty')") == 1
    assert [row[0] for row in rows(db, DEAD)] == [2]
    assert value(db, "select status from rag.ingestion_log where document_id = 1") == "failed"
    assert value(db, "select outcome from rag.job_history where document_id = 1") == "discarded"


def test_a_cancelled_job_is_not_done_until_it_is_retried(db, add, drain, consistent):
    add(1, "Some text.")
    job = value(db, "select job_id from rag.ingestion_queue")
    assert value(db, "select rag.cancel(%s)", job) == "dead"
    drain()
    assert rows(db, "select from rag.search_documents('text')") == []
    assert value(db, "select failure from rag.dead_letters") == "cancelled"
    db.execute("select rag.retry(%s)", [job])
    drain()
    assert value(db, "select document_id from rag.search_documents('text')") == 1


def test_a_job_cancelled_while_it_runs_stores_nothing(db, connect, add, drain, consistent):
    add(1, "Some text.")
    worker = connect()
    worker_id = value(worker, "select rag._register_worker()")
    (job,) = claim(worker, worker_id)
    db.execute("select rag.cancel(%s)", [job["job_id"]])
    stored = "select rag._store_document(%s, %s, %s, '{}', '[]')"
    assert value(worker, stored, job["job_id"], worker_id, job["generation"]) == "superseded"
    drain()
    assert value(db, "select failure from rag.dead_letters") == "cancelled"


def test_a_raised_priority_goes_first(db, connect, add, consistent):
    for number in (1, 2, 3):
        add(number, "Some text.")
    job = value(db, "select job_id from rag.ingestion_queue where document_id = 3")
    assert value(db, "select rag.prioritize(5, job_id => %s)", job) == 1
    worker_id = value(db, "select rag._register_worker()")
    assert [j["document_id"] for j in claim(db, worker_id, 1)] == [3]
    db.execute("select rag._give_back_jobs(%s)", [worker_id])
    assert value(db, "select sum(attempts) from rag.ingestion_queue") == 0
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        db.execute("select rag.prioritize(1000)")


def test_a_tenant_with_one_document_does_not_wait_for_one_with_many(db, drain, consistent):
    db.execute("create table notes (id integer primary key, tenant integer, body text)")
    db.execute(
        "select rag.attach_source('notes', content_column => 'body', tenant_column => 'tenant')"
    )
    db.execute("insert into notes select n, 1, 'Flood ' || n from generate_series(1, 90) n")
    db.execute("insert into notes values (1000, 2, 'The only one.')")
    db.execute("call rag.drain(max_documents => 16)")
    done = "select tenant_id from rag.documents where status = 'completed'"
    assert (2,) in rows(db, done)


def test_an_error_of_the_server_is_kept_with_its_sqlstate(db, add, drain, consistent):
    add(1, "Some text.")
    db.execute("alter table rag.document_versions add constraint broken check (chunks <> 1)")
    drain()
    assert rows(db, "select failure, stage, error_code, status from rag.ingestion_queue") == [
        ("transient", "store", "23514", "queued")
    ]
    db.execute("alter table rag.document_versions drop constraint broken")
    db.execute("select rag.retry()")
    drain()
    assert value(db, "select status from rag.ingestion_log") == "completed"


def test_a_tenant_may_have_any_number_and_stops_nobody(db, drain):
    for tenant in (9223372036854775807, -9223372036854775808, 1):
        db.execute("select rag.add_document('a.txt', 'Some text.', tenant_id => %s)", [tenant])
    drain()
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 3


def test_a_document_that_changes_again_and_again_keeps_its_place_in_the_wait(db, add):
    add(1, "Waits since then.")
    db.execute("update rag.ingestion_queue set run_at = now() - interval '1 hour'")
    db.execute("""update "TblDocumentFiles" set "DocumentFilePath" = '2.txt'""")
    db.execute("select rag.reembed()")
    assert value(db, "select oldest_wait > interval '59 minutes' from rag.status")

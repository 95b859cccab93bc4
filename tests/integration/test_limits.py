"""Over a limit a document is rejected, with the limit's name and value, and not tried again."""

from __future__ import annotations

import psycopg
import pytest
from helpers import eventually, in_background, rows, value

OUTCOME = "select status, last_error, error_hint from rag.ingestion_log where document_id = 1"


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        ("max_file_bytes", "1000"),
        ("max_chunks", "2"),
        ("max_text_characters", "1000"),
        ("allowed_types", "application/pdf"),
    ],
)
def test_a_document_over_a_limit_is_rejected_and_raising_it_lets_it_in(
    db, add, drain, setting, limit
):
    db.execute("select rag.set(%s, %s)", [setting, limit])
    add(1, "A sentence that is written again and again until it is too long. " * 60)
    drain()
    status, error, hint = rows(db, OUTCOME)[0]
    assert status == "rejected"
    assert hint
    assert setting in error or setting in hint, (error, hint)
    assert f"{int(limit):,}" in error or limit in error if limit.isdigit() else limit in error
    assert rows(db, "select status, failure from rag.ingestion_queue") == [("dead", "rejected")]

    db.execute("select rag.set(%s, null)", [setting])
    db.execute("""select rag.enqueue_existing('"TblDocumentFiles"')""")
    drain()
    assert value(db, "select status from rag.ingestion_log") == "completed"


QUOTAS = [
    ("max_tenant_documents", "2"),
    ("max_tenant_bytes", "40"),
    ("max_tenant_chunks_per_day", "2"),
]


@pytest.fixture
def notes(db):
    db.execute("create table notes (id integer primary key, body text, tenant integer)")
    db.execute(
        "select rag.attach_source('notes', content_column => 'body', tenant_column => 'tenant')"
    )


@pytest.mark.parametrize(("quota", "limit"), QUOTAS)
def test_a_tenants_quota_stops_that_tenant_and_no_other(db, notes, drain, quota, limit):
    db.execute("select rag.set(%s, %s, tenant_id => 1)", [quota, limit])
    for number in range(6):
        db.execute("insert into notes values (%s, 'A note of this.', %s)", [number, number % 2])
        drain()
    assert rows(db, "select document_id, status from rag.ingestion_log order by 1") == [
        (0, "completed"),
        (1, "completed"),
        (2, "completed"),
        (3, "completed"),
        (4, "completed"),
        (5, "rejected"),
    ]
    assert quota in value(db, "select last_error from rag.ingestion_log where document_id = 5")
    db.execute("delete from notes where id = 1")
    if quota != "max_tenant_chunks_per_day":
        db.execute("select rag.enqueue_existing('notes')")
        drain()
        assert (
            value(db, "select status from rag.ingestion_log where document_id = 5") == "completed"
        )


SEARCHABLE = "select count(*) from rag.documents where chunks > 0 and tenant_id = %s"


@pytest.mark.parametrize(("quota", "limit"), QUOTAS)
def test_a_quota_holds_among_documents_of_one_statement(db, notes, drain, quota, limit):
    db.execute("select rag.set(%s, %s, tenant_id => 1)", [quota, limit])
    db.execute("insert into notes select n, 'A note of this.', n % 2 from generate_series(1, 24) n")
    drain()
    assert value(db, SEARCHABLE, 1) == 2
    assert value(db, SEARCHABLE, 0) == 12
    refused = "select distinct status, last_error ~ %s from rag.documents where chunks = 0"
    assert rows(db, refused, quota) == [("rejected", True)]
    assert rows(db, "select * from rag.check_consistency()") == []


def test_a_quota_holds_among_workers(db, connect, notes):
    db.execute("select rag.set('max_tenant_documents', '3'), rag.set('claim_documents', '2')")
    db.execute("insert into notes select n, 'A note of this.', n % 2 from generate_series(1, 40) n")
    workers = [in_background(connect(), "call rag.drain()") for _ in range(3)]
    for thread, errors in workers:
        thread.join()
        assert errors == []
    assert [value(db, SEARCHABLE, tenant) for tenant in (0, 1)] == [3, 3]


def test_documents_that_are_searched_in_an_older_state_count_too(db, notes, drain):
    db.execute("select rag.set('max_tenant_documents', '2')")
    db.execute("insert into notes values (1, 'A note.', 1), (2, 'A note.', 1)")
    drain()
    with db.transaction():
        db.execute("insert into notes values (3, 'A note.', 1), (4, 'A note.', 1)")
        db.execute("update notes set body = 'Changed.' where id < 3")
    drain()
    assert rows(db, "select document_id, status from rag.documents order by 1") == [
        (1, "completed"),
        (2, "completed"),
        (3, "rejected"),
        (4, "rejected"),
    ]


def test_a_tenant_that_stores_holds_up_no_other(db, connect, notes, drain):
    db.execute("select rag.set('max_tenant_documents', '9')")
    db.execute("insert into notes values (2, 'A note.', 2)")
    storing = connect()
    storing.execute("begin")
    storing.execute("select rag._lock_quota(1)")
    drain()
    assert value(db, SEARCHABLE, 2) == 1

    db.execute("insert into notes values (1, 'A note.', 1)")
    worker = connect()
    thread, errors = in_background(worker, "call rag.drain()")
    waits = "select count(*) from pg_locks where pid = %s and locktype = 'advisory' and not granted"
    eventually(lambda: value(db, waits, worker.info.backend_pid))
    assert value(db, SEARCHABLE, 1) == 0, "it waits for its own tenant"
    storing.execute("commit")
    thread.join()
    assert errors == []
    assert value(db, SEARCHABLE, 1) == 1


def test_a_tenants_limit_goes_before_that_of_all(db, notes, drain):
    db.execute(
        "select rag.set('max_text_characters', '1000'), rag.set('max_text_characters', '5000', tenant_id => 2)"
    )
    for tenant in (1, 2):
        db.execute(
            "insert into notes values (%s, repeat('Two thousand characters. ', 80), %s)",
            [tenant, tenant],
        )
    drain()
    assert rows(db, "select document_id, status from rag.ingestion_log order by 1") == [
        (1, "rejected"),
        (2, "completed"),
    ]
    assert rows(
        db,
        "select tenant_id, value from rag.settings where name = 'max_text_characters' order by 1 nulls first",
    ) == [
        (None, "1000"),
        (2, "5000"),
    ]


def test_a_setting_that_tenants_cannot_have_is_refused(db):
    with pytest.raises(psycopg.errors.InvalidParameterValue) as error:
        db.execute("select rag.set('document_root', '/tmp', tenant_id => 1)")
    assert error.value.diag.message_hint

"""Names and formats that users of the earlier worker rely on."""

from __future__ import annotations

import json

from helpers import rows, value


def test_the_ingestion_log_has_the_columns_of_before(db, add, drain):
    add(1, "Some text.")
    drain()
    log = db.execute("select * from rag.ingestion_log")
    before = [
        "document_id",
        "file_path",
        "file_size",
        "file_type",
        "embedding_model",
        "chunk_size",
        "chunk_overlap",
        "status",
        "total_chunks",
        "processed_chunks",
        "last_error",
        "retry_count",
        "started_at",
        "processed_at",
        "created_at",
        "updated_at",
    ]
    assert set(before) <= {column.name for column in log.description}
    row = dict(zip([column.name for column in log.description], log.fetchone(), strict=True))
    assert (row["status"], row["total_chunks"], row["processed_chunks"], row["file_type"]) == (
        "completed",
        1,
        1,
        "text/plain",
    )
    assert row["file_size"] == len("Some text.") and row["started_at"] <= row["processed_at"]


def test_the_chunk_table_has_the_columns_of_before(db):
    columns = {c.name for c in db.execute("select * from rag.document_chunks").description}
    assert {
        "document_id",
        "tenant_id",
        "chunk_index",
        "content",
        "char_count",
        "token_count",
        "content_tsv",
        "embedding",
        "page_number",
        "section",
        "tags",
        "created_at",
        "updated_at",
    } <= columns


def test_notifications_have_the_channel_and_payload_of_before(db, add, table, connect):
    listener = connect()
    listener.execute("listen document_changes")
    add(1, "Not announced: notifications are off by default.")
    db.execute("select rag.set('notifications', 'on')")
    add(2, "Announced.")
    db.execute(f'update {table} set "DocumentFilePath" = \'b.txt\' where "DocumentID" = 2')
    db.execute("select rag._expand_changes(0::smallint)")
    db.execute(f'delete from {table} where "DocumentID" = 2')
    payloads = [json.loads(n.payload) for n in listener.notifies(timeout=5, stop_after=3)]
    assert [(p["operation"], p["document_id"], p["file_path"]) for p in payloads] == [
        ("INSERT", 2, "2.txt"),
        ("UPDATE", 2, "b.txt"),
        ("DELETE", 2, "b.txt"),
    ]
    assert all(p["timestamp"] for p in payloads)


def test_a_path_too_long_for_a_notification_does_not_fail_the_insert(db, table):
    db.execute("select rag.set('notifications', 'on')")
    db.execute(f"insert into {table} values (1, repeat('x', 9000))")
    assert value(db, "select rag._expand_changes(0::smallint)") == 1


def test_cleanup_removes_orphans_and_counts_them(db, add, drain):
    add(1, "Some text.")
    drain()
    assert value(db, "select rag.cleanup_orphaned_chunks()") == 0
    db.execute("set session_replication_role = replica")
    db.execute("delete from rag.documents")
    assert value(db, "select rag.cleanup_orphaned_chunks()") == 1
    assert value(db, "select count(*) from rag.document_chunks") == 0


def test_a_job_can_be_looked_up_while_it_waits_and_after_it_is_done(db, add, drain):
    add(1, "Some text.")
    job = value(db, "select job_id from rag.ingestion_queue")
    assert rows(db, "select status, attempts from rag.job(%s)", job) == [("queued", 0)]
    drain()
    assert rows(db, "select status, attempts from rag.job(%s)", job) == [("done", 1)]
    assert rows(db, "select from rag.job(999999)") == []

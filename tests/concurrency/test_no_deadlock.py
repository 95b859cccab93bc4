"""Nothing that works in the background makes a statement of the application fail."""

from __future__ import annotations

import psycopg
import pytest
from helpers import eventually, in_background, long_text, rows

CALLS = {
    "statistics": ("update rag._pipeline_statistics set average_length = 1000", "select rag._refresh_statistics()"),
    "expired versions": ("select rag.set('retain_versions', '0'); update rag.document_versions set restorable = true where state = 'superseded'",
                         "select rag._prune_versions()"),
    "old versions": ("select rag.set('version_history_days', '0'); select rag.set('retain_versions', '0'); "
                     "update rag.document_versions set restorable = false", "select rag._prune_version_history()"),
    "orphans": ("", "select rag.cleanup_orphaned_chunks()"),
    "outdated": ("update rag.document_versions set fingerprint = null where state = 'ready'", "select rag._queue_outdated()"),
    "fill": ("insert into rag._pipeline_fill values (1) on conflict do nothing; update rag.document_versions set generation = -1 where state = 'ready'",
             "select rag._fill_pipelines()"),
    "changes": ("insert into rag._changes (source_id, keys, priority) select source_id, '{1,2,3,4,5,6,7,8,9}', -10 from rag.sources where name = 'notes'",
                "select rag._expand_changes((-32768)::smallint)"),
    "switch": ("select rag.create_pipeline('v2')", "select rag.activate_pipeline('v2', force => true)"),
    "drop": ("select rag.create_pipeline('v2')", "select rag.drop_pipeline('v2')"),
    "new pipeline": ("", "select rag.create_pipeline('v2')"),
    "another embedding": ("", "select rag.reembed()"),
    "retry": ("select rag.reembed(); update rag.ingestion_queue set status = 'dead'", "select rag.retry()"),
    "discard": ("select rag.reembed(); update rag.ingestion_queue set status = 'dead'", "select rag.discard()"),
    "index": ("select rag.defer_index()", "select rag.build_index()"),
    "night": ("update rag.document_versions set fingerprint = null where state = 'ready'; select rag.set('retain_versions', '0')",
              "call rag.maintain()"),
}  # fmt: skip
RESET = """
select rag.activate_pipeline('default', force => true);
select rag.drop_pipeline(name) from rag.pipelines where name <> 'default';
delete from rag._pipeline_fill; delete from rag._changes; delete from rag.ingestion_queue
"""
ROUNDS = [
    ("delete from notes where id = {}", 8, 1),
    ("update notes set body = body || '.' where id = {}", 6, 3),
    ("update notes set body = body || '.' where id = {}", 4, 5),
    ("delete from notes where id = {}", 2, 7),
]


@pytest.mark.parametrize("call", CALLS)
def test_an_application_that_changes_two_documents_in_one_transaction_goes_on(db, connect, call):
    preparation, statement = CALLS[call]
    db.execute("create table notes (id integer primary key, body text)")
    db.execute("select rag.attach_source('notes', content_column => 'body')")
    db.execute("insert into notes select i, 'Note ' || i from generate_series(1, 8) i")
    db.execute("insert into notes values (9, %s)", [long_text(60)])
    db.execute("call rag.drain()")
    db.execute("update notes set body = body || ' again'")
    db.execute("call rag.drain()")
    application, background = connect(), connect()
    # Whoever of two waits for the other longer than this is the victim: the application.
    application.execute("set deadlock_timeout = '100ms'")
    for change, first, second in ROUNDS:
        db.execute(RESET)
        db.execute(preparation)
        application.execute("begin")
        application.execute(change.format(first))
        thread, errors = in_background(background, statement)
        pid = background.info.backend_pid
        waits = f"select from pg_stat_activity where pid = {pid} and (state = 'idle' or wait_event_type in ('Lock', 'Timeout'))"
        eventually(lambda: not thread.is_alive() or rows(db, waits))  # noqa: B023
        application.execute(change.format(second))
        application.execute("commit")
        thread.join(60)
        assert not thread.is_alive() and errors == []
    with pytest.raises(psycopg.errors.DeadlockDetected):
        deadlock(application, background)


def deadlock(application, background):
    """That the application is the one to fail, where there is a deadlock."""
    application.execute("begin")
    application.execute("update notes set body = body || '.' where id = 3")
    background.execute("begin")
    background.execute("update notes set body = body || '.' where id = 4")
    in_background(background, "update notes set body = body || '.' where id = 3")
    application.execute("update notes set body = body || '.' where id = 4")


def test_one_that_searches_before_it_writes_goes_on_while_a_pipeline_is_dropped(db, connect):
    db.execute("create table notes (id integer primary key, body text)")
    db.execute("select rag.attach_source('notes', content_column => 'body')")
    db.execute("insert into notes select i, 'Note ' || i from generate_series(1, 8) i")
    db.execute("call rag.drain()")
    db.execute("select rag.create_pipeline('v2')")
    application, background = connect(), connect()
    application.execute("set deadlock_timeout = '100ms'")
    application.execute("begin")
    rows(application, "select from rag.search_documents('note', mode => 'text')")
    thread, errors = in_background(background, "select rag.drop_pipeline('v2')")
    waiting = f"select from pg_stat_activity where pid = {background.info.backend_pid} and wait_event_type in ('Lock', 'Timeout')"
    eventually(lambda: rows(db, waiting))
    application.execute("update notes set body = 'Other' where id = 1")
    application.execute("commit")
    thread.join(60)
    assert not thread.is_alive() and errors == []
    assert rows(db, "select name from rag.pipelines") == [("default",)]


def test_a_worker_in_the_middle_of_a_store_does_not_clash_with_a_switch(db, connect):
    """It has locked a document and is going to update it."""
    db.execute("create table notes (id integer primary key, body text)")
    db.execute("select rag.attach_source('notes', content_column => 'body')")
    db.execute("insert into notes values (1, 'Note')")
    db.execute("call rag.drain()")
    worker, switch = connect(), connect()
    for call in ("rag.activate_pipeline('v2', force => true)", "rag.drop_pipeline('default')"):
        if call.startswith("rag.activate"):
            db.execute("select rag.create_pipeline('v2')")
        worker.execute("set deadlock_timeout = '100ms'")
        worker.execute("begin")
        worker.execute("select from rag.documents for no key update")
        thread, errors = in_background(switch, f"select {call}")
        pid = switch.info.backend_pid
        waiting = f"select from pg_stat_activity where pid = {pid} and wait_event_type in ('Lock', 'Timeout')"
        eventually(lambda: rows(db, waiting))  # noqa: B023
        worker.execute("update rag.documents set updated_at = now()")
        worker.execute("commit")
        thread.join(60)
        assert errors == []

"""The nightly pass finds what no trigger can see, and keeps every table bounded."""

from __future__ import annotations

import psycopg
import pytest
from helpers import rows, value

LOG = "select task, count from rag.maintenance_log where count > 0"


def test_a_file_changed_on_disk_is_found_and_brought_in(db, add, document_root, drain):
    add(1, "The old text.")
    add(2, "A file that stays as it is.")
    drain()
    (document_root / "1.txt").write_text("The new text.")
    db.execute("call rag.maintain()")
    assert ("changed files queued", 1) in rows(db, LOG)
    drain()
    assert rows(db, "select content from rag.document_chunks where document_id = 1") == [
        ("The new text.",)
    ]


def test_a_file_that_is_gone_is_said_and_what_was_found_stays(db, add, document_root, drain):
    db.execute("select rag.set('max_attempts', '1')")
    add(1, "Text of a file.")
    drain()
    (document_root / "1.txt").unlink()
    for _ in range(2):
        db.execute("call rag.maintain()")
        drain()
    assert value(db, "select error_code from rag.dead_letters") == "not_found"
    assert value(db, "select count(*) from rag.search_documents('text')") == 1
    assert value(db, "select sum(count) from rag.maintenance_log where task ~ 'changed'") == 1


def test_documents_made_with_other_parameters_are_made_anew(db, add, drain):
    add(1, "Some text.")
    drain()
    db.execute("update rag.pipelines set embed_template = '{title}: {content}'")
    db.execute("call rag.maintain()")
    assert value(db, "select status from rag.ingestion_log") == "pending"
    drain()
    assert value(db, "select count(*) from rag.document_versions where state = 'superseded'") == 1
    db.execute("call rag.maintain()")
    assert value(db, "select count(*) from rag.ingestion_queue") == 0


def test_a_restored_version_is_not_undone(db, add, document_root, drain):
    add(1, "The old text.")
    drain()
    (document_root / "1.txt").write_text("The new text.")
    db.execute("call rag.maintain()")
    drain()
    db.execute("select rag.restore_version(min(version_id)) from rag.document_versions")
    db.execute("call rag.maintain()")
    drain()
    assert value(db, "select content from rag.document_chunks") == "The old text."


def test_history_does_not_grow_for_ever(db, add, drain):
    add(1, "Some text.")
    drain()
    db.execute("update rag.job_history set finished_at = now() - interval '40 days'")
    db.execute(
        """insert into rag.document_versions (source_id, document_id, pipeline_id, generation, state, started_at, finished_at, duration_ms)
           select 1, 1, 1, 0, 'failed', now(), now() - interval '100 days', 1 from generate_series(1, 5)"""
    )
    db.execute("select from rag.search_documents('text')")
    db.execute("update rag._query_cache set last_used_at = now() - interval '40 days'")
    db.execute(
        "insert into rag.maintenance_log values ('old', 1, now(), now() - interval '40 days')"
    )
    db.execute("call rag.maintain()")
    for table in ("job_history", "_query_cache", "_lexeme_changes"):
        assert value(db, f"select count(*) from rag.{table}") == 0, table
    assert value(db, "select count(*) from rag.document_versions") == 1
    assert value(db, "select count(*) from rag.maintenance_log where task = 'old'") == 0


def test_orphans_and_contradictions_are_reported(db, add, drain):
    add(1, "Some text.")
    drain()
    assert rows(db, "select * from rag.check_consistency()") == []
    db.execute("update rag.document_chunks set chunk_index = 7")
    assert (
        value(db, "select problem from rag.check_consistency()")
        == "chunks not those of the version"
    )
    db.execute("call rag.maintain()")
    assert ("contradictions found", 1) in rows(db, LOG)


def test_documents_of_several_languages_contradict_nothing(db, drain):
    db.execute("create table notes (id integer primary key, body text, lang text)")
    db.execute(
        "select rag.attach_source('notes', content_column => 'body', language_column => 'lang')"
    )
    db.execute(
        "insert into notes values (1, 'Some text.', 'en'), (2, 'Ein Text.', 'de'), (3, 'Whatever.', null)"
    )
    drain()
    configurations = "select count(distinct text_search_config) from rag.document_chunks"
    assert value(db, configurations) > 1
    assert rows(db, "select * from rag.check_consistency()") == []
    db.execute("call rag.maintain()")
    assert rows(db, "select * from rag.check_consistency()") == []
    db.execute("delete from rag.document_chunks where document_id = 2")
    problems = {problem for (problem,) in rows(db, "select problem from rag.check_consistency()")}
    assert "chunks not counted for text search" in problems


def test_a_task_that_fails_is_seen_by_check_until_it_works_again(db):
    maintenance = """select ok, detail, hint from rag.check() where "check" = 'maintenance'"""
    db.execute("alter function rag._prune_history() rename to _gone")
    db.execute("call rag.maintain()")
    ok, detail, hint = rows(db, maintenance)[0]
    assert ok is False
    assert "old jobs forgotten" in detail and "_prune_history" in detail
    assert "rag.maintain()" in hint
    db.execute("alter function rag._gone() rename to _prune_history")
    db.execute("call rag.maintain()")
    assert rows(db, maintenance)[0][0] is True


def test_a_table_that_cannot_be_read_hides_nothing_of_the_others(db, add, drain):
    add(1, "Some text.")
    drain()
    db.execute("create table notes (id integer primary key, body text)")
    db.execute("select rag.attach_source('notes', content_column => 'body')")
    db.execute("update rag.sources set key_column = 'gone' where name = 'notes'")
    db.execute("delete from rag.documents")
    found = rows(
        db, "select distinct problem, source from rag.check_consistency() where source is not null"
    )
    assert ("table that cannot be read", "notes") in found
    assert ("row of no document", "TblDocumentFiles") in found


def test_it_refuses_to_run_inside_a_transaction(db):
    with pytest.raises(psycopg.errors.ActiveSqlTransaction), db.transaction():
        db.execute("call rag.maintain()")

"""Right after documents have come, searches read no more than after an analyze."""

from __future__ import annotations

import pytest
from helpers import rows, value

DOCUMENTS = """
insert into rag.documents (source_id, document_id, source_key, status, chunks)
select s.source_id, i, i::text, 'completed', 1 from rag.sources s, generate_series(101, 5100) i where s.name = 'notes'
"""
VERSIONS = """
insert into rag.document_versions (source_id, document_id, pipeline_id, generation, state, chunks, started_at, duration_ms)
select d.source_id, d.document_id, %(pipeline)s, d.generation, 'ready', 1, now(), 1 from rag.documents d where d.document_id > 100
"""
CHUNKS = """
insert into rag.document_chunks
  (pipeline_id, source_id, document_id, chunk_index, content, char_count, token_count, content_hash, content_tsv, content_bm25, embedding)
select %(pipeline)s, d.source_id, d.document_id, 0, w, 1, 3, sha256('x'), to_tsvector('simple', w), rag._bm25_weights(to_tsvector('simple', w), 'simple', 30),
       (select array_agg(sin(d.document_id * j)) from generate_series(1, 384) j)::real[]::vector
  from rag.documents d
  cross join lateral (select string_agg('w' || d.document_id * n %% 97, ' ') as w from generate_series(1, 30) n) t
 where d.document_id > 100
"""
SEARCH = """
explain (analyze, buffers, format json)
select from rag.search_documents((select embedding from rag.document_chunks limit 1), 'w5 w7', mode => '{}')
"""


@pytest.fixture
def notes(db):
    """A table with one document; autovacuum keeps away from what ragstone has made of it."""
    db.execute("create table notes (id integer primary key, body text)")
    db.execute("select rag.attach_source('notes', content_column => 'body')")
    db.execute("insert into notes values (1, 'w5 w7')")
    db.execute("call rag.drain()")
    for table in ("document_chunks_1", "documents"):
        db.execute(f"alter table rag.{table} set (autovacuum_enabled = false)")
    return db


def blocks(db, mode):
    """How much a search reads, once what it needs is in the session's caches."""
    for _ in range(2):
        ((plan,),) = rows(db, SEARCH.format(mode))
    return plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]


@pytest.mark.parametrize("mode", ["semantic", "text", "hybrid"])
def test_after_a_load(notes, connect, mode):
    for statement in (DOCUMENTS, VERSIONS, CHUNKS):
        notes.execute(statement, {"pipeline": 1})
    notes.execute("call rag.drain()")
    after_the_load = blocks(connect(), mode)
    notes.execute("analyze rag.documents, rag.document_chunks_1")
    assert after_the_load <= 1.1 * blocks(connect(), mode)


def test_after_a_switch(notes, connect):
    notes.execute(DOCUMENTS)
    notes.execute("select rag.create_pipeline('v2')")
    notes.execute("alter table rag.document_chunks_2 set (autovacuum_enabled = false)")
    for statement in (VERSIONS, CHUNKS):
        notes.execute(statement, {"pipeline": 2})
    notes.execute("select rag.activate_pipeline('v2', force => true)")
    after_the_switch = blocks(connect(), "semantic")
    notes.execute("analyze rag.documents, rag.document_chunks_2")
    assert after_the_switch <= 1.1 * blocks(connect(), "semantic")


def test_a_table_that_has_not_grown_is_not_analyzed_again(notes):
    for statement in (DOCUMENTS, VERSIONS, CHUNKS):
        notes.execute(statement, {"pipeline": 1})
    notes.execute("call rag.drain()")
    notes.execute("select pg_stat_force_next_flush()")
    count = "select analyze_count from pg_stat_user_tables where relname = 'document_chunks_1'"
    before = value(notes, count)
    notes.execute("insert into notes values (2, 'One more.')")
    notes.execute("call rag.drain()")
    notes.execute("select pg_stat_force_next_flush()")
    notes.execute("select pg_stat_clear_snapshot()")
    assert (before, value(notes, count)) == (1, 1)


def test_after_a_restore_the_worker_analyzes_what_has_only_been_counted(notes):
    for statement in (DOCUMENTS, VERSIONS, CHUNKS):
        notes.execute(statement, {"pipeline": 1})
    notes.execute("create index on rag.document_chunks_1 (token_count)")  # sets relpages
    assert value(notes, "select rag._is_due_for_analyze('rag.document_chunks_1')")
    notes.execute("call rag.drain()")
    assert not value(notes, "select rag._is_due_for_analyze('rag.document_chunks_1')")

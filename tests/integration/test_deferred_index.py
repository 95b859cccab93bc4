"""A large load without the vector index, which is built when the load is over."""

from __future__ import annotations

import threading

import psycopg
import pytest
from helpers import rows, value

INDEX = "select to_regclass('rag.document_chunks_1_embedding_idx') is not null"
VALID = "select i.indisvalid from pg_index i where i.indexrelid = 'rag.document_chunks_1_embedding_idx'::regclass"


def test_the_index_is_dropped_for_the_load_and_built_by_the_worker_after_it(db, add, drain):
    db.execute("select rag.defer_index()")
    assert not value(db, INDEX)
    drain()
    assert not value(db, INDEX)  # there is nothing yet: the load has not begun
    for number in range(5):
        add(number, f"Passage number {number} is about lighthouses.")
    ((ok, detail),) = rows(db, """select ok, detail from rag.check() where "check" = 'indexes'""")
    assert ok is None and "deferred" in detail
    drain()
    assert value(db, INDEX) and value(db, VALID)
    assert not value(db, "select index_deferred from rag.pipelines")
    found = rows(db, "select document_id from rag.search_documents('lighthouse', match_count => 5)")
    assert len(found) == 5


def test_searches_are_exact_until_then(db, add, drain):
    add(1, "The lamp of the lighthouse burns oil.")
    drain()
    db.execute("select rag.defer_index()")
    assert rows(db, "select document_id from rag.search_documents('a lamp on the coast')") == [(1,)]


@pytest.mark.parametrize(
    "without", ["select rag.defer_index()", "call rag.rebuild_index(index_method => 'none')"]
)
def test_without_an_index_all_whole_vectors_are_compared(db, add, drain, without):
    """By bits alone neighbours would come in another order, or not at all."""
    for number in range(120):
        add(
            number, f"Passage {number} is about {'lamps ' * (number % 7)} and {'coasts ' * number}."
        )
    drain()
    db.execute(
        "update rag.pipelines set quantization = 'binary', index_options = '{\"oversampling\": 1}'"
    )
    db.execute(without)
    exact = rows(
        db,
        "select c.document_id from rag.document_chunks c order by c.embedding <=> rag.embed('a lamp') limit 10",
    )
    assert (
        rows(db, "select document_id from rag.search_documents('a lamp', mode => 'semantic')")
        == exact
    )
    db.execute("load 'auto_explain'")
    plans = []
    db.add_notice_handler(lambda n: plans.append(n.message_primary))
    db.execute("set auto_explain.log_min_duration = 0")
    db.execute("set auto_explain.log_nested_statements = on")
    db.execute("set client_min_messages = log")
    rows(db, "select from rag.search_documents('a lamp', mode => 'semantic')")
    assert "binary_quantize" not in "\n".join(plans)


def test_it_can_be_built_by_hand_and_is_then_as_it_was(db, add, drain):
    add(1, "The lamp of the lighthouse burns oil.")
    drain()
    definition = (
        "select indexdef from pg_indexes where indexname = 'document_chunks_1_embedding_idx'"
    )
    before = value(db, definition)
    db.execute("select rag.defer_index()")
    assert value(db, "select rag.build_index(parallel_workers => 2)").total_seconds() > 0
    assert value(db, definition) == before
    assert value(db, "select rag.build_index()") is not None  # twice does no harm


def test_a_deferred_index_of_a_second_pipeline_is_built_before_it_is_used(db, add, drain):
    add(1, "The lamp of the lighthouse burns oil.")
    drain()
    db.execute("select rag.create_pipeline('v2', chunk_size => 200)")
    db.execute("select rag.defer_index('v2')")
    drain()
    assert value(db, "select to_regclass('rag.document_chunks_2_embedding_idx') is not null")


def test_progress_is_shown_while_it_is_built(db, table):
    db.execute("select rag.defer_index()")
    db.execute(
        """
        insert into rag.document_chunks
          (pipeline_id, source_id, document_id, chunk_index, content, char_count, token_count, content_hash, content_tsv, content_bm25, embedding)
        select 1, 1, 1, i, 'x', 1, 3, sha256('x'), 'x'::tsvector, '{1:1}/1000000000', (select array_agg(sin(i * j)) from generate_series(1, 384) j)::real[]::vector
          from generate_series(1, 5000) i
        """
    )
    other = psycopg.connect(
        host=db.info.host,
        port=db.info.port,
        user="postgres",
        dbname=db.info.dbname,
        autocommit=True,
    )
    seen = []
    building = threading.Thread(target=lambda: other.execute("select rag.build_index()"))
    building.start()
    while building.is_alive():
        seen += rows(db, "select name, percent, time_left from rag.index_progress")
    building.join()
    other.close()
    assert {name for name, _, _ in seen} == {"default"}
    assert any(percent and left is not None for _, percent, left in seen)


def test_where_nothing_was_ever_attached_there_is_nothing_to_build_and_no_error(db, drain):
    db.execute("select rag.defer_index()")
    drain()
    assert value(db, "select rag.build_index()") is not None


@pytest.mark.parametrize(
    "call", ["rag.defer_index('none')", "rag.build_index('none')", "rag.build_index(null)"]
)
def test_an_unknown_pipeline_is_refused(db, call):
    with pytest.raises(psycopg.errors.UndefinedObject) as caught:
        db.execute(f"select {call}")
    assert caught.value.diag.message_hint

"""Users can measure how good their searches are."""

from __future__ import annotations

import math
import re

import psycopg
import pytest
from helpers import rows, value

TEXTS = {
    1: "Bees make honey from nectar.",
    2: "Honey is sweet.",
    3: "The bridge is closed.",
    4: "A violin has four strings.",
}


@pytest.fixture
def judged(db, drain):
    db.execute("create table facts (id integer primary key, body text)")
    db.execute("select rag.attach_source('facts', content_column => 'body')")
    db.cursor().executemany("insert into facts values (%s, %s)", list(TEXTS.items()))
    drain()
    db.execute("create table queries (query_id text, query_text text)")
    db.execute("create table judgements (query_id text, source_key text, relevance integer)")
    db.execute(
        "insert into queries values ('a', 'honey'), ('b', 'violin'), ('not judged', 'bridge')"
    )
    db.execute(
        "insert into judgements values ('a', '1', 2), ('a', '2', 1), ('a', '3', 0), ('b', '4', 1)"
    )
    return db


def test_the_measures_are_the_published_ones(judged):
    found = [
        k
        for (k,) in rows(
            judged, "select source_key from rag.find_documents('honey', 3, mode => 'text')"
        )
    ]
    assert set(found) == {"1", "2"}
    gains = {"1": 3.0, "2": 1.0}
    dcg = sum(gains[k] / math.log2(i + 2) for i, k in enumerate(found))
    ndcg = (dcg / (3 + 1 / math.log2(3)) + 1) / 2
    (row,) = rows(
        judged,
        "select pipeline, mode, queries_asked, ndcg, recall, mrr, precision from rag.evaluate('queries', 'judgements', k => 3, modes => '{text}')",
    )
    assert row == (
        "default",
        "text",
        2,
        pytest.approx(ndcg),
        1,
        1,
        pytest.approx((2 / 3 + 1 / 3) / 2),
    )


def test_modes_and_pipelines_stand_side_by_side(judged):
    judged.execute("insert into rag.pipelines (name, model) values ('second', 'all-MiniLM-L6-v2')")
    compared = rows(
        judged,
        "select pipeline, mode, ndcg from rag.evaluate('queries', 'judgements', pipelines => '{default,second}')",
    )
    assert [c[:2] for c in compared] == [
        (p, m) for p in ("default", "second") for m in ("hybrid", "semantic", "text")
    ]
    assert all((ndcg > 0.5) == (pipeline == "default") for pipeline, _, ndcg in compared)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("rag.evaluate('queries', 'queries')", psycopg.errors.UndefinedColumn),
        ("rag.evaluate('queries', 'judgements', k => 0)", psycopg.errors.InvalidParameterValue),
        (
            "rag.evaluate('queries', 'judgements', modes => '{best}')",
            psycopg.errors.InvalidParameterValue,
        ),
        (
            "rag.evaluate('queries', 'judgements', pipelines => '{none}')",
            psycopg.errors.UndefinedObject,
        ),
        ("rag.ann_recall(sample => 0)", psycopg.errors.InvalidParameterValue),
        ("rag.ann_recall(pipeline => 'none')", psycopg.errors.UndefinedObject),
    ],
)
def test_what_cannot_be_evaluated_is_refused(judged, call, error):
    with pytest.raises(error) as caught:
        judged.execute(f"select from {call}")
    assert caught.value.diag.message_hint


@pytest.fixture
def many_chunks(judged):
    judged.execute(
        """insert into rag.document_chunks (pipeline_id, source_id, document_id, chunk_index, content, char_count, token_count,
                                            content_tsv, content_bm25, embedding, content_hash)
           select 1, 1, 1000 + n, 0, 'filler', 6, 3, '', rag._bm25_weights('', 'simple', 40),
                  (select array_agg(random() - 0.5)::vector from generate_series(1, 384) where n = n), ''
           from generate_series(1, 3000) n"""
    )
    judged.execute("analyze rag.document_chunks")
    return judged


def rebuilt(db, arguments):
    """rag.rebuild_index(), with the statement that it asks for where pg_cron does not run."""
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as refused:
        db.execute(f"call rag.rebuild_index({arguments})")
    (statement,) = re.findall("Type: (.*); and then", refused.value.diag.message_hint)
    assert statement.startswith("create index concurrently if not exists ")
    db.execute(statement)
    db.execute(f"call rag.rebuild_index({arguments})")


INDEXES = "select array_agg(indexdef) from pg_indexes where tablename = 'document_chunks_1' and indexname ~ 'embedding'"


def test_another_index_takes_the_place_of_the_one_in_use(many_chunks):
    db = many_chunks
    exact = rows(db, "select document_id from rag.search_documents('bees', mode => 'semantic')")
    for arguments, words in (
        ("index_options => '{\"m\": 8}'", ("USING hnsw", "halfvec(384)", "m='8'")),
        ("quantization => 'binary'", ("USING hnsw", "binary_quantize", "bit_hamming_ops")),
        (
            "index_method => 'ivfflat', index_options => '{\"lists\": 20, \"probes\": 20}'",
            ("USING ivfflat", "bit_hamming_ops"),
        ),
        ("quantization => 'none'", ("USING ivfflat", "vector_cosine_ops")),
    ):
        rebuilt(db, arguments)
        (index,) = value(db, INDEXES)
        assert all(word in index for word in words), index
        assert value(db, "select recall from rag.ann_recall(sample => 10)") > 0.7
        assert (
            rows(db, "select document_id from rag.search_documents('bees', mode => 'semantic')")
            == exact
        )
    db.execute("call rag.rebuild_index(index_method => 'none')")
    assert value(db, INDEXES) is None
    assert value(db, "select recall from rag.ann_recall(sample => 5)") == 1


def test_bits_find_the_neighbourhood_and_whole_vectors_rank_it(many_chunks):
    many_chunks.execute("select rag.create_pipeline('bits', quantization => 'binary')")
    many_chunks.execute("call rag.drain()")
    index = value(many_chunks, INDEXES.replace("chunks_1", "chunks_2"))
    assert "bit_hamming_ops" in index[0]
    ask = "select array_agg(r.similarity_score) from rag.search_documents('bees', mode => 'semantic', pipeline => %s) r"
    assert value(many_chunks, ask, "bits") == sorted(value(many_chunks, ask, "bits"), reverse=True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("pipeline => 'none'", psycopg.errors.UndefinedObject),
        ("index_method => 'btree'", psycopg.errors.InvalidParameterValue),
        ("quantization => 'ternary'", psycopg.errors.InvalidParameterValue),
        (
            'index_options => \'{"m": "8); drop table rag.documents"}\'',
            psycopg.errors.InvalidParameterValue,
        ),
        ("index_options => '[]'", psycopg.errors.InvalidParameterValue),
        (
            "index_method => 'ivfflat', index_options => '{\"m\": 8}'",
            psycopg.errors.InvalidParameterValue,
        ),
    ],
)
def test_indexes_that_cannot_be_are_refused(judged, arguments, error):
    with pytest.raises(error) as caught:
        judged.execute(f"call rag.rebuild_index({arguments})")
    assert caught.value.diag.message_hint


def test_the_index_is_compared_with_exact_search(many_chunks):
    judged = many_chunks
    queries, recall, worst = rows(
        judged, "select queries, recall, worst from rag.ann_recall(sample => 20)"
    )[0]
    assert queries == 20 and 0.5 < recall <= 1 and worst <= recall
    assert value(judged, "select recall from rag.ann_recall(sample => 5, k => 1000)") > 0.5

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


ALL = "select mode, ndcg, recall, mrr from rag.evaluate('queries', 'judgements', modes => '{text}')"


def test_what_is_judged_twice_counts_once(judged):
    once = rows(judged, ALL)
    judged.execute("insert into judgements select * from judgements")
    judged.execute("insert into judgements values ('a', '1', 1), ('a', '1', null)")
    assert rows(judged, ALL) == once


def test_keys_that_two_sources_share_are_judged_in_the_one_that_is_named(judged):
    once = rows(judged, ALL)
    judged.execute("create table others (id integer primary key, body text)")
    judged.execute("select rag.attach_source('others', content_column => 'body')")
    judged.execute("insert into others select id, body from facts")
    judged.execute("call rag.drain()")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match='query "a"') as caught:
        judged.execute(ALL)
    assert "source => 'facts'" in caught.value.diag.message_hint
    assert "facts, others" in caught.value.diag.message_detail
    named = rows(judged, ALL.replace("'{text}'", "'{text}', source => 'facts'"))
    assert named == once and all(0 <= measure <= 1 for measure in named[0][1:])


@pytest.mark.parametrize(
    ("change", "error", "message", "hint"),
    [
        ("insert into judgements values ('a', null, 1)", psycopg.errors.NullValueNotAllowed, 'query "a"', "source_key is null"),
        ("update queries set query_text = null where query_id = 'b'", psycopg.errors.NullValueNotAllowed, 'query "b"', "query_text is null"),
        ("update judgements set query_id = 'q-' || query_id", psycopg.errors.InvalidParameterValue, "no query of", "select query_id from public.judgements"),
        ("update judgements set relevance = 0", psycopg.errors.InvalidParameterValue, "no query of", "query_id"),
    ],
)  # fmt: skip
def test_judgements_that_cannot_be_used_are_named(judged, change, error, message, hint):
    judged.execute(change)
    with pytest.raises(error, match=message) as caught:
        judged.execute(ALL)
    assert hint in caught.value.diag.message_hint


def test_no_mode_pays_for_the_embedding_that_all_have_use_of(judged):
    judged.execute("select from rag.evaluate('queries', 'judgements')")
    assert rows(judged, "select misses from rag.query_cache") == [(2,)]
    judged.execute("delete from rag._query_cache")
    judged.execute("update rag.models set location = '/nowhere'")
    notices = []
    judged.add_notice_handler(lambda n: notices.append(n.message_primary))
    assert len(rows(judged, ALL)) == 1
    assert notices == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("rag.evaluate(null, null)", psycopg.errors.NullValueNotAllowed),
        ("rag.evaluate('queries', null)", psycopg.errors.NullValueNotAllowed),
        (
            "rag.evaluate('queries', 'judgements', modes => null)",
            psycopg.errors.InvalidParameterValue,
        ),
        (
            "rag.evaluate('queries', 'judgements', modes => '{}')",
            psycopg.errors.InvalidParameterValue,
        ),
        (
            "rag.evaluate('queries', 'judgements', modes => '{null}')",
            psycopg.errors.InvalidParameterValue,
        ),
        (
            "rag.evaluate('queries', 'judgements', pipelines => '{}')",
            psycopg.errors.InvalidParameterValue,
        ),
        ("rag.evaluate('queries', 'judgements', source => 'none')", psycopg.errors.UndefinedObject),
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


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("hnsw", '{"ef_search": 1.5}', "ef_search is a whole number from 1 to 1000, not 1.5"),
        ("hnsw", '{"ef_search": "boom"}', 'ef_search is a whole number from 1 to 1000, not "boom"'),
        ("hnsw", '{"ef_search": 1001}', "ef_search is a whole number from 1 to 1000, not 1001"),
        ("hnsw", '{"m": 1}', "m is a whole number from 2 to 100, not 1"),
        ("hnsw", '{"m": 1000}', "m is a whole number from 2 to 100, not 1000"),
        ("hnsw", '{"m": 16.5}', "m is a whole number from 2 to 100, not 16.5"),
        ("hnsw", '{"m": null}', "m is a whole number from 2 to 100, not null"),
        ("hnsw", '{"ef_construction": 31}', "ef_construction is at least twice m, so 32 or more, not 31"),
        ("hnsw", '{"m": 33}', "ef_construction is at least twice m, so 66 or more, not 64, which it is where it is left out"),
        ("hnsw", '{"oversampling": -3}', "oversampling is a whole number from 1 to 1000, not -3"),
        ("hnsw", '{"oversampling": 1.5}', "oversampling is a whole number from 1 to 1000, not 1.5"),
        ("hnsw", '{"lists": 10}', "lists is no index option of hnsw"),
        ("ivfflat", '{"probes": 0}', "probes is a whole number from 1 to 32768, not 0"),
        ("ivfflat", '{"lists": 99999999999}', "lists is a whole number from 1 to 32768, not 99999999999"),
        ("none", '{"m": 16}', "m is no index option of none"),
    ],
)  # fmt: skip
def test_index_options_with_which_no_search_would_work_are_refused_at_once(
    judged, method, options, said
):
    """By every way that they can come in, with the bare message and nothing stored."""
    before = rows(judged, "select p::text from rag.pipelines p")
    for call in (
        "call rag.rebuild_index(index_method => %s, index_options => %s)",
        "select rag.create_pipeline('v2', index_method => %s, index_options => %s)",
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
            judged.execute(call, [method, options])
        assert caught.value.diag.message_primary == said
        assert "index_options =>" in caught.value.diag.message_hint
    assert rows(judged, "select p::text from rag.pipelines p") == before


def test_what_only_searches_read_is_changed_without_another_index(many_chunks):
    index = "select 'rag.document_chunks_1_embedding_idx'::regclass::oid"
    before = value(many_chunks, index)
    for options in ('{"ef_search": 400}', '{"ef_search": 200, "m": 16}', "{}"):
        many_chunks.execute("call rag.rebuild_index(index_options => %s)", [options])
        assert value(many_chunks, "select index_options = %s from rag.pipelines", options)
        assert value(many_chunks, index) == before
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
        many_chunks.execute("""call rag.rebuild_index(index_options => '{"m": 20}')""")
    assert caught.value.diag.message_primary.startswith("pg_cron does not run in this database")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        many_chunks.execute("call rag.rebuild_index()")


def test_an_index_is_not_rebuilt_inside_a_transaction(judged):
    judged.execute("begin")
    with pytest.raises(psycopg.errors.ActiveSqlTransaction) as caught:
        judged.execute("call rag.rebuild_index()")
    assert "outside" in caught.value.diag.message_hint


def test_the_index_is_compared_with_exact_search(many_chunks):
    judged = many_chunks
    queries, recall, worst = rows(
        judged, "select queries, recall, worst from rag.ann_recall(sample => 20)"
    )[0]
    assert queries == 20 and 0.5 < recall <= 1 and worst <= recall
    assert value(judged, "select recall from rag.ann_recall(sample => 5, k => 1000)") > 0.5

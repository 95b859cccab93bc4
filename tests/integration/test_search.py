"""What applications call."""

from __future__ import annotations

import psycopg
import pytest
from helpers import rows, value

FACTS = [
    "The library opens at nine in the morning.",
    "Bees make honey from the nectar of flowers.",
    "Invoice INV-2024-0815 was paid in March.",
    "The bridge was closed because of high winds.",
    "A violin has four strings and is played with a bow.",
]


@pytest.fixture
def facts(db, drain):
    db.execute("create table facts (id integer primary key, body text, tenant integer)")
    db.execute(
        "select rag.attach_source('facts', content_column => 'body', tenant_column => 'tenant')"
    )
    db.cursor().executemany(
        "insert into facts values (%s, %s, %s)", [(n, fact, n % 2) for n, fact in enumerate(FACTS)]
    )
    drain()
    return db


def found(db, arguments, *parameters):
    return [
        row[0]
        for row in rows(
            db, f"select document_id from rag.search_documents({arguments})", *parameters
        )
    ]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("when can I borrow books", 0),
        ("insects and sweet food", 1),
        ("INV-2024-0815", 2),
        ("storm damage to traffic", 3),
        ("string instrument", 4),
    ],
)
def test_meaning_and_words_both_find_the_answer(facts, question, answer):
    assert found(facts, "%s", question)[0] == answer


def test_the_columns_of_the_earlier_function_come_first(facts):
    columns = facts.execute("select * from rag.search_documents('honey')").description
    assert [column.name for column in columns][:8] == [
        "chunk_id",
        "document_id",
        "content",
        "similarity_score",
        "text_rank",
        "hybrid_score",
        "page_number",
        "chunk_index",
    ]


def test_callers_that_embed_the_question_themselves_get_the_same_answers(facts):
    assert found(facts, "'honey bees'") == found(facts, "rag.embed('honey bees'), 'honey bees'")
    assert found(facts, "rag.embed('honey bees'), 'honey bees', 10, array[1, 2], 1") == [1]


def test_rows_come_best_first_and_scores_are_in_their_ranges(facts):
    hits = rows(
        facts,
        "select similarity_score, text_rank, hybrid_score from rag.search_documents('four strings')",
    )
    assert [h[2] for h in hits] == sorted((h[2] for h in hits), reverse=True)
    assert all(
        -1 <= similarity <= 1 and rank >= 0 and hybrid <= 1 + 1e-9
        for similarity, rank, hybrid in hits
    )


def test_every_candidate_is_scored_exactly_in_both_legs(facts):
    for similarity, text_rank, exact_similarity, exact_rank in rows(
        facts,
        """with q as (select rag.embed('paid in March') as e,
                             (select ('{' || string_agg(rag._lexeme_index(l.lexeme, l.text_search_config) || ':' || l.idf, ',' order by rag._lexeme_index(l.lexeme, l.text_search_config)) || '}/268435456')::sparsevec
                              from rag._active_pipeline() p, unnest(rag._query_lexemes(rag._parsed_question('paid in March', p), p)) l) as w)
           select s.similarity_score, s.text_rank, 1 - (c.embedding <=> q.e), -(c.content_bm25 <#> q.w)
           from q, rag.search_documents('paid in March') s join rag.document_chunks c using (chunk_id)""",
    ):
        assert similarity == pytest.approx(exact_similarity, abs=1e-6)
        assert text_rank == pytest.approx(exact_rank, abs=1e-5)


def test_bm25_is_the_published_formula(facts):
    """Against the formula in Python, over the stored lexemes."""
    import math

    chunks = {
        chunk: lexemes
        for chunk, lexemes in rows(
            facts,
            """select c.chunk_id, jsonb_object_agg(u.lexeme, cardinality(u.positions))
               from rag.document_chunks c, unnest(c.content_tsv) u group by 1""",
        )
    }
    average = value(facts, "select average_length from rag._pipeline_statistics")
    query = ["paid", "march"]
    for chunk, rank in rows(
        facts, "select chunk_id, text_rank from rag.search_documents('paid in March')"
    ):
        length = sum(chunks[chunk].values())
        expected = 0.0
        for lexeme in query:
            n = sum(lexeme in c for c in chunks.values())
            tf = chunks[chunk].get(lexeme, 0)
            idf = math.log(1 + (len(chunks) - n + 0.5) / (n + 0.5))
            expected += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / average))
        assert rank == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_weights_of_one_and_zero_rank_by_one_leg_alone(facts):
    semantic = rows(
        facts,
        "select similarity_score, hybrid_score from rag.search_documents('honey', semantic_weight => 1)",
    )
    assert semantic == sorted(semantic, reverse=True)
    text = rows(
        facts,
        "select text_rank, hybrid_score from rag.search_documents('honey', semantic_weight => 0)",
    )
    assert text[0][1] == 1 and text[0][0] > 0


def test_filters_keep_to_documents_and_tenants(facts):
    assert set(found(facts, "'the', document_filter => array[1, 3]")) == {1, 3}
    assert set(found(facts, "'the', tenant_filter => 1")) == {1, 3}
    assert found(facts, "'the', document_filter => array[1, 2], tenant_filter => 1") == [1]
    assert found(facts, "'the', document_filter => '{}'") == []
    assert found(facts, "'the', tenant_filter => 99") == []


def test_match_count_is_the_number_of_rows_where_there_are_that_many(facts):
    assert len(found(facts, "'the', match_count => 2")) == 2
    assert len(found(facts, "'the', 100")) == len(FACTS)


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_question_finds_nothing(facts, text):
    assert found(facts, "%s", text) == []


@pytest.mark.parametrize(
    "text",
    [
        "'",
        "\\",
        "a & b | !c:*",
        "<->",
        "%s %d",
        "'); drop table facts; --",
        "the of and",
        "?!.,;",
        "💡 honey 💡",
        "نحل עסל",
        "x" * 5000,
        '"',
    ],
)
def test_any_text_can_be_asked(facts, text):
    assert len(found(facts, "%s", text)) == len(FACTS)


def test_a_megabyte_of_question_is_answered_with_a_notice(facts):
    notices = []
    facts.add_notice_handler(lambda n: notices.append(n.message_primary))
    assert found(facts, "%s", "honey bees " * 100_000)[0] == 1
    assert any("256 tokens" in notice for notice in notices)


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ("null::text", psycopg.errors.NullValueNotAllowed, "your question"),
        ("'honey', match_count => 0", psycopg.errors.InvalidParameterValue, "match_count => 20"),
        ("'honey', match_count => -1", psycopg.errors.InvalidParameterValue, "match_count => 20"),
        ("'honey', match_count => null", psycopg.errors.InvalidParameterValue, "match_count => 20"),
        ("'honey', semantic_weight => 1.5", psycopg.errors.InvalidParameterValue, "chosen for each question"),
        ("'[1,2,3]'::vector, 'honey'", psycopg.errors.InvalidParameterValue, "rag.embed"),
        ("null::vector, 'honey'", psycopg.errors.NullValueNotAllowed, "embedded by the server"),
        (
            "array_fill(0, '{384}')::vector, 'honey'",
            psycopg.errors.InvalidParameterValue,
            "l2_normalize",
        ),
        (
            "array_fill(1e30, '{384}')::vector, 'honey'",
            psycopg.errors.InvalidParameterValue,
            "l2_normalize",
        ),
        (
            "array_fill(1e-9, '{384}')::vector, 'honey'",
            psycopg.errors.InvalidParameterValue,
            "l2_normalize",
        ),
        ("rag.embed('honey'), null", psycopg.errors.NullValueNotAllowed, "your question"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_with_a_hint(facts, arguments, error, hint):
    with pytest.raises(error) as caught:
        found(facts, arguments)
    assert hint in caught.value.diag.message_hint


@pytest.mark.parametrize("question", ["", "honey"])
@pytest.mark.parametrize("best", [-0.5, -0.001, 0.0001, 0.5])
def test_the_nearest_come_first_where_hardly_anything_is_near(facts, question, best):
    """No score is below nought, and what has the same score is in the order of similarity."""
    for number in range(5):
        facts.execute(
            """update rag.document_chunks set embedding = array_cat(array[%s, sqrt(1 - %s ^ 2)], array_fill(0, '{382}'))::vector
               where document_id = %s""",
            [best - 0.09 * number, best - 0.09 * number, (number * 2) % 5],
        )
    axis = "array_cat(array[1], array_fill(0, '{383}'))::vector"
    hits = rows(
        facts,
        f"select document_id, similarity_score, hybrid_score from rag.search_documents({axis}, %s, mode => 'semantic')",
        question,
    )
    assert [h[0] for h in hits] == [0, 2, 4, 1, 3]
    assert [h[1] for h in hits] == pytest.approx([best - 0.09 * n for n in range(5)], abs=1e-6)
    assert all(0 <= h[2] <= 1 + 1e-9 for h in hits)


def test_a_stored_vector_of_noughts_spoils_no_score(facts):
    facts.execute(
        "update rag.document_chunks set embedding = array_fill(0, '{384}')::vector where document_id = 3"
    )
    hits = rows(
        facts, "select document_id, hybrid_score from rag.search_documents('honey from nectar')"
    )
    assert hits[0][0] == 1 and all(0 <= score <= 1 + 1e-9 for _, score in hits)


def test_a_question_of_megabytes_is_cut_before_anything_looks_at_it(facts):
    facts.execute("set statement_timeout = '5s'")
    assert found(facts, "%s", 'honey "bees" -wasps ' * 250_000)[0] == 1


def test_search_before_anything_is_attached_finds_nothing(db):
    assert found(db, "'anything'") == []


def test_names_work_unqualified_with_rag_on_the_search_path(facts):
    facts.execute("set search_path = rag, public")
    assert rows(facts, "select document_id from search_documents('honey', match_count => 1)") == [
        (1,)
    ]


def test_search_works_in_a_read_only_transaction(facts):
    facts.execute("begin read only")
    assert found(facts, "'honey'")[0] == 1
    facts.execute("rollback")


def test_a_question_asked_before_needs_no_model(facts, connect):
    found(facts, "'where does honey come from'")
    other = connect()
    other.execute("update rag.models set location = '/nowhere'")
    assert found(other, "'where does honey come from'")[0] == 1


def test_without_the_model_search_falls_back_to_text_and_says_so(facts, connect):
    other = connect()
    notices = []
    other.add_notice_handler(lambda n: notices.append(n.message_primary))
    other.execute("update rag.models set location = '/nowhere'")
    assert found(other, "'honey from nectar'")[0] == 1
    assert any("text alone" in notice for notice in notices)


def test_embedding_is_a_unit_vector_of_the_models_dimension(db):
    dimension, length = rows(
        db, "select vector_dims(e), vector_norm(e) from rag.embed('some text') e"
    )[0]
    assert dimension == 384 and length == pytest.approx(1, abs=1e-5)
    assert value(db, "select rag.embed(null)") is None
    with pytest.raises(psycopg.errors.UndefinedObject) as error:
        db.execute("select rag.embed('x', model => 'gpt')")
    assert "rag.models" in error.value.diag.message_hint


def test_the_vector_index_and_the_text_index_are_used_at_size(facts):
    """The plans of the two legs where the planner has reason to use an index."""
    facts.execute(
        """insert into rag.document_chunks (pipeline_id, source_id, document_id, chunk_index, content, char_count, token_count,
                                            content_tsv, content_bm25, embedding, content_hash)
           select 1, 1, 1000 + n, 0, 'filler', 6, 3, to_tsvector('simple', 'filler' || n),
                  rag._bm25_weights(to_tsvector('simple', 'filler' || n), 'simple', 40),
                  (select array_agg(random() - 0.5)::vector from generate_series(1, 384) where n = n), ''
           from generate_series(1, 4000) n"""
    )
    facts.execute("analyze rag.document_chunks")
    facts.execute("load 'auto_explain'")
    plans = []
    facts.add_notice_handler(lambda n: plans.append(n.message_primary))
    facts.execute("set auto_explain.log_min_duration = 0")
    facts.execute("set auto_explain.log_nested_statements = on")
    facts.execute("set client_min_messages = log")
    found(facts, "'honey from nectar'")
    plan = "\n".join(plans)
    assert "Index Scan using document_chunks_1_embedding_idx" in plan, plan
    assert "Bitmap Index Scan on document_chunks_1_content_tsv_idx" in plan, plan

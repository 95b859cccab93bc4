"""Every argument of a search does what it says, for every form of search."""

from __future__ import annotations

import json

import psycopg
import pytest
from helpers import rows, value

DOCUMENTS = [
    # id, title, tenant, tags, language, department, text
    (1, "Bees", 1, ["animals", "food"], "en", "garden", "Bees make honey from the nectar of flowers."),
    (2, "Wasps", 1, ["animals"], "en-GB", "garden", "Wasps make paper nests and eat other insects."),
    (3, "Madu", 2, ["food"], "id", "dapur", "Lebah membuat madu dari nektar bunga di kebun."),
    (4, "Mật ong", 2, None, "vi", "bếp", "Ong làm mật từ mật hoa. Cà phê sữa đá rất ngon."),
    (5, "Invoice", None, ["food", "money"], None, "office", "Invoice INV-2024-0815 for honey, ordered by jane.doe@example.com, part AB12/34-X."),
    (6, "Invoice", None, ["money"], None, "office", "Invoice INV-2024-0816 for wax, ordered by john.roe@example.com, part AB12/35-X."),
]  # fmt: skip


@pytest.fixture
def library(db, drain):
    db.execute(
        "create table library (id integer primary key, title text, tenant integer, tags text[], language text, department text, body text)"
    )
    db.execute(
        """select rag.attach_source('library', content_column => 'body', title_column => 'title', tenant_column => 'tenant',
                  tags_column => 'tags', language_column => 'language', metadata_columns => '{department}')"""
    )
    db.cursor().executemany("insert into library values (%s, %s, %s, %s, %s, %s, %s)", DOCUMENTS)
    drain()
    return db


@pytest.fixture
def book(db, drain):
    """A document of many chunks on one subject beside short ones on the same."""
    db.execute("create table books (id integer primary key, body text)")
    db.execute("select rag.attach_source('books', content_column => 'body')")
    long = "\n\n".join(
        f"Chapter {n} on honey bees. " + "The honey bee keeps honey. " * 12 for n in range(200)
    )
    db.execute("insert into books values (1, %s)", [long])
    db.execute(
        "insert into books select n, 'A short note on honey, number ' || n from generate_series(2, 5) n"
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
    ("arguments", "answer"),
    [
        ("tags_filter => array['food']", {1, 3, 5}),
        ("tags_filter => array['food', 'money']", {1, 3, 5, 6}),
        ("tags_filter => array['food', 'money'], tags_match => 'all'", {5}),
        ("tags_filter => '{}'", set()),
        ("""metadata_filter => '{"department": "garden"}'""", {1, 2}),
        ("""metadata_filter => '{"department": "none"}'""", set()),
        ("metadata_filter => '{}'", {1, 2, 3, 4, 5, 6}),
        ("source => 'library'", {1, 2, 3, 4, 5, 6}),
        ("language => 'en'", {1, 2}),
        ("language => 'EN_us'", {1, 2}),
        ("language => 'vi'", {4}),
        ("language => 'fr'", set()),
        ("changed_after => now() - interval '1 hour'", {1, 2, 3, 4, 5, 6}),
        ("changed_before => now() - interval '1 hour'", set()),
        ("tenant_filter => 1, tags_filter => array['food']", {1}),
        ("document_filter => array[1, 3, 5], language => 'id'", {3}),
        ("check_source => true", {1, 2, 3, 4, 5, 6}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["'honey'", "rag.embed('honey'), 'honey'"])
def test_filters_let_through_what_they_name_and_nothing_else(library, form, arguments, answer):
    assert set(found(library, f"{form}, {arguments}")) == answer


def test_documents_of_the_same_filter_are_found_by_document(library):
    documents = rows(
        library,
        "select document_id, title, cardinality(passages), (passages[1]).content from rag.find_documents('honey', tags_filter => array['food'])",
    )
    assert {d[0] for d in documents} == {1, 3, 5}
    assert documents[0][0] in (1, 5) and all(d[2] == 1 for d in documents)


def test_modes_use_the_legs_they_name(library):
    text = rows(
        library,
        "select document_id, similarity_score, text_rank from rag.search_documents('honey', mode => 'text')",
    )
    assert {t[0] for t in text} == {1, 5} and all(t[1] is None and t[2] > 0 for t in text)
    semantic = rows(
        library,
        "select document_id, similarity_score, hybrid_score from rag.search_documents('honey', mode => 'semantic')",
    )
    assert len(semantic) == 6 and [s[1] for s in semantic] == sorted(
        (s[1] for s in semantic), reverse=True
    )


@pytest.mark.parametrize("arguments", ["mode => 'text'", "semantic_weight => 0"])
def test_words_alone_rank_where_that_is_asked_for_and_an_embedding_is_given(library, arguments):
    hits = "select document_id, similarity_score from rag.search_documents(rag.embed('Wasps make paper nests'), 'honey', "
    assert set(rows(library, f"{hits}{arguments})")) == {(1, None), (5, None)}


def test_text_mode_needs_no_model(library):
    library.execute("update rag.models set location = '/nowhere'")
    notices = []
    library.add_notice_handler(lambda n: notices.append(n.message_primary))
    assert found(library, "'nectar', mode => 'text'") == [1]
    assert notices == []


def test_reciprocal_rank_fusion_is_the_published_formula(library):
    for score, semantic, text in rows(
        library,
        "select hybrid_score, semantic_place, text_place from rag.search_documents('honey invoice', fusion => 'rrf')",
    ):
        assert score == pytest.approx(30.5 / (60 + semantic) + (30.5 / (60 + text) if text else 0))


def test_a_least_score_means_the_same_by_reciprocal_ranks(library):
    hits = "'honey', fusion => 'rrf', mode => %s, min_score => 0.99"
    assert found(library, hits, "semantic") == found(library, "'honey', 1, mode => 'semantic'")
    assert set(found(library, hits.replace("0.99", "0.9"), "hybrid")) <= {1, 5}
    assert found(library, "'nectar of flowers', fusion => 'rrf', min_score => 0.99") == [1]


def test_a_least_score_cuts_off(library):
    scores = [
        s
        for (s,) in rows(
            library, "select hybrid_score from rag.search_documents('honey', min_score => 0.5)"
        )
    ]
    assert scores and min(scores) >= 0.5
    assert found(library, "'honey', min_score => 2") == []


def test_a_least_score_ends_the_search_for_more_documents(book):
    """All that a long document leaves out is looked for only as long as it could score enough."""
    book.execute("load 'auto_explain'")
    plans = []
    book.add_notice_handler(lambda n: plans.append(n.message_primary))
    book.execute("set auto_explain.log_min_duration = 0")
    book.execute("set auto_explain.log_nested_statements = on")
    book.execute("set client_min_messages = log")
    rounds = {}
    for least in (0.0, 0.95):
        plans.clear()
        book.execute("select from rag.find_documents('honey bee', min_score => %s)", [least])
        rounds[least] = sum("candidate as materialized" in p for p in plans)
    assert rounds[0.95] == 1 < rounds[0.0]


def test_a_least_score_hides_no_document_behind_a_long_one(book):
    everything = "select document_id from rag.find_documents('honey bee') where score >= 0.3"
    least = "select document_id from rag.find_documents('honey bee', min_score => 0.3)"
    assert sorted(rows(book, least)) == sorted(rows(book, everything)) != []


def test_places_are_ranks_in_each_leg(library):
    hits = rows(
        library,
        "select similarity_score, semantic_place, text_rank, text_place from rag.search_documents('honey')",
    )
    assert [h[1] for h in sorted(hits, reverse=True)] == sorted(h[1] for h in hits)
    assert all((h[3] is None) == (h[2] == 0) for h in hits)


def test_a_long_document_does_not_fill_the_page_where_that_is_not_wanted(book):
    assert set(found(book, "'honey bee', match_count => 10")) == {1}
    limited = found(book, "'honey bee', match_count => 5, max_per_document => 1")
    assert sorted(limited) == [1, 2, 3, 4, 5]
    documents = rows(
        book,
        "select document_id, cardinality(passages) from rag.find_documents('honey bee', max_per_document => 2)",
    )
    assert sorted(documents) == [(1, 2), (2, 1), (3, 1), (4, 1), (5, 1)]


def test_a_passage_among_others_on_the_subject_stands_before_the_same_passage_alone(db, drain):
    """By both legs together; each leg by itself ranks by the passage alone."""
    db.execute("create table books (id integer primary key, body text)")
    db.execute("select rag.attach_source('books', content_column => 'body')")
    same = "The keeper opens the hive in May and looks for the queen. " * 8
    other = "Trains to the coast leave every hour from platform nine. " * 8
    bees = "A hive of bees has one queen, who lays all of the eggs. " * 8
    for number, neighbour in ((1, other), (2, bees)):
        body = "\n\n".join([neighbour, same, neighbour])
        db.execute("insert into books values (%s, %s)", [number, body])
    drain()
    scores = """select array_agg(round(r.similarity_score::numeric, 3) order by document_id),
                       array_agg(r.hybrid_score order by r.document_id)
                  from rag.search_documents('where is the queen of the hive?', mode => %s) r where r.chunk_index = 1"""
    (alone,) = rows(db, scores, "hybrid")
    assert alone[0][0] == alone[0][1] and alone[1][0] < alone[1][1] <= 1
    (semantic,) = rows(db, scores, "semantic")
    assert semantic[1][0] == pytest.approx(semantic[1][1], abs=0.01)


def test_context_is_the_passage_with_its_neighbours_and_no_repetition(book):
    for index, content, context in rows(
        book,
        "select chunk_index, content, context from rag.search_documents('honey bee', document_filter => array[1], context_chunks => 1)",
    ):
        neighbours = rows(
            book,
            "select content from rag.document_chunks where document_id = 1 and chunk_index between %s and %s order by chunk_index",
            index - 1,
            index + 1,
        )
        assert content in context and all(n in context for (n,) in neighbours)
        assert len(context) <= sum(len(n) for (n,) in neighbours) + 2
    assert rows(book, "select distinct context from rag.search_documents('honey bee')") == [(None,)]


@pytest.fixture
def neighbours(db, drain):
    """Stores passages of one document as they are given: what is looked at is how they are joined."""
    db.execute("create table papers (id integer primary key, body text)")
    db.execute("select rag.attach_source('papers', content_column => 'body')")
    db.execute("insert into papers values (1, 'honey')")
    drain()

    def neighbours(*passages, sections=None):
        db.execute("delete from rag.document_chunks")
        for index, content in enumerate(passages):
            db.execute(
                """insert into rag.document_chunks (pipeline_id, source_id, document_id, chunk_index, content, char_count, token_count,
                                                    content_tsv, content_bm25, embedding, content_hash, section)
                   select 1, 1, 1, %s, %s, 1, 3, '', rag._bm25_weights('', 'simple', 40), rag.embed('honey'), '', %s""",
                [index, content, sections[index] if sections else None],
            )
        return value(
            db,
            "select context from rag.search_documents('honey', match_count => 1, context_chunks => 100)",
        )

    return neighbours


@pytest.mark.parametrize(
    ("before", "after", "joined"),
    [
        ("See valve", "electric motor", "See valve\nelectric motor"),
        ("The total was 12", "2 Results", "The total was 12\n2 Results"),
        ("as shown in Results", "Results of the test", "as shown in Results\nResults of the test"),
        ("This page is blank", "This page is blank", "This page is blank\nThis page is blank"),
        ("open the main valve", "the main valve and wait", "open the main valve and wait"),
        ("開啟主閥然後等待壓力降到零點五巴之後再慢慢打開", "閥然後等待壓力降到零點五巴之後再慢慢打開第二個閥", "開啟主閥然後等待壓力降到零點五巴之後再慢慢打開第二個閥"),
        ("x" * 60 + " the end", "x" * 20 + " the end of it", "x" * 60 + " the end of it"),
    ],
)  # fmt: skip
def test_context_leaves_out_only_what_is_surely_repeated(neighbours, before, after, joined):
    assert neighbours(before, after) == joined


def test_context_loses_nothing_where_another_section_begins_or_nothing_overlaps(db, neighbours):
    passages = ("They eat honey and wax", "honey and wax are sold here")
    assert neighbours(*passages, sections=["A", "B"]) == "\n".join(passages)
    assert neighbours(*passages) == "They eat honey and wax are sold here"
    db.execute("update rag.pipelines set chunk_strategy = 'fixed'")
    assert neighbours(*passages, sections=["A", "B"]) == "They eat honey and wax are sold here"
    db.execute("update rag.pipelines set chunk_overlap = 0")
    assert neighbours(*passages) == "\n".join(passages)


def test_context_of_many_long_passages_takes_no_more_time_than_reading_them(neighbours, db):
    passages = ["honey and wax " * 300 + str(n) for n in range(201)]
    db.execute("set statement_timeout = '3s'")
    assert neighbours(*passages).count("\n") == 100


def test_a_question_is_parsed_once_however_many_hits_are_shown(book):
    book.execute("set track_functions = 'all'")
    with book.transaction():
        passages = rows(book, "select snippet from rag.search_documents('honey \"bees\"', highlight => true)")  # fmt: skip
        called = "select funcname, calls from pg_stat_xact_user_functions where schemaname = 'rag'"
        calls = dict(rows(book, called))
    assert len(passages) > 1
    assert calls["_parse_query"] == 1
    # The words and the phrase in the question, then each passage that is shown.
    assert calls["_analyze"] == 2 + len(passages)


def test_a_snippet_marks_the_words_and_escapes_the_rest(db, drain):
    db.execute("create table pages (id integer primary key, body text)")
    db.execute("select rag.attach_source('pages', content_column => 'body')")
    db.execute(
        "insert into pages values (1, 'Honey <script>alert(1)</script> & more honeys, order INV-2024-7.')"
    )
    drain()
    snippet = value(
        db, "select snippet from rag.search_documents('honey INV-2024-7', highlight => true)"
    )
    assert (
        "<mark>Honey</mark>" in snippet
        and "<mark>honeys</mark>" in snippet
        and "<script" not in snippet
        and "<mark>INV-2024-7</mark>" in snippet
    )
    assert value(db, "select snippet from rag.search_documents('honey')") is None


# --- how people type ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ('"make honey"', {1}),
        ('"honey make"', set()),
        ('"make honey" or "paper nests"', {1, 2}),
        ('"paper nests" OR madu', {2, 3}),
        ("make -honey", {2, 3, 4, 6}),
        ('make -"paper nests"', {1, 3, 4, 5, 6}),
        ('"make" -wasps', {1}),
        ('"', {1, 2, 3, 4, 5, 6}),
        ('"" honey', {1, 2, 3, 4, 5, 6}),
        ('"the of"', {1, 2, 5, 6}),
        ("-honey", {1, 2, 3, 4, 5, 6}),
        ("honey - nectar", {1, 2, 3, 4, 5, 6}),
        ("honey -5", {1, 2, 3, 4, 5, 6}),
        ('"cà phê"', {4}),
        ('"ca phe"', {4}),
        ('"ong lam mat"', {4}),
        ('"cà phe"', set()),
        ('"INV-2024-0815"', {5}),
        ("invoice -INV-2024-0815", {1, 2, 3, 4, 6}),
    ],
)  # fmt: skip
def test_phrases_exclusions_and_alternatives(library, question, answer):
    assert set(found(library, "%s", question)) == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("INV-2024-0815", 5), ("inv-2024-0816", 6), ("INV 2024 0816", 6), ("0815", 5), ("2024-0816", 6),
        ("AB12/34-X", 5), ("ab12/35-x", 6), ("AB12-35", 6), ("jane.doe@example.com", 5), ("JOHN.ROE@EXAMPLE.COM", 6),
    ],
)  # fmt: skip
def test_exact_codes_numbers_and_addresses_are_found(library, question, answer):
    assert found(library, "%s, mode => 'text'", question)[0] == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("CVE-2024-12345", 1), ("what is cve-2024-12345?", 1), ("v2.3.1", 2), ("10.0.0.1", 3),
        ("what is CVE-2024-99999?", 4), ("the flaw of 2024", 4), ("2024 2024年の脆弱性は何ですか", 4),
        ("which kernels and archives does CVE-2024-12345 concern", 4),
    ],
)  # fmt: skip
def test_an_exact_code_is_first_whatever_vectors_say(db, drain, question, answer):
    """Passages that have it lie far from the question, one without a common word lies on it."""
    db.execute("create table notes (id integer primary key, body text)")
    db.execute("select rag.attach_source('notes', content_column => 'body')")
    codes = ("CVE-2024-12345 lets one write files.", "v2.3.1 reads archives.", "10.0.0.1 answers.")
    for number, body in enumerate((*codes, "Nothing in common."), start=1):
        db.execute("insert into notes values (%s, %s)", [number, body])
    db.execute("insert into notes select n, 'Cooking for ' || n from generate_series(20, 90) n")
    drain()
    db.execute("update rag.document_chunks set embedding = rag.embed('soup') where document_id < 4")
    db.execute(
        "update rag.document_chunks set embedding = rag.embed(%s) where document_id = 4", [question]
    )
    assert found(db, "%s", question)[0] == answer
    assert found(db, "%s, semantic_weight => 0.8", question)[0] == 4


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("kebun bunga", 3),
        ("membuat", 3),
        ("buat", 3),
        ("cà phê sữa", 4),
        ("ca phe sua da", 4),
        ("wasp", 2),
        ("insect", 2),
    ],
)
def test_each_language_is_analysed_as_what_it_is(library, question, answer):
    assert found(library, "%s, mode => 'text'", question)[0] == answer
    assert rows(library, "select distinct document_id, text_search_config from rag.document_chunks order by 1") == [
        (1, "english"), (2, "english"), (3, "indonesian"), (4, "simple"), (5, "english"), (6, "english"),
    ]  # fmt: skip


def test_accents_may_be_left_out_and_count_when_given(db, drain):
    db.execute("create table menu (id integer primary key, body text)")
    db.execute("select rag.attach_source('menu', content_column => 'body')")
    db.execute(
        "insert into menu values (1, 'The café opens early.'), (2, 'The cafe opens early.'), (3, 'Nothing.')"
    )
    drain()
    assert found(db, "'cafe', mode => 'text'") in ([1, 2], [2, 1])
    assert found(db, "'café', mode => 'text'") == [1]
    assert found(db, "%s, mode => 'text'", "cafe\u0301") == [1]


def test_a_changed_language_changes_the_analysis(library, drain):
    library.execute("update library set language = 'id' where id = 1")
    drain()
    assert (
        value(library, "select text_search_config from rag.document_chunks where document_id = 1")
        == "indonesian"
    )
    assert set(found(library, "'honey', language => 'id'")) == {1, 3}


def test_a_stop_word_of_one_language_is_not_a_rare_word_of_another(library):
    """'the' stands in no lexeme list of English; in one of Vietnamese it would weigh most."""
    library.execute(
        "insert into library values (7, null, null, null, 'vi', null, 'Từ tiếng Anh: what is the')"
    )
    library.execute(
        "insert into library (id, body) select n, 'A plain English sentence, number ' || n from generate_series(100, 160) n"
    )
    library.execute("call rag.drain()")
    assert found(library, "'what is the nectar', mode => 'text'")[0] == 1


# --- a filter's promise ------------------------------------------------------------------------


def test_another_pipeline_can_be_searched_by_name(library):
    assert found(library, "'honey', pipeline => 'default'") == found(library, "'honey'")
    library.execute("insert into rag.pipelines (name, model) values ('empty', 'all-MiniLM-L6-v2')")
    assert found(library, "'honey', pipeline => 'empty'") == []


def test_the_callers_row_security_on_the_source_is_honoured_where_asked_for(library, connect):
    reader = "ragstone_row_reader"
    library.execute(
        f"do $$ begin create role {reader}; exception when duplicate_object or unique_violation then null; end $$"
    )
    library.execute(f"grant usage on schema rag to {reader}")
    library.execute(f"grant select on all tables in schema rag to {reader}")
    library.execute(f"grant execute on all functions in schema rag to {reader}")
    library.execute("alter table library enable row level security")
    library.execute(f"create policy gardeners on library to {reader} using (department = 'garden')")
    session = connect()
    session.execute(f"set role {reader}")
    assert found(session, "'honey', check_source => true") == []
    library.execute(f"grant select on library to {reader}")
    assert set(found(session, "'honey', check_source => true")) == {1, 2}
    assert len(found(session, "'honey'")) == 6
    library.execute("create schema closed")
    library.execute("create table closed.notes (id integer primary key, body text)")
    library.execute("select rag.attach_source('closed.notes', content_column => 'body')")
    library.execute(f"grant select on closed.notes to {reader}")
    assert set(found(session, "'honey', check_source => true")) == {1, 2}
    library.execute(f"drop owned by {reader}")


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ("mode => 'fuzzy'", psycopg.errors.InvalidParameterValue, "'semantic'"),
        ("mode => null", psycopg.errors.InvalidParameterValue, "'semantic'"),
        ("fusion => 'sum'", psycopg.errors.InvalidParameterValue, "'rrf'"),
        ("semantic_weight => 'NaN'", psycopg.errors.InvalidParameterValue, "chosen for each question"),
        ("semantic_weight => -0.1", psycopg.errors.InvalidParameterValue, "chosen for each question"),
        ("min_score => 'NaN'", psycopg.errors.InvalidParameterValue, "min_score => 0.5"),
        ("max_per_document => 0", psycopg.errors.InvalidParameterValue, "Leave it out"),
        ("tags_match => 'most'", psycopg.errors.InvalidParameterValue, "'all'"),
        ("metadata_filter => '[1]'", psycopg.errors.InvalidParameterValue, "department"),
        ("metadata_filter => '1'", psycopg.errors.InvalidParameterValue, "department"),
        ("metadata_filter => '{'", psycopg.errors.InvalidTextRepresentation, None),
        ("language => 'e; drop table'", psycopg.errors.InvalidParameterValue, "'en-US'"),
        ("language => ''", psycopg.errors.InvalidParameterValue, "'en-US'"),
        ("changed_after => 'tomorrow', changed_before => 'today'", psycopg.errors.InvalidParameterValue, "included"),
        ("context_chunks => -1", psycopg.errors.InvalidParameterValue, "context"),
        ("context_chunks => 101", psycopg.errors.InvalidParameterValue, "context"),
        ("source => 'nowhere'", psycopg.errors.UndefinedObject, "rag.sources"),
        ("pipeline => 'nowhere'", psycopg.errors.UndefinedObject, "rag.pipelines"),
        ("document_filter => array_fill(1::bigint, '{100001}')", psycopg.errors.ProgramLimitExceeded, "tenant_filter"),
        ("tags_filter => array_fill('x'::text, '{1001}')", psycopg.errors.ProgramLimitExceeded, "one more tag"),
        ("tags_filter => array[repeat('x', 1100000)]", psycopg.errors.ProgramLimitExceeded, "one more tag"),
        ("metadata_filter => jsonb_build_object('x', repeat('x', 1100000))", psycopg.errors.ProgramLimitExceeded, "department"),
        ("rerank => 'nowhere'", psycopg.errors.UndefinedObject, "kind = 'reranker'"),
        ("rerank => 'all-MiniLM-L6-v2'", psycopg.errors.UndefinedObject, "kind = 'reranker'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "form",
    [
        "search_documents('honey'",
        "search_documents(rag.embed('honey'), 'honey'",
        "find_documents('honey'",
    ],
)
def test_arguments_that_make_no_sense_are_refused_with_a_hint(
    library, form, arguments, error, hint
):
    with pytest.raises(error) as caught:
        library.execute(f"select from rag.{form}, {arguments})")
    if hint:
        assert hint in caught.value.diag.message_hint


def test_the_largest_filters_are_answered(library):
    largest = "document_filter => array(select n from generate_series(1, 100000) n)"
    assert len(found(library, f"'honey', {largest}")) == 6
    assert (
        found(
            library,
            "'honey', tags_filter => array(select 'x' || n from generate_series(1, 1000) n)",
        )
        == []
    )


@pytest.mark.parametrize("setting", ["off", "on"])
def test_the_sessions_rules_for_literals_change_no_answer(library, setting):
    library.execute(f"set standard_conforming_strings = {setting}")
    notices = []
    library.add_notice_handler(lambda n: notices.append(n.message_primary))
    assert len(found(library, "'honey'")) == 6
    assert found(library, """'INV-2024-0816 O''Neil -honey', mode => 'text'""") == [6]
    assert found(library, """'"make honey"', language => 'en'""") == [1]
    assert rows(library, "select document_id from rag.find_documents('nectar')")[0] == (1,)
    assert (
        value(
            library,
            "select count(*) from rag.search_documents('honey', highlight => true) where snippet ~ 'mark'",
        )
        == 6 - 4
    )
    assert notices == []
    assert value(library, "show standard_conforming_strings") == setting


def test_all_forms_take_the_same_options(db):
    lists = rows(
        db,
        """select regexp_replace(pg_get_function_arguments(p.oid), '^.*query_text text, ', '')
           from pg_proc p where p.pronamespace = 'rag'::regnamespace and p.proname in ('search_documents', 'find_documents')""",
    )
    assert len(lists) == 3 and len(set(lists)) == 1
    options = value(
        db,
        "select array_agg(attname::text order by attnum) from pg_attribute where attrelid = 'rag._search_options'::regclass",
    )
    assert [option.split()[0] for option in lists[0][0].split(", ")] == options


def test_metadata_comes_back_as_it_is(library):
    assert json.loads(
        json.dumps(
            value(library, "select metadata from rag.search_documents('nectar', mode => 'text')")
        )
    ) == {"department": "garden"}

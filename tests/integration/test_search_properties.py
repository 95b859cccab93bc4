"""Whatever is asked, a search answers or says why not."""

from __future__ import annotations

import psycopg
import pytest
from helpers import rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CLASSES = ("22004", "22023", "42704")
"""What a search may raise: null, a value out of range, a name that is none."""

texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=200) | st.lists(
    st.sampled_from(['"', "-", " or ", "honey", "-honey", '"make honey"', "&", "|", "!", ":*", "(", ")", "\\", "'", "é", "蜜", "عسل", "🐝", "INV-1/2", "%s", "{}", ";--"]),
    max_size=30,
).map(" ".join)  # fmt: skip
options = st.fixed_dictionaries(
    {},
    optional={
        "match_count": st.integers(-1, 200),
        "document_filter": st.none() | st.lists(st.integers(0, 9), max_size=5),
        "tenant_filter": st.none() | st.integers(0, 3),
        "semantic_weight": st.none() | st.floats(width=32),
        "mode": st.sampled_from(["hybrid", "semantic", "text", "", "';"]) | st.none(),
        "fusion": st.sampled_from(["weighted", "rrf", "x"]),
        "min_score": st.none() | st.floats(),
        "max_per_document": st.none() | st.integers(-1, 5),
        "source": st.none() | st.sampled_from(["facts", "Facts", "'"]),
        "tags_filter": st.none() | st.lists(texts | st.none(), max_size=3),
        "tags_match": st.sampled_from(["any", "all", "none"]),
        "language": st.none() | st.sampled_from(["en", "ID", "x", "pt_BR"]) | texts,
        "check_source": st.none() | st.booleans(),
        "context_chunks": st.integers(-1, 3),
        "highlight": st.none() | st.booleans(),
    },
)
CASTS = {"document_filter": "::bigint[]", "tags_filter": "::text[]", "semantic_weight": "::float", "min_score": "::float", "source": "::text", "mode": "::text", "fusion": "::text", "tags_match": "::text", "language": "::text", "tenant_filter": "::bigint", "check_source": "::boolean", "highlight": "::boolean"}  # fmt: skip


@pytest.fixture
def facts(db, drain):
    db.execute("create table facts (id integer primary key, body text)")
    db.execute("select rag.attach_source('facts', content_column => 'body')")
    db.execute(
        "insert into facts values (1, 'Bees make honey.'), (2, 'Wasps make paper.'), (3, 'INV-1/2 for <b>honey</b> & wax')"
    )
    drain()
    return db


def ask(db, form, text, chosen):
    named = "".join(f", {name} => %s{CASTS.get(name, '::integer')}" for name in chosen)
    return rows(db, f"select * from rag.{form}(%s::text{named})", text, *chosen.values())


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=texts, chosen=options)
def test_any_arguments_are_answered_or_refused_with_a_reason(facts, text, chosen):
    try:
        found = ask(facts, "search_documents", text, chosen)
    except psycopg.Error as error:
        assert error.sqlstate in CLASSES, error
        assert error.diag.message_hint
    else:
        assert len(found) <= chosen.get("match_count", 10)
        assert [f[5] for f in found] == sorted((f[5] for f in found), reverse=True)
        assert {f[1] for f in found} <= set(chosen.get("document_filter") or [1, 2, 3])
    assert rows(facts, "select count(*) from facts") == [(3,)]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=texts)
def test_a_snippet_never_brings_markup_of_the_document(facts, text):
    for row in ask(facts, "search_documents", text, {"highlight": True}):
        assert "<" not in row[-1].replace("<mark>", "").replace("</mark>", "")


@pytest.mark.parametrize("text", ["honey\x00", "\x00"])
def test_a_nul_does_not_reach_the_server(facts, text):
    with pytest.raises(psycopg.Error):
        ask(facts, "search_documents", text, {})


@pytest.mark.parametrize("mode", ["hybrid", "text", "semantic"])
def test_a_megabyte_of_different_words_is_answered(facts, mode):
    words = "honey " + " ".join(f"word{n}" for n in range(120_000))
    found = ask(facts, "search_documents", words, {"mode": mode})
    assert found[0][1] in (1, 3) or mode != "text"

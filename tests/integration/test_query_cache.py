"""Questions asked before cost no model, and the cache of them stays within its bounds."""

from __future__ import annotations

import psycopg
import pytest
from helpers import rows, value


@pytest.fixture
def fact(db, drain):
    db.execute("create table facts (id integer primary key, body text)")
    db.execute("select rag.attach_source('facts', content_column => 'body')")
    db.execute("insert into facts values (1, 'Bees make honey.')")
    drain()
    return db


def ask(db, question):
    db.execute("select from rag.search_documents(%s)", [question])


def test_hits_and_misses_are_counted(fact):
    for question in ("honey", "honey", "wax", "honey"):
        ask(fact, question)
    assert rows(fact, "select entries, hits, misses, hit_rate from rag.query_cache") == [
        (2, 2, 2, pytest.approx(0.5))
    ]


def test_a_cached_question_loads_no_python(fact, connect):
    ask(fact, "honey")
    other = connect()
    ask(other, "honey")
    with open(f"/proc/{other.info.backend_pid}/maps") as maps:
        assert "onnxruntime" not in (mapped := maps.read()) and "libpython" not in mapped


def test_the_least_recently_used_is_evicted_at_the_bound(fact):
    fact.execute("select rag.set('query_cache_entries', '3')")
    for question in ("one", "two", "three"):
        ask(fact, question)
    fact.execute("update rag._query_cache set last_used_at = last_used_at - interval '1 hour'")
    ask(fact, "one")
    ask(fact, "four")
    ask(fact, "five")
    assert value(fact, "select entries from rag.query_cache") == 3
    misses = value(fact, "select misses from rag.query_cache")
    ask(fact, "one")
    assert value(fact, "select misses from rag.query_cache") == misses


def test_what_is_too_old_is_not_served_and_leaves(fact):
    fact.execute("select rag.set('query_cache_entries', '10')")
    ask(fact, "one")
    fact.execute("update rag._query_cache set last_used_at = now() - interval '31 days'")
    ask(fact, "two")
    assert value(fact, "select entries from rag.query_cache") == 1
    ask(fact, "one")
    assert value(fact, "select hits from rag.query_cache") == 0


def test_another_model_of_the_same_name_does_not_meet_the_vectors_of_the_old(fact):
    ask(fact, "honey")
    fact.execute("update rag.models set sha256 = sha256('another')")
    ask(fact, "honey")
    assert rows(fact, "select hits, misses from rag.query_cache") == [(0, 2)]


def test_no_question_is_kept_as_text(fact):
    ask(fact, "a secret question")
    assert "secret" not in str(
        rows(fact, "select c::text, encode(c.key, 'escape') from rag._query_cache c")
    )


def test_no_search_waits_for_the_transaction_of_another(fact, connect):
    first, second = connect(), connect()
    second.execute("set statement_timeout = '10s'")
    ask(fact, "asked before")
    fact.execute("update rag._query_cache set last_used_at = now() - interval '1 hour'")
    first.execute("begin")
    ask(first, "honey")
    ask(first, "asked before")
    ask(second, "honey")
    ask(second, "asked before")
    first.execute("commit")
    assert value(fact, "select entries from rag.query_cache") == 2


@pytest.mark.parametrize(
    "begin",
    [
        "begin read only",
        "begin isolation level repeatable read",
        "begin isolation level serializable",
    ],
)
def test_stricter_transactions_search_and_leave_the_cache_alone(fact, connect, begin):
    session = connect()
    session.execute(begin)
    assert len(rows(session, "select from rag.search_documents('honey')")) == 1
    ask(fact, "honey")
    assert len(rows(session, "select from rag.search_documents('honey')")) == 1
    session.execute("commit")
    assert value(fact, "select entries from rag.query_cache") == 1


def test_a_cache_of_nothing_is_off(fact):
    fact.execute("select rag.set('query_cache_entries', '0')")
    ask(fact, "honey")
    assert value(fact, "select entries from rag.query_cache") == 0


def test_a_searching_role_cannot_write_the_cache(fact, connect):
    role = "ragstone_cache_writer"
    fact.execute(
        f"do $$ begin create role {role}; exception when duplicate_object or unique_violation then null; end $$"
    )
    fact.execute(f"grant usage on schema rag to {role}")
    session = connect()
    session.execute(f"set role {role}")
    for statement in (
        "insert into rag._query_cache values ('', '[1]')",
        "select from rag._query_cache",
        "select rag._remember_query('', '[1]')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(statement)
    fact.execute(f"drop owned by {role}")

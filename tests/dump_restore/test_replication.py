"""Attached tables whose rows come by logical replication."""

from __future__ import annotations

import time

import pytest
from helpers import rows, value

# A statement only notes the keys of its rows; a worker expands the notes.
NOTED = "select k::bigint from rag._changes c, unnest(c.keys) k order by 1"
EXPAND = "select rag._expand_changes(0::smallint)"


def queued(db) -> list[tuple]:
    """Documents that wait, once the notes are expanded."""
    db.execute(EXPAND)
    return rows(db, "select document_id from rag.ingestion_queue order by 1")


@pytest.fixture
def replicated(own_cluster):
    """Sessions in two databases: rows inserted in the first come to an attached table in the second."""
    cluster = own_cluster(wal_level="logical", wal_receiver_status_interval="1s")
    with cluster.connect("postgres") as admin:
        admin.execute("create database shop")
    table = "create table facts (id integer primary key, body text, note text, tenant integer)"
    with cluster.connect("shop") as shop, cluster.connect(cluster.database) as search:
        shop.execute(table)
        shop.execute(
            "insert into facts select n, 'Early fact ' || n, 'x', 1 from generate_series(1, 20) n"
        )
        shop.execute("create publication facts for table facts")
        shop.execute("select pg_create_logical_replication_slot('facts', 'pgoutput')")

        search.execute("create extension ragstone cascade")
        search.execute(table)
        search.execute(
            "select rag.attach_source('facts', content_column => 'body', tenant_column => 'tenant')"
        )
        search.execute(
            f"create subscription facts connection 'host={cluster.host} port={cluster.port} user=postgres dbname=shop' "
            "publication facts with (create_slot = false, slot_name = 'facts')"
        )
        wait(search, "select count(*) from facts", 20)
        wait(search, "select count(*) from pg_subscription_rel where srsubstate = 'r'", 1)
        yield shop, search
        search.execute("drop subscription facts")


def wait(db, sql, expected):
    for _ in range(300):
        if value(db, sql) == expected:
            return
        time.sleep(0.1)
    raise AssertionError(f"{rows(db, sql)} instead of {expected}: {sql}")


def test_replicated_rows_are_followed_each_once(replicated):
    shop, search = replicated
    assert rows(search, NOTED) == [(n,) for n in range(1, 21)]
    assert queued(search) == [(n,) for n in range(1, 21)]
    generations = rows(search, "select generation from rag.documents")
    assert len(set(generations)) == 20
    assert value(search, "select max(generation) - min(generation) from rag.documents") == 19, (
        "each row once"
    )
    search.execute("call rag.drain()")
    assert queued(search) == []

    shop.execute("insert into facts values (21, 'A late fact', null, 1)")
    wait(search, "select count(*) from facts", 21)
    assert queued(search) == [(21,)]
    shop.execute("update facts set note = 'y'")  # watched by nobody
    shop.execute("update facts set body = 'Changed fact', tenant = 2 where id = 1")
    wait(search, "select count(*) from facts where body like 'Changed%' and note = 'y'", 1)
    assert queued(search) == [(1,), (21,)]
    assert value(search, "select tenant_id from rag.document_chunks where document_id = 1") == 2
    search.execute("call rag.drain()")
    assert (
        value(search, "select content from rag.search_documents('changed', match_count => 1)")
        == "Changed fact"
    )

    shop.execute("delete from facts where id = 2")
    shop.execute("update facts set id = 102 where id = 3")
    wait(search, "select count(*) from facts where id in (2, 3)", 0)
    assert rows(search, "select from rag.document_chunks where document_id in (2, 3)") == []
    assert queued(search) == [(102,)]
    search.execute("call rag.drain()")

    # Local sessions fire the triggers of statements alone.
    search.execute("insert into facts values (30, 'A local fact')")
    assert queued(search) == [(30,)]
    shop.execute("truncate facts")
    wait(search, "select count(*) from rag.documents", 0)
    assert queued(search) == []
    problems = "select * from rag.check() where not ok and \"check\" not in ('pgvector', 'workers')"
    assert rows(search, problems) == []


def test_partitions_are_followed_too(db, drain):
    db.execute("create table p (id integer primary key, body text) partition by range (id)")
    db.execute("create table p1 partition of p for values from (0) to (10)")
    db.execute("select rag.attach_source('p', content_column => 'body')")
    db.execute("create table p2 partition of p for values from (10) to (20)")
    problems = "select detail from rag.check() where \"check\" = 'sources' and not ok"
    assert rows(db, problems) == []
    for role in ("replica", "origin"):
        db.execute(f"set session_replication_role = {role}")
        db.execute("insert into p values (1, 'one'), (11, 'eleven')")
        db.execute("insert into p1 values (2, 'two')")
        assert rows(db, NOTED) == [(1,), (2,), (11,)]
        assert queued(db) == [(1,), (2,), (11,)]
        assert value(db, "select max(generation) - min(generation) from rag.documents") == 2
        drain()
        db.execute("update p set id = 12 where id = 2")
        db.execute("delete from p2 where id = 11")
        assert queued(db) == [(12,)]
        assert rows(db, "select document_id from rag.documents order by 1") == [(1,), (12,)]
        db.execute("truncate p")
        assert rows(db, "select document_id from rag.documents") == []
    db.execute("select rag.detach_source('p')")
    assert rows(db, "select from pg_trigger where tgname like 'ragstone%%'") == []

"""A vector index is made anew while workers and searches go on; what a failure leaves is named and cleared away."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from helpers import eventually, in_background, rows, value

CHUNKS = """
insert into rag.document_chunks
  (pipeline_id, source_id, document_id, chunk_index, content, char_count, token_count, content_hash, content_tsv, content_bm25, embedding)
select 1, 1, 1, i, 'x', 1, 3, sha256('x'), 'x'::tsvector, '{1:1}/1000000000', (select array_agg(sin(i * j)) from generate_series(1, 384) j)::real[]::vector
  from generate_series(1, %s) i
"""
VECTOR_INDEXES = """
select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
 where i.indrelid = 'rag.document_chunks_1'::regclass and a.amname in ('hnsw', 'ivfflat') order by 1
"""
INDEX = "document_chunks_1_embedding_idx"


@pytest.fixture
def home(own_cluster) -> Iterator[psycopg.Connection]:
    """The database of pg_cron, with a source and an idle worker."""
    cluster = own_cluster()
    with cluster.connect("cron") as db, cluster.connect("cron") as worker:
        db.execute("create extension ragstone cascade")
        db.execute("create extension pg_cron")
        db.execute("create table notes (id integer primary key, body text)")
        db.execute("select rag.attach_source('notes', content_column => 'body')")
        thread, _ = in_background(worker, "call rag.drain(run_for => '10 min')")
        eventually(lambda: rows(db, "select from rag.worker_activity where state = 'idle'"))
        yield db
        db.execute("select rag.stop_workers()")
        thread.join(60)


def check(db: psycopg.Connection) -> tuple:
    return rows(db, """select ok, detail, hint from rag.check() where "check" = 'indexes'""")[0]


def test_the_index_is_put_in_place_beside_an_idle_worker_and_nothing_is_left(home):
    home.execute(CHUNKS, [5000])
    home.execute(
        f"create index {INDEX}_00c0ffee on rag.document_chunks_1 using hnsw ((embedding::vector(384)) vector_l2_ops)"
    )
    before = value(home, "select to_regclass(%s)::oid", f"rag.{INDEX}")
    home.execute("call rag.rebuild_index()")
    assert rows(home, VECTOR_INDEXES) == [(INDEX,)]
    assert value(home, "select to_regclass(%s)::oid", f"rag.{INDEX}") != before
    assert rows(home, "select jobname from cron.job where jobname ~ 'index'") == []
    assert check(home)[0] is True


def test_a_job_that_a_cancelled_call_left_in_pg_cron_is_named(home):
    with psycopg.connect(home.info.dsn, autocommit=True) as other:
        thread, errors = in_background(other, "call rag.rebuild_index()")
        eventually(lambda: rows(home, "select from cron.job where jobname ~ 'index'"))
        other.cancel()
        thread.join(30)
    assert isinstance(errors[0], psycopg.errors.QueryCanceled)
    ok, detail, hint = check(home)
    assert ok is False and "ragstone index in cron" in detail
    home.execute("select " + hint.partition("select ")[2])
    assert check(home)[0] is True


@pytest.fixture
def by_hand(own_cluster) -> Iterator[tuple]:
    """A database beside that of pg_cron, and the statement that rag.rebuild_index() asks for there."""
    cluster = own_cluster()
    with cluster.connect("postgres") as db:
        db.execute("create extension ragstone cascade")
        db.execute("create table notes (id integer primary key, body text)")
        db.execute("select rag.attach_source('notes', content_column => 'body')")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as asked:
            db.execute("call rag.rebuild_index()")
        hint = asked.value.diag.message_hint
        yield cluster, db, hint.removeprefix("Type: ").partition(";")[0]


WAITS_FOR_READERS = (
    "select from pg_stat_progress_create_index where phase = 'waiting for old snapshots'"
)


def test_an_index_that_is_about_to_be_valid_is_not_taken_for_a_failed_one(by_hand):
    """Its last commit is held up here, as a slow disk or standby does."""
    cluster, db, statement = by_hand
    with (
        cluster.connect("postgres") as reader,
        cluster.connect("postgres") as builder,
        cluster.connect("postgres") as caller,
    ):
        for session in (db, reader, caller):
            session.execute("set synchronous_commit = local")
        reader.execute("begin isolation level repeatable read")
        reader.execute("select 1")
        building, builder_errors = in_background(builder, statement)
        eventually(lambda: rows(db, WAITS_FOR_READERS))
        db.execute("alter system set synchronous_standby_names = 'nobody'")
        db.execute("select pg_reload_conf()")
        eventually(lambda: value(db, "select current_setting('synchronous_standby_names')"))
        reader.execute("commit")
        eventually(lambda: rows(db, "select from pg_stat_activity where wait_event = 'SyncRep'"))
        calling, caller_errors = in_background(caller, "call rag.rebuild_index()")
        eventually(
            lambda: rows(
                db,
                "select from pg_stat_activity where query ~ '^call' and wait_event in ('PgSleep', 'relation', 'transactionid')",
            )
        )
        db.execute("alter system reset synchronous_standby_names")
        db.execute("select pg_reload_conf()")
        calling.join(60)
        building.join(60)
        assert builder_errors == [] and caller_errors == []
        assert rows(db, VECTOR_INDEXES) == [(INDEX,)]
        assert check(db)[0] is True


def test_an_index_that_failed_is_cleared_away_and_made_again(by_hand):
    cluster, db, statement = by_hand
    with cluster.connect("postgres") as reader, cluster.connect("postgres") as builder:
        reader.execute("begin isolation level repeatable read")
        reader.execute("select 1")
        building, errors = in_background(builder, statement)
        eventually(lambda: rows(db, WAITS_FOR_READERS))
        builder.cancel()
        building.join(30)
        reader.execute("commit")
        assert len(errors) == 1
        ok, detail, _ = check(db)
        assert ok is False and "not in use" in detail
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            db.execute("call rag.rebuild_index()")
        assert rows(db, VECTOR_INDEXES) == [(INDEX,)]
        builder.execute(statement)
        db.execute("call rag.rebuild_index()")
        assert rows(db, VECTOR_INDEXES) == [(INDEX,)]
        assert check(db)[0] is True

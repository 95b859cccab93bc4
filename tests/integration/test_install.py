"""Every mistake of an installation says what to do."""

from __future__ import annotations

import psycopg
import pytest
from helpers import value


def test_without_cascade_the_missing_extension_is_named(cluster, empty_database):
    with cluster.connect(empty_database) as db:
        with pytest.raises(psycopg.Error) as error:
            db.execute("create extension ragstone")
        assert "is not installed" in error.value.diag.message_primary
        assert "CASCADE" in error.value.diag.message_hint


def test_without_pg_cron_the_error_says_how_to_get_it_and_how_to_do_without(
    own_cluster, document_root
):
    cluster = own_cluster(shared_preload_libraries="")
    with cluster.connect("postgres") as db:
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as error:
            db.execute("create extension ragstone cascade")
        assert "shared_preload_libraries" in error.value.diag.message_hint
        assert "ragstone.without_pg_cron" in error.value.diag.message_hint

        db.execute("set ragstone.without_pg_cron = on")
        db.execute("create extension ragstone cascade")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as error:
            db.execute("select rag.start_workers()")
        assert "call rag.drain()" in error.value.diag.message_hint

        (document_root / "a.txt").write_text("Worked off by hand.")
        db.execute("select rag.set('document_root', %s)", [str(document_root)])
        db.execute("create table files (id integer primary key, path text)")
        db.execute("insert into files values (1, 'a.txt')")
        db.execute("select rag.attach_source('files', path_column => 'path')")
        db.execute("call rag.drain()")
        assert (
            value(db, "select content from rag.search_documents('hand')") == "Worked off by hand."
        )


def test_dropping_the_extension_leaves_the_users_table_as_it_was(db, add, table, drain):
    add(1, "Some text.")
    drain()
    db.execute("drop extension ragstone cascade")
    assert value(db, f"select count(*) from {table}") == 1
    assert value(db, "select count(*) from pg_trigger where not tgisinternal") == 0
    assert value(db, "select count(*) from pg_class where relnamespace = 'rag'::regnamespace") == 0
    db.execute("create extension ragstone")


def test_a_session_with_the_old_package_in_memory_is_told_to_reconnect(db, connect):
    """What a session that was open during an upgrade meets: functions of another version."""
    db.execute("select rag.embed('loads the package')")
    source = value(db, "select prosrc from pg_proc where oid = 'rag._embed'::regproc")
    newer = source.replace('require("', 'require("9')
    assert newer != source
    db.execute(
        f"create or replace function rag._embed(content text, model text) returns vector language plpython3u stable strict as $f${newer}$f$"
    )
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as error:
        db.execute("select rag.embed('again')")
    assert "Reconnect" in error.value.diag.message_hint

"""Every change of the user's table reaches the index, and nothing else does."""

from __future__ import annotations

import re

import psycopg
import pytest
from helpers import rows, value

QUEUED = "select count(*) from rag.ingestion_queue where status = 'queued'"


def test_rows_from_before_are_enqueued_when_a_table_is_attached(db, document_root, drain):
    (document_root / "old.txt").write_text("It was here before ragstone.")
    db.execute("create table old (id bigint primary key, path text)")
    db.execute("insert into old values (7, 'old.txt')")
    db.execute("select rag.attach_source('old', path_column => 'path')")
    drain()
    assert value(db, "select document_id from rag.search_documents('before')") == 7


def test_an_update_of_an_unwatched_column_enqueues_nothing(db, add, table, drain):
    add(1, "Some text.")
    drain()
    db.execute(f"update {table} set note = 'read'")
    assert value(db, QUEUED) == 0
    assert value(db, "select count(*) from rag._changes") == 0


def test_an_update_of_the_path_brings_the_other_file(db, add, table, document_root, drain):
    add(1, "The file was about otters.")
    drain()
    (document_root / "other.txt").write_text("The file is about badgers.")
    db.execute(f"update {table} set \"DocumentFilePath\" = 'other.txt'")
    drain()
    assert rows(db, "select content from rag.document_chunks") == [("The file is about badgers.",)]


def test_a_deleted_row_is_out_of_search_at_once(db, add, table, drain):
    add(1, "Short-lived text.")
    add(2, "Text that stays.")
    drain()
    db.execute(f'delete from {table} where "DocumentID" = 1')
    assert rows(db, "select document_id from rag.search_documents('text')") == [(2,)]
    assert value(db, "select count(*) from rag.document_chunks where document_id = 1") == 0


def test_truncate_empties_search_at_once(db, add, table, drain):
    add(1, "Some text.")
    drain()
    db.execute(f"truncate {table}")
    assert rows(db, "select from rag.search_documents('text')") == []
    assert value(db, "select count(*) from rag.documents") == 0


def test_a_changed_key_is_the_old_document_gone_and_a_new_one_in(db, add, table, drain):
    add(1, "Renumbered text.")
    drain()
    db.execute(f'update {table} set "DocumentID" = 5')
    assert rows(db, "select from rag.search_documents('text')") == []
    drain()
    assert rows(db, "select document_id from rag.search_documents('text')") == [(5,)]


def test_a_rolled_back_change_leaves_no_trace(db, add, table, drain):
    add(1, "Some text.")
    drain()
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute(f"insert into {table} values (2, 'x.txt')")
        db.execute(f'delete from {table} where "DocumentID" = 1')
        raise ZeroDivisionError
    assert value(db, QUEUED) == 0
    assert rows(db, "select document_id from rag.search_documents('text')") == [(1,)]


def test_copy_and_upsert_are_changes_like_any(db, table, document_root, drain):
    (document_root / "a.txt").write_text("Text of file a.")
    with db.cursor().copy(f'copy {table} ("DocumentID", "DocumentFilePath") from stdin') as copy:
        copy.write_row((1, "a.txt"))
    db.execute(
        f"""insert into {table} values (1, 'a.txt'), (2, 'a.txt')
            on conflict ("DocumentID") do update set "DocumentFilePath" = excluded."DocumentFilePath" """
    )
    drain()
    assert rows(
        db, "select document_id from rag.documents where status = 'completed' order by 1"
    ) == [(1,), (2,)]


def test_a_hundred_quick_updates_cost_one_run(db, add, table, document_root, drain):
    add(1, "Some text.")
    for number in range(100):
        db.execute(f'update {table} set "DocumentFilePath" = %s', [f"{number}.txt"])
    (document_root / "99.txt").write_text("The last one counts.")
    db.execute("select rag._expand_changes(0::smallint)")
    assert value(db, QUEUED) == 1
    drain()
    assert value(db, "select count(*) from rag.job_history") == 1
    assert value(db, "select content from rag.document_chunks") == "The last one counts."


def test_a_large_statement_is_noted_at_once_and_expanded_by_a_worker(
    db, table, document_root, drain
):
    (document_root / "same.txt").write_text("The same text in all of them.")
    db.execute(f"insert into {table} select n, 'same.txt' from generate_series(1, 300) n")
    assert value(db, QUEUED) == 0
    pending = rows(db, "select document_id, status from rag.ingestion_log order by 1")
    assert pending == [(n, "pending") for n in range(1, 301)]
    drain()
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 300


def test_rows_that_a_transaction_holds_are_taken_up_after_it(
    db, connect, table, document_root, drain
):
    (document_root / "same.txt").write_text("The same text in all of them.")
    db.execute(f"insert into {table} select n, 'same.txt' from generate_series(1, 200) n")
    other = connect()
    with other.transaction():
        other.execute(f'delete from {table} where "DocumentID" = 200')
        db.execute("call rag.drain(max_documents => 500)")
        assert value(db, "select count(*) from rag.documents") == 199
    drain()
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 199
    assert value(db, "select count(*) from rag._changes") == 0


def test_uuid_and_text_keys_get_an_id_and_keep_their_key(db, document_root, drain):
    (document_root / "a.txt").write_text("Keyed by a uuid.")
    db.execute("create table u (id uuid primary key, path text)")
    db.execute("select rag.attach_source('u', path_column => 'path')")
    key = "6f1c8bd4-3d5e-4d5a-9a52-0d6a2c1f7b11"
    db.execute("insert into u values (%s, 'a.txt')", [key])
    drain()
    assert rows(db, "select source, source_key from rag.search_documents('uuid')") == [("u", key)]


@pytest.mark.parametrize("type_", ["text", "bytea"])
def test_a_column_can_hold_the_document_itself(db, drain, type_):
    db.execute(f"create table notes (id integer primary key, body {type_}, title text)")
    db.execute(
        "select rag.attach_source('notes', content_column => 'body', title_column => 'title')"
    )
    db.execute("insert into notes values (1, 'A note about hedgehogs.', 'Animals')")
    drain()
    assert rows(db, "select title, content from rag.search_documents('hedgehogs')") == [
        ("Animals", "A note about hedgehogs.")
    ]


def test_title_tenant_tags_and_metadata_are_carried_along_and_follow_changes(db, drain):
    db.execute(
        """create table notes (id integer primary key, body text, title text, tenant integer, tags text[], author text)"""
    )
    db.execute(
        """select rag.attach_source('notes', content_column => 'body', title_column => 'title', tenant_column => 'tenant',
                                    tags_column => 'tags', metadata_columns => '{author}')"""
    )
    db.execute("insert into notes values (1, 'A note.', 'One', 10, '{draft}', 'Kim')")
    drain()
    seen = "select title, tags, metadata, (select tenant_id from rag.document_chunks) from rag.search_documents('note')"
    assert rows(db, seen) == [("One", ["draft"], {"author": "Kim"}, 10)]
    db.execute("update notes set title = 'Two', tenant = 20, tags = '{final}', author = 'Lou'")
    assert value(db, "select tenant_id from rag.document_chunks") == 20, (
        "a tenant's text leaves it at once"
    )
    drain()
    assert rows(db, seen) == [("Two", ["final"], {"author": "Lou"}, 20)]
    db.execute("update notes set tags = '{filed}'")
    drain()
    assert rows(db, "select tags from rag.document_chunks") == [(["filed"],)]
    assert (
        value(db, "select outcome from rag.job_history order by job_id desc limit 1") == "unchanged"
    ), "what is indexed is the same: no embedding"


def test_detached_table_is_out_of_search_and_as_before(db, add, table, drain):
    add(1, "Some text.")
    drain()
    assert value(db, """select rag.detach_source('"TblDocumentFiles"')""") == 1
    assert rows(db, "select from rag.search_documents('text')") == []
    db.execute(f"insert into {table} values (2, 'y.txt')")
    assert value(db, "select count(*) from rag.documents") == 0
    assert value(db, "select count(*) from pg_trigger where tgname like 'ragstone%%'") == 0


def test_a_renamed_table_stays_attached(db, add, table, document_root, drain):
    add(1, "Some text.")
    db.execute(f"alter table {table} rename to files")
    (document_root / "2.txt").write_text("More text.")
    db.execute("insert into files values (2, '2.txt')")
    drain()
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 2


def test_a_role_that_may_only_write_the_table_can_use_it(
    db, cluster, connect, table, document_root, drain
):
    (document_root / "w.txt").write_text("Written by a plain role.")
    db.execute("drop role if exists ragstone_writer")
    db.execute("create role ragstone_writer")
    try:
        db.execute(f"grant insert, update, delete, select on {table} to ragstone_writer")
        writer = connect()
        writer.execute("set role ragstone_writer")
        writer.execute(f"insert into {table} values (1, 'w.txt')")
        drain()
        assert value(db, "select document_id from rag.search_documents('plain role')") == 1
        writer.execute(f"delete from {table}")
        assert rows(db, "select from rag.search_documents('plain role')") == []
        writer.close()
    finally:
        db.execute("drop owned by ragstone_writer")
        db.execute("drop role ragstone_writer")


def test_attach_refuses_what_it_cannot_follow(db):
    db.execute("create table t (id integer, path text)")
    db.execute("create view v as select * from t")
    db.execute("create table two (a integer, b integer, path text, primary key (a, b))")
    db.execute("create table ok (id integer primary key, path text, n integer)")

    def refused(sql, error, *words):
        with pytest.raises(error) as caught:
            db.execute(sql)
        text = f"{caught.value.diag.message_primary} {caught.value.diag.message_detail} {caught.value.diag.message_hint}"
        assert all(word in text for word in words), text

    refused(
        "select rag.attach_source('v', path_column => 'path')",
        psycopg.errors.WrongObjectType,
        "not a table",
        "behind it",
    )
    refused(
        "select rag.attach_source('t', path_column => 'path')",
        psycopg.errors.ObjectNotInPrerequisiteState,
        "no primary key",
        "add primary key",
    )
    refused(
        "select rag.attach_source('two', path_column => 'path')",
        psycopg.errors.FeatureNotSupported,
        "2 columns",
    )
    refused(
        "select rag.attach_source('ok', path_column => 'pathh')",
        psycopg.errors.UndefinedColumn,
        "id, path, n",
    )
    refused(
        "select rag.attach_source('ok', path_column => 'n')",
        psycopg.errors.DatatypeMismatch,
        "integer",
    )
    refused(
        "select rag.attach_source('ok')",
        psycopg.errors.InvalidParameterValue,
        "path_column",
        "content_column",
    )
    refused(
        "select rag.attach_source('rag.documents', path_column => 'title')",
        psycopg.errors.WrongObjectType,
    )
    refused("select rag.detach_source('ok')", psycopg.errors.UndefinedObject, "rag.sources")
    db.execute("select rag.attach_source('ok', path_column => 'path')")
    refused(
        "select rag.attach_source('ok', path_column => 'path', metadata_columns => '{n}')",
        psycopg.errors.DuplicateObject,
        "detach_source",
    )


def test_a_virtual_column_is_refused_as_its_changes_would_be_missed(db):
    if value(db, "select current_setting('server_version_num')::integer") < 180000:
        pytest.skip("PostgreSQL has virtual generated columns from 18 on")
    db.execute(
        """
        create table notes (id integer primary key, body text,
                            shown text generated always as (upper(body)) virtual)
        """
    )
    attach = "select rag.attach_source('notes', content_column => 'shown')"
    for column in (
        "content_column => 'shown'",
        "content_column => 'body', title_column => 'shown'",
    ):
        with pytest.raises(psycopg.errors.FeatureNotSupported) as error:
            db.execute(f"select rag.attach_source('notes', {column})")
    db.execute(re.search("alter table .*", error.value.diag.message_hint)[0])
    db.execute(attach)
    db.execute("insert into notes values (1, 'before')")
    db.execute("call rag.drain()")
    db.execute("update notes set body = 'after'")
    db.execute("call rag.drain()")
    assert value(db, "select content from rag.search_documents('after')") == "AFTER"


def test_attaching_once_more_as_it_is_changes_nothing(db, table):
    db.execute(
        """select rag.attach_source('"TblDocumentFiles"', path_column => 'DocumentFilePath')"""
    )
    assert value(db, "select count(*) from rag.sources") == 1


def test_renamed_columns_are_followed(db, add, table, document_root, drain):
    add(1, "Before the rename.")
    db.execute(f'alter table {table} rename column "DocumentFilePath" to path')
    db.execute(f'alter table {table} rename column "DocumentID" to id')
    (document_root / "2.txt").write_text("After the rename.")
    db.execute(f"insert into {table} values (2, '2.txt')")
    drain()
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 2
    assert rows(db, "select key_column, path_column from rag.sources") == [("id", "path")]


def test_a_watched_column_cannot_be_dropped_unnoticed(db, table):
    with pytest.raises(psycopg.errors.DependentObjectsStillExist) as error:
        db.execute(f'alter table {table} drop column "DocumentFilePath"')
    assert "detach_source" in error.value.diag.message_hint
    db.execute(f"alter table {table} drop column note")


def test_a_dropped_table_takes_its_documents_out_of_search(db, add, table, drain):
    add(1, "Some text.")
    drain()
    db.execute(f"drop table {table}")
    assert rows(db, "select from rag.search_documents('text')") == []
    assert value(db, "select count(*) from rag.sources") == 0


def test_partitions_are_followed_whichever_way_they_are_written(db, drain):
    db.execute("create table p (id integer primary key, body text) partition by range (id)")
    db.execute("create table p1 partition of p for values from (0) to (10)")
    db.execute("select rag.attach_source('p', content_column => 'body')")
    db.execute("create table p2 partition of p for values from (10) to (20)")
    db.execute(
        "insert into p values (1, 'Text through the table.'), (11, 'More text through the table.')"
    )
    db.execute("insert into p1 values (2, 'Text into a partition.')")
    db.execute("insert into p2 values (12, 'Text into a new partition.')")
    drain()
    ids = "select document_id from rag.documents where status = 'completed' order by 1"
    assert rows(db, ids) == [(1,), (2,), (11,), (12,)]
    db.execute("truncate p2")
    assert rows(db, ids) == [(1,), (2,)]
    db.execute("delete from p1 where id = 1")
    assert rows(db, ids) == [(2,)]
    db.execute("truncate p")
    assert rows(db, ids) == []


def test_rows_that_come_by_replication_are_followed(db, table, document_root, drain):
    (document_root / "r.txt").write_text("Replicated text.")
    db.execute("set session_replication_role = replica")
    db.execute(f"insert into {table} values (1, 'r.txt')")
    db.execute("reset session_replication_role")
    drain()
    assert value(db, "select document_id from rag.search_documents('replicated')") == 1


def test_the_name_of_a_stored_document_tells_its_type(db, drain):
    db.execute("create table files (id integer primary key, name text, data bytea, about jsonb)")
    db.execute(
        """select rag.attach_source('files', content_column => 'data', name_column => 'name', metadata_columns => '{about}')"""
    )
    db.execute(
        "insert into files values (1, 'rules.md', %s, '{\"year\": 2024}')",
        [b"# Rules\n\nNo running by the pool."],
    )
    drain()
    assert rows(db, "select file_type, file_path from rag.ingestion_log") == [
        ("text/markdown", "rules.md")
    ]
    assert rows(db, "select section, metadata from rag.search_documents('running')") == [
        ("Rules", {"year": 2024})
    ]


def test_looking_at_rows_again_does_not_make_them_changed(db, add, table, document_root, drain):
    """Else whoever asks for what has changed since yesterday is shown everything."""
    add(1, "Bees make honey.")
    add(2, "Ants do not.")
    drain()
    before = value(db, "select now()")
    (document_root / "2.txt").write_text("Ants make no honey at all.")
    db.execute("select rag.enqueue_existing(%s)", [table])
    drain()
    changed = "select document_id from rag.search_documents('honey', changed_after => %s)"
    assert rows(db, changed, before) == [(2,)], "the file of the other is the same"
    db.execute(f"update {table} set note = 'x'")
    assert rows(db, changed, before) == [(2,)], "a column that is not watched"

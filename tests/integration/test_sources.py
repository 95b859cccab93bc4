"""Whatever happens to an attached table: its statements succeed, and its rows and documents agree."""

from __future__ import annotations

import psycopg
import pytest
from helpers import eventually, in_background, rows, value

KEYS = "select d.source_key from rag.documents d join rag.sources s using (source_id) where s.name = %s order by 1"
TROUBLE = "select error from rag.failures where source = %s and document_id is null"


@pytest.fixture
def attach(db):
    """Attaches a table whose documents are in its column body."""

    def attach(table: str, **columns: str) -> None:
        more = "".join(f", {name} => '{column}'" for name, column in columns.items())
        db.execute(f"select rag.attach_source('{table}', content_column => 'body'{more})")

    return attach


@pytest.fixture
def notes(db, attach, drain):
    """An attached table of two rows, both searchable."""
    db.execute("create table notes (id integer primary key, body text, title text, tenant integer)")
    attach("notes", title_column="title", tenant_column="tenant")
    db.execute(
        "insert into notes values (1, 'The moon is far.', 'a', 1), (2, 'Cheese is near.', 'b', 1)"
    )
    drain()
    return "notes"


def keys(db, source):
    return [key for (key,) in rows(db, KEYS, source)]


# Partitions and tables that inherit


@pytest.fixture
def parts(db, attach, drain):
    """A partitioned table of two partitions with two rows each."""
    db.execute("create table parts (id integer primary key, body text) partition by range (id)")
    db.execute("create table low partition of parts for values from (0) to (10)")
    db.execute("create table high partition of parts for values from (10) to (20)")
    db.execute("insert into parts select n, 'Text of ' || n from unnest('{1,2,11,12}'::int[]) n")
    attach("parts")
    drain()
    assert keys(db, "parts") == ["1", "11", "12", "2"]
    return "parts"


def triggers(db, table):
    return value(
        db,
        "select count(*) from pg_trigger where tgrelid = %s::regclass and tgname like 'ragstone%%'",
        table,
    )


def test_the_rows_of_an_attached_partition_can_be_found(db, parts, drain):
    db.execute("create table next (id integer primary key, body text)")
    db.execute("insert into next values (21, 'Granite is a hard rock.')")
    db.execute("alter table parts attach partition next for values from (20) to (30)")
    assert rows(
        db, "select source_key, status from rag.ingestion_log where status = 'pending'"
    ) == [("21", "pending")]
    drain()
    assert rows(db, "select source_key from rag.search_documents('granite')")[0] == ("21",)


@pytest.mark.parametrize(
    "statement",
    [
        "drop table low",
        "alter table parts detach partition low",
        "alter table parts detach partition low concurrently",
        "truncate low",
    ],
)
def test_the_rows_of_a_partition_that_goes_are_out_of_search_at_once(db, parts, drain, statement):
    db.execute(statement)
    assert keys(db, "parts") == ["11", "12"]
    assert value(db, "select count(*) from rag.document_chunks") == 2
    if "detach" in statement:
        assert triggers(db, "low") == 0
        db.execute("insert into low values (3, 'Nobody is told of it.')")
        drain()
        assert keys(db, "parts") == ["11", "12"]


def test_a_schema_that_is_dropped_takes_its_partitions_out_of_search(db, parts, drain):
    db.execute("create schema old")
    db.execute("create table old.p partition of parts for values from (20) to (30)")
    db.execute("insert into parts values (25, 'Old.')")
    drain()
    db.execute("drop schema old cascade")
    assert keys(db, "parts") == ["1", "11", "12", "2"]


def test_a_partition_that_goes_in_a_transaction_that_fails_stays_searchable(db, parts):
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute("drop table low")
        raise ZeroDivisionError
    assert keys(db, "parts") == ["1", "11", "12", "2"]


def test_a_row_that_moves_to_another_partition_stays_searchable(db, parts, drain):
    db.execute(
        "with gone as (delete from low where id = 1 returning *) insert into low select * from gone"
    )
    db.execute("update parts set id = 13 where id = 2")
    drain()
    assert keys(db, "parts") == ["1", "11", "12", "13"]


def test_tables_that_inherit_are_followed_as_they_come_and_go(db, notes, drain):
    db.execute("create table child () inherits (notes)")
    db.execute("insert into child values (3, 'Straight into the child.')")
    drain()
    assert keys(db, "notes") == ["1", "2", "3"]
    db.execute("set session_replication_role = replica")
    db.execute("insert into child values (4, 'Replicated into the child.')")
    db.execute("reset session_replication_role")
    drain()
    assert keys(db, "notes") == ["1", "2", "3", "4"]
    db.execute("alter table child no inherit notes")
    assert keys(db, "notes") == ["1", "2"]
    assert triggers(db, "child") == 0
    db.execute("alter table child inherit notes")
    drain()
    assert keys(db, "notes") == ["1", "2", "3", "4"]
    db.execute("truncate only notes")
    assert keys(db, "notes") == ["3", "4"]
    db.execute("drop table child")
    assert keys(db, "notes") == []


# What the nightly pass mends


@pytest.mark.parametrize("table", ["plain", "parts", "texts"])
def test_rows_written_while_triggers_were_off_are_found_by_the_nightly_pass(
    db, attach, drain, table
):
    db.execute(
        {
            "plain": "create table plain (id integer primary key, body text)",
            "texts": "create table texts (id varchar(9) primary key, body text)",
            "parts": "create table parts (id integer primary key, body text) partition by range (id);"
            " create table low partition of parts for values from (0) to (10)",
        }[table]
    )
    attach(table)
    db.execute(f"insert into {table} values ('1', 'The first.'), ('2', 'The second.')")
    drain()
    target = "low" if table == "parts" else table
    db.execute(f"alter table {target} disable trigger all")
    db.execute(f"insert into {target} values ('3', 'The third.')")
    db.execute(f"delete from {target} where id = '1'")
    db.execute(f"alter table {target} enable trigger all")
    drain()
    assert keys(db, table) == ["1", "2"]
    db.execute("call rag.maintain()")
    assert keys(db, table) == ["2"]
    (said,) = rows(db, "select detail from rag.check() where \"check\" = 'sources'")
    assert "1 rows without a document queued, 1 documents without a row removed" in said[0]
    drain()
    assert keys(db, table) == ["2", "3"]
    assert value(db, "select count(*) from rag.check_consistency()") == 0


def test_partitions_that_came_and_went_unheard_are_found_by_the_nightly_pass(db, parts, drain):
    for event in ("ragstone_after_ddl", "ragstone_after_drop"):
        db.execute(f"alter event trigger {event} disable")
    db.execute("drop table low")
    db.execute("create table next partition of parts for values from (20) to (30)")
    db.execute("insert into next values (21, 'Unheard.')")
    db.execute("call rag.maintain()")
    drain()
    assert keys(db, "parts") == ["11", "12", "21"]
    db.execute("insert into next values (22, 'Heard.')")
    drain()
    assert keys(db, "parts") == ["11", "12", "21", "22"]


def test_a_table_of_many_rows_is_compared_in_batches(db, attach):
    db.execute("create table many (id bigint primary key, body text)")
    attach("many")
    db.execute("alter table many disable trigger all")
    db.execute("insert into many select n, 'x' from generate_series(1, 25000) n")
    source = value(db, "select source_id from rag.sources")
    last, total = None, 0
    steps = 0
    while True:
        ((last, number),) = rows(
            db, "select last, number from rag._compare_source('rows', %s, %s)", source, last
        )
        assert number <= 10000
        total += number
        steps += 1
        if last is None:
            break
    assert (total, steps) == (25000, 4)
    assert rows(db, "select number from rag._compare_source('rows', %s, null)", source) == [(0,)], (
        "what is noted already is not noted again"
    )


# A statement of the application never fails because of ragstone's own trouble


UNHEARD = (
    "alter event trigger ragstone_after_ddl disable;"
    " alter event trigger ragstone_after_drop disable;"
)
BAD_WAYS = {
    "the key is not unique any more": "alter table notes drop constraint notes_pkey;"
    " alter table notes add primary key (tenant, id)",
    "nothing is the key any more": "alter table notes drop constraint notes_pkey",
    "the key is a text now": f"{UNHEARD} alter table notes alter id type text",
    "the key has no text order": "alter event trigger ragstone_after_ddl disable;"
    " alter table notes drop constraint notes_pkey; alter table notes alter id type json using to_json(id)",
    "a column is dropped unheard": f"{UNHEARD} alter table notes drop title",
    "a column is renamed unheard": f"{UNHEARD} alter table notes rename title to t",
    "the key is renamed unheard": f"{UNHEARD} alter table notes rename id to key",
    "a type is changed unheard": f"{UNHEARD} alter table notes alter tenant type numeric",
    "the trigger is dropped": "drop trigger ragstone_insert on notes",
    "the trigger is disabled": "alter table notes disable trigger ragstone_insert",
    "the code of others is read with it": "alter event trigger ragstone_after_ddl disable;"
    " create role stranger_{name}; create function f(text) returns text immutable language sql return $1;"
    " alter function f(text) owner to stranger_{name}; create index on notes (f(body))",
}


@pytest.mark.parametrize("way", BAD_WAYS)
def test_a_source_gone_bad_fails_no_statement_stops_no_other_source_and_is_named(
    db, database, notes, attach, drain, way
):
    db.execute("create table other (id integer primary key, body text)")
    attach("other")
    try:
        with db.cursor() as cursor:
            for statement in BAD_WAYS[way].format(name=database).split(";"):
                cursor.execute(statement)
        columns = value(
            db,
            "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute"
            " where attrelid = 'notes'::regclass and attnum > 0 and not attisdropped",
        )
        number = columns.count(",") + 1
        new = (
            ["3", "Kudu three.", "x", "9"][:number]
            if "drop title" not in BAD_WAYS[way]
            else ["3", "Kudu", "9"]
        )
        db.execute(f"insert into notes ({columns}) values ({', '.join(['%s'] * number)})", new)
        db.execute(
            f"insert into notes ({columns}) select {', '.join(['%s'] * number)} from generate_series(1, 1)",
            ["4", *new[1:]],
        ) if "json" not in way else None
        db.execute("update notes set body = body || '!'")
        db.execute("delete from notes where body like 'Cheese%%'")
        db.execute("insert into other values (1, 'It waits for nobody.')")
        drain()
        assert rows(
            db, "select source_key from rag.search_documents('waits', source => 'other')"
        ) == [("1",)]
        ((ok, detail),) = rows(db, "select ok, detail from rag.check() where \"check\" = 'sources'")
        assert ok is False and "notes" in detail
    finally:
        if "stranger" in BAD_WAYS[way]:
            db.execute("drop table notes; drop function f(text)")
            db.execute(f"drop role stranger_{database}")


def test_a_key_that_several_rows_have_is_named_and_mended_when_it_is_one_rows_again(
    db, notes, drain
):
    db.execute("alter table notes drop constraint notes_pkey")
    db.execute("alter table notes add primary key (tenant, id)")
    db.execute("insert into notes values (1, 'Kudu two.', 'b', 2)")
    db.execute("insert into notes select n, 'Kudu', 'c', 3 from generate_series(1, 150) n")
    drain()
    failed = rows(db, "select source, error_code, error from rag.failures where document_id = 1")
    assert failed == [("notes", "21000", "more than one row has the key 1")]
    assert "unique" in value(db, TROUBLE, "notes")
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 148
    db.execute("delete from notes where tenant in (1, 3)")
    drain()
    assert rows(db, "select source_key, status from rag.documents") == [("1", "completed")]
    db.execute("alter table notes drop constraint notes_pkey")
    db.execute("alter table notes add primary key (id)")
    db.execute("call rag.maintain()")
    assert rows(db, TROUBLE, "notes") == []
    assert value(db, "select ok from rag.check() where \"check\" = 'sources'") is True


def test_a_source_that_can_be_read_again_goes_on_where_it_was(db, notes, drain):
    db.execute("alter event trigger ragstone_after_ddl disable")
    db.execute("alter table notes rename title to heading")
    db.execute("insert into notes values (3, 'Noted all the same.')")
    drain()
    assert "title" in value(db, TROUBLE, "notes")
    db.execute("alter table notes rename heading to title")
    drain()
    assert keys(db, "notes") == ["1", "2", "3"]
    assert rows(db, TROUBLE, "notes") == []


@pytest.mark.parametrize("locked", ["rag._changes", "rag.documents, rag.document_chunks"])
def test_tables_of_ragstone_that_somebody_has_locked_fail_no_statement(
    db, connect, notes, drain, locked
):
    db.execute("set lock_timeout = '100ms'")
    other = connect()
    with other.transaction():
        other.execute(f"lock table {locked} in access exclusive mode")
        db.execute("insert into notes values (3, 'Written.', 'c')")
        db.execute("update notes set body = 'Written anew.' where id = 2")
        db.execute("delete from notes where id = 1") if "documents" in locked else None
    db.execute("call rag.maintain()")
    drain()
    assert keys(db, "notes") == [str(key) for (key,) in rows(db, "select id from notes order by 1")]


def test_an_out_of_range_value_is_one_rows_trouble(db, attach, drain):
    db.execute("create table wide (id integer primary key, body text, tenant bigint)")
    attach("wide", tenant_column="tenant")
    db.execute("alter event trigger ragstone_after_ddl disable")
    db.execute("alter table wide alter tenant type text")
    db.execute("insert into wide values (1, 'One.', '1'), (2, 'Two.', 'no number')")
    db.execute("alter table wide rename to gone")
    drain()
    assert "tenant" in value(db, TROUBLE, "wide")


def test_a_cancel_is_not_swallowed_by_a_trigger(db, connect, notes):
    other = connect()
    with other.transaction():
        other.execute("lock table rag._changes in access exclusive mode")
        thread, errors = in_background(db, "insert into notes values (3, 'x', 'y')")
        pid = db.info.backend_pid
        eventually(
            lambda: value(
                other,
                "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'",
                pid,
            )
        )
        other.execute("select pg_cancel_backend(%s)", [pid])
        thread.join()
    assert isinstance(errors[0], psycopg.errors.QueryCanceled)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_update_of_its_own_row_does_not_meet_a_worker(db, connect, notes, level):
    other = connect()
    db.execute("insert into notes values (3, 'The first state.', 'x')")
    with other.transaction():
        other.execute(f"set transaction isolation level {level}")
        assert value(other, "select count(*) from notes") == 3
        db.execute("call rag.drain()")
        other.execute("update notes set body = 'The second state.' where id = 3")
        other.execute("insert into notes values (4, 'Another.', 'y')")
    db.execute("call rag.drain()")
    assert keys(db, "notes") == ["1", "2", "3", "4"]
    assert value(db, "select content from rag.document_chunks where document_id = 3") == (
        "The second state."
    )


# Notes


def test_the_keys_of_rows_that_are_held_for_long_are_not_written_again(db, connect, attach):
    db.execute("create table held (id uuid primary key, body text)")
    attach("held")
    db.execute("insert into held select gen_random_uuid(), 'x' from generate_series(1, 5000)")
    other = connect()
    with other.transaction():
        other.execute("select from held for update")
        size = "select pg_total_relation_size('rag._changes')"
        before = value(db, size)
        db.execute("call rag.drain()")
        for _ in range(50):
            db.execute("select rag._expand_changes((-32768)::smallint)")
        written = value(db, size) - before
    # Each writing of the keys is 200 kB.
    assert written < 1_000_000
    db.execute("call rag.drain(max_documents => 1)")
    assert value(db, "select count(*) from rag.documents") == 5000


def test_many_single_row_statements_are_expanded_together(db, notes):
    for number in range(10, 60):
        db.execute("insert into notes values (%s, 'x')", [number])
    assert value(db, "select rag._expand_changes(0::smallint)") == 50


# Keys


KEY_TYPES = {
    "smallint": "1",
    "integer": "-7",
    "bigint": "9223372036854775807",
    "uuid": "6f1c8bd4-3d5e-4d5a-9a52-0d6a2c1f7b11",
    "text": " two  Spaces ",
    "varchar(12)": "Straße",
    "char(12)": "short",
    "char(1)": "s",
    "name": "a_name",
    'text collate "ragstone_ci"': "MixedCase",
}
REFUSED_TYPES = [
    "numeric",
    "timestamptz",
    "timestamp",
    "date",
    "float8",
    "bytea",
    "bit(3)",
    "boolean",
    "inet",
] + ["money", "interval", "oid", '"char"', "citext_like", "integer[]"]


@pytest.mark.parametrize("type_", KEY_TYPES)
def test_every_key_type_that_is_taken_is_found_again(db, attach, drain, type_):
    db.execute(
        "create collation ragstone_ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
    )
    for setting in ("TimeZone = 'Asia/Tokyo'", "extra_float_digits = 0", "bytea_output = 'escape'"):
        db.execute(f"set {setting}")
    db.execute(f"create table keyed (k {type_} primary key, body text)")
    attach("keyed")
    key = KEY_TYPES[type_]
    db.execute(f"insert into keyed values ('{key}', 'The ocelot sleeps.')")
    drain()
    found = "select source_key from rag.search_documents('ocelot', check_source => true)"
    assert rows(db, found) == [(key,)]
    db.execute("select rag.enqueue_existing('keyed')")
    db.execute("update keyed set body = 'The ocelot wakes.'")
    drain()
    assert value(db, "select content from rag.document_chunks") == "The ocelot wakes."
    db.execute("call rag.maintain()")
    assert keys(db, "keyed") == [key]
    db.execute("delete from keyed")
    assert keys(db, "keyed") == []


@pytest.mark.parametrize("type_", REFUSED_TYPES)
def test_every_other_key_type_is_refused(db, attach, type_):
    db.execute("create domain citext_like as text")
    db.execute(f"create table keyed (k {type_} primary key, body text)")
    with pytest.raises(psycopg.errors.DatatypeMismatch) as error:
        attach("keyed")
    assert "integer" in error.value.diag.message_detail


def test_a_change_of_case_alone_is_a_change_under_any_collation(db, attach, drain):
    db.execute(
        "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
    )
    db.execute("create table ci (id text collate ci primary key, body text, title text collate ci)")
    attach("ci", title_column="title")
    db.execute("insert into ci values ('key', 'Hello walrus.', 'Title')")
    drain()
    db.execute("update ci set title = 'TITLE'")
    drain()
    assert value(db, "select title from rag.documents") == "TITLE"
    db.execute("update ci set id = 'KEY'")
    assert keys(db, "ci") == []
    drain()
    assert keys(db, "ci") == ["KEY"]
    db.execute("delete from ci")
    assert rows(db, "select from rag.search_documents('walrus')") == []


def test_values_that_are_equal_but_not_the_same_are_changes(db, attach, drain):
    db.execute("create table n (id integer primary key, body text, price numeric)")
    db.execute(
        "select rag.attach_source('n', content_column => 'body', metadata_columns => '{price}')"
    )
    db.execute("insert into n values (1, 'A price.', 1.0)")
    drain()
    db.execute("update n set price = 1.00")
    drain()
    assert value(db, "select metadata::text from rag.documents") == '{"price": 1.00}'


def test_keys_that_shift_are_all_there_afterwards_by_replication_too(db, attach, drain):
    db.execute("create table shifted (id bigint primary key deferrable, body text)")
    attach("shifted")
    db.execute("insert into shifted values (1, 'a'), (2, 'b'), (3, 'c')")
    drain()
    for role in ("replica", "origin"):
        db.execute(f"set session_replication_role = {role}")
        db.execute("update shifted set id = id + 1")
    drain()
    assert keys(db, "shifted") == ["3", "4", "5"]
    assert value(db, "select count(*) from rag.check_consistency()") == 0

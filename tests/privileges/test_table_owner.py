"""Who owns an attached table decides what is in it, and nothing else."""

from __future__ import annotations

import psycopg
import pytest
from helpers import rows, value


@pytest.fixture
def owner(db, connect):
    """A session of a plain role that owns an attached table, and a table to note who ran its functions."""
    db.execute(
        "do $$ begin create role ragstone_owner; exception when duplicate_object or unique_violation then null; end $$"
    )
    db.execute("grant create, usage on schema public to ragstone_owner")
    db.execute("create table files (id integer primary key, path text, note text, state text)")
    db.execute("alter table files owner to ragstone_owner")
    db.execute(
        "select rag.attach_source('files', path_column => 'path', title_column => 'note', metadata_columns => '{state}')"
    )
    session = connect()
    session.execute("set role ragstone_owner")
    session.execute("create table ran_as (who text)")
    session.execute("grant insert on ran_as to public")
    session.execute("create type evil as (content text)")
    for target in ("text", "json"):
        session.execute(
            f"""create function evil_{target}(evil) returns {target} language plpgsql
                as $$ begin insert into public.ran_as values (current_user); return '1'; end $$"""
        )
        session.execute(
            f"create cast (evil as {target}) with function evil_{target}(evil) as implicit"
        )
    return session


@pytest.mark.parametrize("column", ["path", "note"])
def test_a_watched_column_cannot_get_a_type_whose_cast_would_run_as_ragstones_owner(owner, column):
    with pytest.raises(psycopg.errors.DatatypeMismatch) as error:
        owner.execute(f"alter table files alter {column} type evil using row('x')::evil")
    assert column in error.value.diag.message_primary


def test_nor_can_another_column_take_its_name(owner):
    owner.execute("alter table files add innocent evil")
    owner.execute("begin")
    with pytest.raises(psycopg.errors.DatatypeMismatch):
        owner.execute("alter table files rename path to old_path")
        owner.execute("alter table files rename note to old_note")
        owner.execute("alter table files drop constraint files_pkey")
        owner.execute("alter table files rename innocent to path")
        owner.execute("alter table files alter old_path type evil using row('x')::evil")
    owner.execute("rollback")


def test_metadata_of_an_owners_type_is_taken_as_text_and_runs_nothing_of_theirs(owner, db):
    owner.execute("alter table files alter state type evil using row(state)::evil")
    owner.execute("insert into files values (1, 'a.txt', null, row('draft')::evil)")
    owner.execute("update files set state = row('final')::evil")
    assert value(db, "select metadata from rag.documents") == {"state": "(final)"}
    assert rows(db, "select who from ran_as where who <> 'ragstone_owner'") == []


def test_an_enum_or_domain_in_the_metadata_reads_as_before(db):
    db.execute("create type phase as enum ('draft', 'final')")
    db.execute("create domain pages as integer")
    db.execute("create table files (id integer primary key, path text, phase phase, pages pages)")
    db.execute(
        "select rag.attach_source('files', path_column => 'path', metadata_columns => '{phase,pages}')"
    )
    db.execute("insert into files values (1, 'a.txt', 'draft', 7)")
    assert value(db, "select metadata from rag.documents") == {"phase": "draft", "pages": 7}

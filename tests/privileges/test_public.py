"""Nothing of ragstone is for everybody."""

from __future__ import annotations

import psycopg
import pytest
from helpers import rows


def test_public_has_no_privilege_on_any_object(db):
    assert (
        rows(
            db,
            """select 'routine ' || p.oid::regprocedure from pg_proc p
           where p.pronamespace = 'rag'::regnamespace and has_function_privilege('public', p.oid, 'execute')
           union all
           select 'relation ' || c.oid::regclass from pg_class c
           where c.relnamespace = 'rag'::regnamespace and c.relkind in ('r', 'p', 'v', 'S')
             and (c.relkind = 'S' and has_sequence_privilege('public', c.oid, 'usage, select, update')
                  or c.relkind <> 'S' and has_table_privilege('public', c.oid, 'select, insert, update, delete, truncate'))""",
        )
        == []
    )


def test_every_function_pins_its_search_path(db):
    """But PL/Python and a procedure that commits, which name every object in full, SQL bodies that were bound when they were made, and C."""
    assert (
        rows(
            db,
            """select p.oid::regprocedure::text from pg_proc p join pg_language l on l.oid = p.prolang
           where p.pronamespace = 'rag'::regnamespace and l.lanname not in ('plpython3u', 'internal') and p.prosqlbody is null
                 and p.oid <> 'rag.rebuild_index(text, text, jsonb, text)'::regprocedure
             and not coalesce(p.proconfig @> '{"search_path=pg_catalog, pg_temp"}', false)""",
        )
        == []
    )


@pytest.mark.parametrize(
    "call",
    [
        "select rag.set('document_root', '/etc')",
        "select rag._folder_problem('/etc')",
        "call rag.drain()",
        "select rag.embed('x')",
        "select * from rag.search_documents('x')",
        "select * from rag.documents",
        "select rag._source_content(1, '1')",
    ],
)
def test_a_role_without_grants_can_call_nothing(db, connect, call):
    name = "ragstone_nobody"
    session = connect()
    session.execute(
        f"do $$ begin create role {name}; exception when duplicate_object or unique_violation then null; end $$"
    )
    session.execute(f"set role {name}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(call)

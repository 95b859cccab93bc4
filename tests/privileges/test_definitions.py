"""Rules that every function keeps, whoever adds it."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
from helpers import rows, value

SQL = "".join(
    p.read_text() for p in sorted((Path(__file__).resolve().parents[2] / "sql").glob("*.sql"))
)


def test_whatever_runs_with_its_owners_rights_says_why(db):
    definers = {
        name
        for (name,) in rows(
            db, "select proname from pg_proc where pronamespace = 'rag'::regnamespace and prosecdef"
        )
    }
    explained = set(
        re.findall(
            r"create or replace function rag\.(\w+)(?:(?!create or replace)[\s\S])*?\n  -- SECURITY DEFINER: .*\n(?:  -- .*\n)*  security definer\n",
            SQL,
        )
    )
    assert definers == explained


# Read by functions, and what a session that sets them otherwise can gain by it.
SETTINGS = {
    "role",  # who is asking: can only be set to a role that one is a member of
    "ragstone.tenant_id",  # see rag.current_tenant()
    "ragstone.without_pg_cron",  # at install only, by a superuser
    "server_version", "server_version_num", "data_directory", "max_worker_processes", "max_parallel_workers",
    "cron.use_background_workers",  # not settable by a session
    "transaction_read_only", "transaction_isolation",  # of the own transaction
    "maintenance_work_mem", "max_parallel_maintenance_workers",  # of an administrator who builds an index, and bounded there
}  # fmt: skip


def test_no_setting_that_a_session_can_make_decides_a_path_a_host_or_a_model(db):
    sources = "".join(
        source
        for (source,) in rows(
            db,
            "select coalesce(pg_get_function_sqlbody(oid), prosrc) from pg_proc where pronamespace = 'rag'::regnamespace",
        )
    )
    read = set(re.findall(r"current_setting\(\s*'([^']+)'", sources))
    assert read <= SETTINGS
    assert not re.search(r"current_setting\(\s*[^'\s)]", sources)


def test_python_asks_for_no_setting_and_no_environment():
    package = Path(__file__).resolve().parents[2] / "plpy_lib" / "ragstone"
    code = {p.name: p.read_text() for p in package.rglob("*.py")}
    assert [
        n
        for n, text in code.items()
        if "current_setting" in text
        or re.search(r"os\.(getenv|environ\.get|environ\[[^\]]+\](?!\s*=))", text)
    ] == []


HOSTILE = """x'); drop table rag.documents; -- "$1 %s {} \\' $$ :a"""

# For each type of an argument, a value that would do harm where it was pasted into a statement.
VALUES = {
    "text": HOSTILE, "name": HOSTILE[:60], "text[]": [HOSTILE], "name[]": [HOSTILE[:60]],
    "jsonb": f'{{"{HOSTILE[:3]}": 1}}', "json": "[]", "tsquery": None, "regclass": None,
}  # fmt: skip

# Said on purpose about an argument that is wrong, or because a role may not.
DELIBERATE = {
    "22004",
    "22023",
    "22000",
    "42704",
    "42703",
    "42804",
    "42809",
    "42501",
    "54000",
    "55000",
    "55006",
    "0LP01",
    "42710",
    "0A000",
    "P0001",
    "22P02",
    "25001",
}

CALLABLE = """
  select p.oid::regprocedure::text, p.prokind = 'p', coalesce(p.proargnames, '{}'),
         array(select format_type(t, null) from unnest(p.proargtypes::oid[]) t)
  from pg_proc p
  where p.pronamespace = 'rag'::regnamespace and p.proname !~ '^_' and p.prokind in ('f', 'p')
    and p.proargtypes::oid[] && '{text,name,text[],name[],jsonb}'::regtype[]::oid[]
"""


def test_no_name_and_no_filter_is_ever_run(db, add, drain):
    """Every public function, every argument of text, one after the other."""
    add(1, "Some text to be found.")
    drain()
    db.execute(
        "select rag.attach_source('rag.uploads', content_column => 'content', name_column => 'name')"
    )
    before = value(db, "select count(*) from pg_class where relnamespace = 'rag'::regnamespace")
    tried = 0
    wrong = []
    for signature, is_procedure, names, types in rows(db, CALLABLE):
        for n, type_ in enumerate(types):
            if type_ not in ("text", "name", "text[]", "name[]", "jsonb"):
                continue
            arguments = {names[n]: (VALUES[type_], type_)}
            for name, other in zip(names[: len(types)], types, strict=True):
                needed = name in (
                    "query_text",
                    "relation",
                    "content",
                    "name",
                    "role",
                    "role_name",
                    "value",
                    "tenant_id",
                    "query_embedding",
                    "priority",
                    "queries",
                    "judgements",
                    "languages",
                )
                if name not in arguments and needed:
                    arguments[name] = (plain(db, name, other), other)
            function = signature.partition("(")[0]
            call = (
                f"{'call' if is_procedure else 'select * from'} {function}("
                + ", ".join(f"{k} => %s::{t}" for k, (_, t) in arguments.items())
                + ")"
            )
            tried += 1
            try:
                db.execute("begin")
                db.execute(call, [v for v, _ in arguments.values()])
            except psycopg.Error as error:
                if error.sqlstate not in DELIBERATE:
                    wrong.append((signature, names[n], error.sqlstate, str(error).splitlines()[0]))
            finally:
                db.execute("rollback")
    assert wrong == []
    assert (
        value(db, "select count(*) from pg_class where relnamespace = 'rag'::regnamespace")
        == before
    )
    assert value(db, "select count(*) from rag.documents") == 1
    assert tried > 40


def plain(db, name, type_):
    """A value that is as it should be."""
    if name == "query_embedding":
        return value(db, "select rag.embed('x')::text")
    return {
        "regclass": '"TblDocumentFiles"',
        "text": "text",
        "name": "a name",
        "integer": 1,
        "bigint": 1,
        "bytea": b"x",
    }.get(type_)


@pytest.mark.parametrize("name", [HOSTILE[:50], 'two"quotes""', "sch.ema", "tab\tand space"])
def test_tables_and_columns_of_any_name_are_attached_searched_and_detached(db, drain, name):
    table, column = (psycopg.sql.Identifier(n).as_string(db) for n in (name, name[:40] + "c"))
    db.execute(
        f'create table {table} (id integer primary key, {column} text, {column[:-1]}2" text)'
    )
    quoted = value(db, "select %s::regclass::text", table)
    db.execute(
        "select rag.attach_source(%s, content_column => %s, title_column => %s, name => %s)",
        [quoted, name[:40] + "c", name[:40] + "c2", name],
    )
    db.execute(f"insert into {table} values (1, 'A text to be found.', 'title')")
    drain()
    assert (
        value(db, "select content from rag.search_documents('text', source => %s)", name)
        == "A text to be found."
    )
    db.execute(f"update {table} set {column} = 'Another text.'")
    drain()
    assert value(db, "select content from rag.search_documents('text')") == "Another text."
    db.execute(f"delete from {table}")
    assert rows(db, "select from rag.search_documents('text')") == []
    db.execute("select rag.detach_source(%s)", [quoted])

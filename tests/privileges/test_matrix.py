"""What each level of rag.grant_usage() may do: the table in sql/88_grants.sql against the server's answer."""

from __future__ import annotations

import os
import re

import psycopg
import pytest
from helpers import rows, value

# What a message tells the reader to type: the hint of an error, which can have literals on several
# lines, and calls of procedures, which no function here makes itself.
HINT = re.compile(r"\bhint\s*=\s*(?:format\()?(?:'(?:[^']|'')*'\s*)+|\bcall rag\.\w+")
LEVELS = ("search", "ingest", "operate", "admin")
# Whoever may read the server's files has it.
NO_LEVEL = {"_set_document_root"}

GRANTED = """
  select 'routine ' || p.oid::regprocedure || ' execute' from pg_proc p
  where p.pronamespace = 'rag'::regnamespace and has_function_privilege(%(role)s, p.oid, 'execute')
  union all
  select format('table %%s %%s%%s', c.oid::regclass, lower(v), ' of ' || case when has_table_privilege(%(role)s, c.oid, v) then null else
           (select string_agg(a.attname, ', ' order by a.attnum) from pg_attribute a
            where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and has_column_privilege(%(role)s, c.oid, a.attnum, v)) end)
  from pg_class c cross join unnest('{SELECT,INSERT,UPDATE,REFERENCES}'::text[]) v
  where c.relnamespace = 'rag'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f') and has_any_column_privilege(%(role)s, c.oid, v)
  union all
  select format('table %%s %%s', c.oid::regclass, lower(v))
  from pg_class c cross join unnest('{DELETE,TRUNCATE,TRIGGER}'::text[]) v
  where c.relnamespace = 'rag'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f') and has_table_privilege(%(role)s, c.oid, v)
  union all
  select format('sequence %%s %%s', c.oid::regclass, lower(v))
  from pg_class c cross join unnest('{USAGE,SELECT,UPDATE}'::text[]) v
  where c.relnamespace = 'rag'::regnamespace and c.relkind = 'S' and has_sequence_privilege(%(role)s, c.oid, v)
"""


def intended(db, level):
    """Lines of the table; where it grants both all columns and some, all is what counts."""
    found = {}
    for kind, name, privilege, columns in rows(
        db,
        "select kind, case kind when 'routine' then object::regprocedure::text else object end, privilege, columns from rag._level_privileges(%s)",
        level,
    ):
        key = f"{kind} {name} {privilege}"
        if columns is None or found.get(key, "") is None:
            found[key] = None
        else:
            wanted = {c.strip() for c in columns.split(",")} | set(found.get(key, ()))
            found[key] = wanted
    return found


def granted(db, role):
    found = {}
    for (line,) in db.execute(GRANTED, {"role": role}).fetchall():
        key, _, columns = line.partition(" of ")
        found[key] = {c.strip() for c in columns.split(",")} if columns else None
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_has_the_privileges_of_its_row_and_no_other(db, role, level):
    assert granted(db, role(level)) == intended(db, level)


def test_levels_add_up_and_revoking_takes_all(db, role):
    name = role("search", "ingest")
    assert granted(db, name).keys() == intended(db, "search").keys() | intended(db, "ingest").keys()
    db.execute("select rag.revoke_usage(%s)", [name])
    assert granted(db, name) == {}
    assert not value(db, "select has_schema_privilege(%s, 'rag', 'usage')", name)


def test_every_row_of_the_table_names_something_that_exists(db):
    assert (
        rows(
            db,
            "select * from rag._privileges() where level not in ('search', 'ingest', 'operate', 'admin')",
        )
        == []
    )
    assert (
        rows(
            db,
            """select p.object from rag._privileges() p
               where not exists (select from pg_proc f where f.pronamespace = 'rag'::regnamespace and f.proname = p.object and p.kind = 'routine')
                 and not exists (select from pg_class c where c.relnamespace = 'rag'::regnamespace and c.relname = p.object and p.kind = 'table')""",
        )
        == []
    )


@pytest.mark.parametrize("level", LEVELS)
def test_private_functions_are_granted_as_far_as_public_ones_need_them(db, level):
    """What runs with the caller's rights calls the rest as the caller: that, and nothing more, is granted."""
    parts: dict[str, str] = {}
    for name, source, is_definer in rows(
        db,
        """select p.proname, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc), p.prosecdef
           from pg_proc p where p.pronamespace = 'rag'::regnamespace
           union all
           select c.relname, pg_get_viewdef(c.oid), false from pg_class c
           where c.relnamespace = 'rag'::regnamespace and c.relkind = 'v'""",
    ):
        # A definer's parts are called as its owner; what a hint tells to type is not called.
        code = "" if is_definer else HINT.sub("", source)
        parts[name] = parts.get(name, "") + code
    listed = {
        (kind, name)
        for kind, name in rows(
            db,
            "select kind, object from rag._privileges() where level = %s",
            level,
        )
    }
    if level == "admin":
        listed = set(rows(db, "select kind, object from rag._privileges()"))
    needed: set[str] = set()
    waiting = [name for _, name in listed if not name.startswith("_")]
    while waiting:
        if (name := waiting.pop()) not in needed and name in parts:
            needed.add(name)
            waiting.extend(re.findall(r"\brag\.(\w+)\s*\(", parts[name]))
    views = {name for kind, name in listed if kind == "table"}
    assert {name for kind, name in listed if kind == "routine"} == needed - views - NO_LEVEL


UNTRUSTED = """
  select p.oid::regprocedure::text from pg_proc p join pg_language l on l.oid = p.prolang
  where p.pronamespace = 'rag'::regnamespace and not l.lanpltrusted and l.lanname not in ('sql', 'internal')
    and has_function_privilege(%s, p.oid, 'execute')
"""


@pytest.mark.parametrize("level", LEVELS)
def test_no_level_may_call_python_itself(db, role, level):
    assert rows(db, UNTRUSTED, role(level)) == []


# What is typed, and which levels may.
CALLS = [
    ("select * from rag.search_documents('humid')", {"search"}),
    ("select rag.embed('x')", {"search"}),
    ("select content from rag.document_chunks", {"search"}),
    ("select title from rag.documents", {"search", "operate"}),
    ("select last_error from rag.documents", {"operate"}),
    ("select rag.add_document(name => 'a.txt', content => convert_to('text', 'UTF8'))", {"ingest"}),
    ("select rag.remove_document(1)", {"ingest"}),
    ("select * from rag.job(1)", {"ingest", "operate"}),
    ("select content from rag.uploads", set()),
    ("select * from rag.ingestion_log", {"operate"}),
    ("select * from rag.worker_activity", {"operate"}),
    ("select * from rag.ingestion_queue", {"ingest", "operate"}),
    ("select rag.stop_workers()", {"operate"}),
    ("select rag.cleanup_orphaned_chunks()", {"operate"}),
    ("select rag.get('document_root')", {"operate"}),
    ("select * from rag.settings", {"operate"}),
    ("select rag.set('max_pages', '10')", {"admin"}),
    ("select rag.enqueue_existing('files')", {"admin"}),
    ("select rag.detach_source('files')", {"admin"}),
    # Nobody but a superuser.
    ("call rag.drain()", None),
    ("select rag.grant_usage('ragstone_nobody')", None),
    ("select rag._folder_problem('/etc')", None),
    ("select rag._embed('x', 'all-MiniLM-L6-v2')", None),
    ("select rag._source_content(1, '1')", None),
    ("select * from rag._lexemes", None),
    ("select * from rag._background", None),
    ("select * from rag._query_cache", None),
    ("select * from rag._settings", None),
    (
        "insert into rag.sources (name, relation, key_column, assigns_ids, content_column) values ('x', 'pg_authid', 'oid', true, 'rolpassword')",
        None,
    ),
    ("update rag.models set location = '/tmp'", None),
    ("update rag.documents set tenant_id = 1", None),
    ("delete from rag.document_chunks", None),
    ("select * from rag.document_chunks_1", None),
    ("create table rag.mine (i integer)", None),
    ("create trigger t after insert on rag.uploads execute function rag._after_insert(1)", None),
]


@pytest.mark.parametrize("level", [*LEVELS, "nothing"])
def test_a_role_can_do_what_its_level_says(db, document_root, drain, session_of, level):
    (document_root / "a.txt").write_text("Keep the store cool and not too humid.")
    db.execute("create table files (id integer primary key, path text)")
    db.execute("select rag.attach_source('files', path_column => 'path')")
    db.execute("insert into files values (1, 'a.txt')")
    drain()
    session = session_of(*([] if level == "nothing" else [level]))
    wrong = []
    for call, levels in CALLS:
        may = levels is not None and (
            level in levels or (level == "admin" and call != "select content from rag.uploads")
        )
        session.execute("begin")
        try:
            session.execute(call)
            could = True
        except psycopg.errors.InsufficientPrivilege:
            could = False
        except psycopg.Error as error:
            could = f"{error.sqlstate} {error}"
        session.execute("rollback")
        if could is not may:
            wrong.append((call, could))
    assert wrong == []


def test_only_its_owner_attaches_a_table(db, session_of):
    admin = session_of("admin")
    db.execute("create table secrets (id integer primary key, content text)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as error:
        admin.execute("select rag.attach_source('secrets', content_column => 'content')")
    assert "owner" in error.value.diag.message_primary
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        admin.execute(
            "select rag.attach_source('pg_catalog.pg_authid', content_column => 'rolpassword')"
        )

    name = value(admin, "select current_user")
    db.execute(
        f"create table own (id integer primary key, content text); alter table own owner to {name}"
    )
    admin.execute("select rag.attach_source('own', content_column => 'content')")
    admin.execute("insert into own values (1, 'My own text.')")
    db.execute("call rag.drain()")
    assert value(admin, "select content from rag.search_documents('text')") == "My own text."
    admin.execute("select rag.detach_source('own')")


def test_the_document_root_is_set_by_those_who_may_read_the_servers_files(
    db, session_of, document_root
):
    admin = session_of("admin")
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as error:
        admin.execute("select rag.set('document_root', '/')")
    assert "pg_read_server_files" in error.value.diag.message_hint
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        admin.execute("select rag.set('document_root', null)")
    name = value(admin, "select current_user")
    db.execute(f"grant pg_read_server_files to {name}")
    admin.execute("select rag.set('document_root', %s)", [str(document_root)])
    assert value(db, "select updated_by from rag._settings where name = 'document_root'") == name


def test_nor_by_their_code_in_a_superusers_session(db, session_of):
    """As an index has some: session_user is then the superuser's."""
    admin = session_of("admin")
    name = value(admin, "select current_user")
    before = value(db, "select rag.get('document_root')")
    db.execute(f"create schema own authorization {name}")
    admin.execute(
        """create function own.climb(integer) returns integer language plpgsql immutable as $$ begin
             perform rag.set('document_root', '/etc'); return $1; end $$"""
    )
    admin.execute("create table own.bait as select generate_series(1, 10) as id")
    # As a superuser the function may be called by the owner's index alone.
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="read the server"):
        admin.execute("create index on own.bait (own.climb(id))")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="read the server"):
        admin.execute(
            "create function own.root() returns text security definer language sql as $$ select rag.set('document_root', '/etc') $$;"
            " create view own.trap as select own.root()"
        )
        db.execute("select * from own.trap")
    assert value(db, "select rag.get('document_root')") == before


def test_the_document_root_never_shows_the_servers_own_files(db, document_root):
    data = value(db, "show data_directory")
    (document_root / "link").symlink_to(data)
    libraries = value(db, "select setting from pg_config where name = 'PKGLIBDIR'")
    for root in (
        *("/", "//", "/.", "/tmp/..", "/proc", "/etc"),
        *(data, f"{data}/base", f"{data}/..", str(document_root / "link"), libraries),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue) as error:
            db.execute("select rag.set('document_root', %s)", [root])
        assert error.value.diag.message_detail
        assert "/folder/of/the/documents" in error.value.diag.message_hint


def test_nor_a_tablespace(db, document_root):
    space = document_root / "disk" / "space"
    space.mkdir(parents=True)
    os.chown(space, os.stat(value(db, "show data_directory")).st_uid, -1)
    db.execute(f"create tablespace test_{os.getpid()} location '{space}'")
    try:
        for root in (space, space.parent):
            with pytest.raises(psycopg.errors.InvalidParameterValue) as error:
                db.execute("select rag.set('document_root', %s)", [str(root)])
            assert "server's own data" in error.value.diag.message_detail
        (document_root / "documents").mkdir()
        db.execute("select rag.set('document_root', %s)", [str(document_root / "documents")])
    finally:
        db.execute(f"drop tablespace test_{os.getpid()}")


def test_a_root_that_leads_to_the_servers_files_by_now_shows_nothing(
    db, table, document_root, drain
):
    root = document_root / "root"
    (document_root / "documents").mkdir()
    (document_root / "documents" / "postgresql.conf").write_text("No database, but a text.")
    root.symlink_to("documents")
    db.execute("select rag.set('document_root', %s)", [str(root)])
    root.unlink()
    root.symlink_to(value(db, "show data_directory"))
    db.execute(f"insert into {table} values (1, 'postgresql.conf')")
    drain()
    assert rows(db, "select error_code from rag.ingestion_queue") == [("root_unfit",)]
    ((ok, detail),) = rows(
        db, """select ok, detail from rag.check() where "check" = 'document_root'"""
    )
    assert ok is False
    assert "server's own data" in detail
    db.execute("select rag.set('document_root', %s)", [str(document_root / "documents")])
    drain()
    assert value(db, "select content from rag.document_chunks") == "No database, but a text."


def test_row_security_on_chunks_and_documents_limits_a_search(db, session_of, add_tenants):
    session = session_of("search")
    for table in ("document_chunks", "documents"):
        db.execute(f"alter table rag.{table} enable row level security")
        db.execute(
            f"create policy own_tenant on rag.{table} using (tenant_id = current_setting('app.tenant', true)::bigint)"
        )
    session.execute("set app.tenant = '1'")
    assert rows(session, "select content from rag.search_documents('secret')") == [
        ("The secret of tenant 1.",)
    ]
    assert (
        rows(session, "select content from rag.search_documents('secret', tenant_filter => 2)")
        == []
    )
    session.execute("set app.tenant = ''")
    with pytest.raises(psycopg.Error):
        session.execute("select content from rag.search_documents('secret')")


@pytest.fixture
def add_tenants(db, drain):
    for tenant in (1, 2):
        db.execute(
            "select rag.add_document(name => 'a.txt', content => convert_to(%s, 'UTF8'), tenant_id => %s)",
            [f"The secret of tenant {tenant}.", tenant],
        )
    drain()


def test_row_security_on_uploads_limits_who_may_add_for_a_tenant(db, session_of):
    session = session_of("ingest")
    db.execute("alter table rag.uploads enable row level security")
    db.execute(
        "create policy own_tenant on rag.uploads using (tenant_id = current_setting('app.tenant', true)::bigint)"
    )
    session.execute("set app.tenant = '1'")
    add = "select rag.add_document(name => 'a.txt', content => 'x'::bytea, tenant_id => %s)"
    assert value(session, add, 1) is not None
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(add, [2])
    db.execute(
        "insert into rag.uploads (upload_id, name, content, tenant_id) values (99, 'b.txt', 'x', 2)"
    )
    assert value(session, "select rag.remove_document(99)") is False


@pytest.mark.parametrize(
    ("role_name", "level", "sqlstate"),
    [
        ("public", "search", "0LP01"),
        ("nobody_of_that_name", "search", "42704"),
        ("postgres", "owner", "22023"),
        ("postgres", None, "22023"),
    ],
)
def test_a_grant_that_cannot_be_says_what_to_type(db, role_name, level, sqlstate):
    with pytest.raises(psycopg.Error) as error:
        db.execute("select rag.grant_usage(%s, level => %s)", [role_name, level])
    assert error.value.sqlstate == sqlstate
    assert error.value.diag.message_hint


def test_a_role_with_an_awkward_name_is_granted_and_revoked(db):
    name = 'we"ird; drop table rag.documents; --'
    quoted = psycopg.sql.Identifier(name).as_string(db)
    db.execute(f"create role {quoted}")
    try:
        db.execute("select rag.grant_usage(%s, level => 'admin')", [name])
        assert rows(db, "select level, missing from rag.usage_grants where role = %s", name) == [
            ("admin", 0)
        ]
        db.execute("select rag.revoke_usage(%s)", [name])
        assert rows(db, "select from rag.usage_grants where role = %s", name) == []
    finally:
        db.execute(f"drop role {quoted}")


def test_what_an_update_adds_is_shown_as_missing_until_granted_again(db, role):
    name = role("search")
    db.execute(f"revoke execute on function rag.embed(text, text) from {name}")
    missing = "select missing from rag.usage_grants where role = %s"
    assert value(db, missing, name) == 1
    db.execute("select rag.grant_usage(%s)", [name])
    assert value(db, missing, name) == 0

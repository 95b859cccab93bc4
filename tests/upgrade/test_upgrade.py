"""A database that was updated is as one that was made anew, and none that worked before stops.

Every released version is updated to this one; and this one to the next, which is made up here, so that
the way is tried before there is anything to be released.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from conftest import ROOT
from helpers import rows, value

from tools import assemble

SOURCES = assemble.Sources(ROOT)
CURRENT = str(SOURCES.control.version)
# The server's folders are shared by all processes of a test run.
NEXT = f"9.{os.getpid()}.0"
CARD = ROOT / "build/model/model.json"
MIGRATION = """\
alter table rag.documents add column made_up integer not null default 7;
create table rag._made_up (n integer primary key);
select pg_catalog.pg_extension_config_dump('rag._made_up', '');
"""

CATALOG = {
    "functions": """
      select p.oid::regprocedure::text, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), p.prosecdef, p.provolatile,
             p.proconfig, p.proacl::text, obj_description(p.oid, 'pg_proc'), p.prosrc
        from pg_proc p where p.pronamespace = 'rag'::regnamespace order by 1""",
    "relations": """
      select c.oid::regclass::text, c.relkind, c.relpersistence, c.relrowsecurity, c.reloptions, c.relacl::text, obj_description(c.oid, 'pg_class'),
             case c.relkind when 'v' then pg_get_viewdef(c.oid) end
        from pg_class c where c.relnamespace = 'rag'::regnamespace and c.relname !~ '^document_chunks_\\d' order by 1""",
    "columns": """
      select a.attrelid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage, a.attidentity,
             pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)
        from pg_attribute a join pg_class c on c.oid = a.attrelid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
       where c.relnamespace = 'rag'::regnamespace and a.attnum > 0 and not a.attisdropped and c.relname !~ '^document_chunks_\\d' order by 1, a.attnum""",
    "constraints": """
      select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint
       where connamespace = 'rag'::regnamespace and conrelid::regclass::text !~ 'document_chunks_\\d' order by 1, 2""",
    "indexes": "select tablename, indexdef from pg_indexes where schemaname = 'rag' and tablename !~ '^document_chunks_\\d' order by 1, 2",
    "triggers": "select tgrelid::regclass::text, pg_get_triggerdef(oid), tgenabled from pg_trigger where tgrelid::regclass::text like 'rag.%' and not tgisinternal and tgname !~ '^ragstone_' order by 1, 2",
    "event triggers": "select evtname, evtevent, evtfoid::regproc::text, evtenabled, evttags from pg_event_trigger order by 1",
    "dumped": "select c::regclass::text, w from pg_extension e, unnest(e.extconfig, e.extcondition) u (c, w) where e.extname = 'ragstone' order by 1",
    "members": """
      select pg_describe_object(d.classid, d.objid, 0) from pg_depend d join pg_extension e on e.oid = d.refobjid
       where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e' and e.extname = 'ragstone' order by 1""",
    "settings": "select name, default_value from rag.settings order by 1",
    "models": "select * from rag.models order by name",
}
ANSWERS = {
    "search": "select document_id, content, round(hybrid_score::numeric, 5) from rag.search_documents('a text about foxes')",
    "documents": "select document_id, status, generation from rag.documents order by 1",
    "queue": "select document_id, status from rag.ingestion_queue order by job_id",
    "pipelines": "select name, state, chunk_size from rag.pipelines order by 1",
    "max_pages": "select rag.get('max_pages')",
}


def test_what_was_released_does_not_change():
    """Raise default_version and write a new migration instead."""
    assert assemble.changed_since_release(ROOT) == []


def test_a_released_version_is_built_as_it_was_released(tmp_path: Path):
    """Once a version is frozen, any change of SQL begins with a raised default_version."""
    frozen = SOURCES.archive(SOURCES.control.version)
    if not frozen.exists():
        pytest.skip(f"{CURRENT} is not released yet")
    values = assemble.values_for(SOURCES.control, CARD)
    assert SOURCES.script(values) == assemble.released_script(frozen)


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Scripts and package of the version after this one, installed beside it."""
    copy = tmp_path_factory.mktemp("next")
    for folder in ("extension", "migrations", "sql", "plpy_lib"):
        shutil.copytree(ROOT / folder, copy / folder)
    sources = assemble.Sources(copy)
    if not sources.archive(sources.control.version).exists():
        assemble.freeze(sources, CARD)
    control = copy / "extension/ragstone.control"
    control.write_text(control.read_text().replace(f"'{CURRENT}'", f"'{NEXT}'"))
    (copy / "migrations" / f"{NEXT}.sql").write_text(MIGRATION)
    shutil.rmtree(copy / "sql")
    shutil.copytree(ROOT / "sql", copy / "sql")
    (copy / "sql/99_made_up.sql").write_text(
        "create or replace function rag.made_up() returns integer language sql set search_path = pg_catalog, pg_temp as 'select 7';\n"
    )
    assemble.build(sources, CARD, copy / "build")

    extensions = Path(ask("--sharedir")) / "extension"
    package = Path(ask("--pkglibdir")) / "ragstone" / NEXT
    if not os.access(extensions, os.W_OK):
        pytest.skip("the server's folders can be written by root only")
    new = [f"ragstone--{NEXT}.sql", f"ragstone--{CURRENT}--{NEXT}.sql"]
    try:
        for name in new:
            shutil.copy(copy / "build" / name, extensions)
        copy_package(CURRENT, package)
        yield NEXT
    finally:
        for name in new:
            (extensions / name).unlink(missing_ok=True)
        shutil.rmtree(package, ignore_errors=True)


def ask(option: str) -> str:
    server = subprocess.run(
        [ROOT / "tools/deps.sh", "pg_config"], check=True, capture_output=True, text=True
    )
    done = subprocess.run(
        [server.stdout.strip(), option], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def copy_package(version: str, target: Path) -> None:
    """A package that differs in its version alone."""
    shutil.copytree(target.parent / version, target, copy_function=os.link)


@contextmanager
def released_package(version: str) -> Iterator[None]:
    """The package of a released version as it was released, with this version's libraries."""
    target = Path(ask("--pkglibdir")) / "ragstone" / version
    if target.exists():
        yield
        return
    if not os.access(target.parent, os.W_OK):
        pytest.skip("the server's folders can be written by root only")
    try:
        copy_package(CURRENT, target)
        shutil.rmtree(target / "ragstone")
        with tarfile.open(SOURCES.released()[assemble.Version.parse(version)]) as archive:
            for name in archive.getnames():
                if name.endswith(".py"):
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    (target / name).write_bytes(archive.extractfile(name).read())
        yield
    finally:
        shutil.rmtree(target, ignore_errors=True)


@pytest.fixture
def old(request, cluster, empty_database) -> Iterator[tuple[psycopg.Connection, str]]:
    """A database of an older version, at work, and the version it is to become."""
    version, target = request.param
    with ExitStack() as stack:
        if target == NEXT:
            request.getfixturevalue("next_version")
        else:
            stack.enter_context(released_package(version))
        db = stack.enter_context(cluster.connect(empty_database))
        db.execute(f"create extension ragstone version '{version}' cascade")
        load(db)
        yield db, target


def load(db: psycopg.Connection) -> None:
    db.execute("create table notes (id integer primary key, body text)")
    db.execute("select rag.attach_source('notes', content_column => 'body')")
    db.execute("insert into notes values (1, 'A text about foxes.'), (2, 'A text about geese.')")
    db.execute("select rag.set('max_pages', '77')")
    db.execute("select rag.create_pipeline('other', chunk_size => 300)")
    db.execute("call rag.drain()")
    db.execute("insert into notes values (3, 'Not processed before the update.')")


def state(db: psycopg.Connection, queries: dict[str, str]) -> dict[str, list]:
    return {name: rows(db, sql) for name, sql in queries.items()}


PAIRS = [*((str(version), CURRENT) for version in SOURCES.released()), (CURRENT, NEXT)]


@pytest.mark.parametrize("old", PAIRS, indirect=True, ids=[a for a, _ in PAIRS])
def test_an_updated_database_is_as_a_new_and_as_a_restored_one(cluster, old, tmp_path):
    db, target = old
    before = state(db, ANSWERS)
    db.execute(f"alter extension ragstone update to '{target}'")
    # A session loads the package once.
    with cluster.connect(db.info.dbname) as updated:
        assert state(updated, ANSWERS) == before
        catalog = state(updated, CATALOG)
        updated.execute("call rag.drain()")
        assert value(
            updated, "select content from rag.search_documents('processed', match_count => 1)"
        ).startswith("Not")
        assert rows(updated, "select * from rag.check_consistency()") == []
        answers = state(updated, ANSWERS)

    with cluster.connect("postgres") as admin:
        for name in ("fresh", "restored"):
            admin.execute(f"create database {db.info.dbname}_{name}")
        try:
            for name in ("fresh", "restored"):
                with cluster.connect(f"{db.info.dbname}_{name}") as other:
                    other.execute(f"create extension ragstone version '{target}' cascade")
                    assert state(other, CATALOG) == catalog
            restore(cluster, db.info.dbname, f"{db.info.dbname}_restored", tmp_path / "dump")
            with cluster.connect(f"{db.info.dbname}_restored") as other:
                assert state(other, ANSWERS) == answers
                assert state(other, CATALOG) == catalog
        finally:
            for name in ("fresh", "restored"):
                admin.execute(f"drop database {db.info.dbname}_{name} with (force)")


def restore(cluster, source: str, target: str, dump: Path) -> None:
    """Into a database that has the extension already, in the version that the dump does not name."""
    for command in (
        ["pg_dump", "-Fc", "-f", str(dump), source],
        ["pg_restore", "-d", target, str(dump)],
    ):
        done = subprocess.run(
            command, env=cluster.environment(source), capture_output=True, text=True
        )
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
        assert [e for e in errors if 'schema "rag" already exists' not in e] == []


@pytest.mark.parametrize("old", PAIRS[-1:], indirect=True, ids=["next"])
def test_open_sessions_are_told_to_reconnect_and_workers_end(cluster, old):
    db, target = old
    with cluster.connect(db.info.dbname) as open_session:
        open_session.execute("select rag.embed('loads the package')")
        ended = threading.Event()
        worker = threading.Thread(target=work, args=(cluster, db.info.dbname, ended))
        worker.start()
        wait(lambda: value(db, "select count(*) from rag.workers") == 1)
        db.execute(f"alter extension ragstone update to '{target}'")
        assert ended.wait(10), "a worker of the version before goes on"
        worker.join()
        assert rows(db, "select * from rag.workers") == []

        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as error:
            open_session.execute("select rag.embed('again')")
        assert re.search(
            rf"{re.escape(CURRENT)} in memory.* {re.escape(target)}",
            error.value.diag.message_primary,
        )
        assert "Reconnect" in error.value.diag.message_hint
        # What needs no model goes on.
        assert value(open_session, "select rag.made_up()") == 7
        assert (
            value(
                open_session, "select count(*) from rag.search_documents('foxes', mode => 'text')"
            )
            == 1
        )


def work(cluster, database: str, ended: threading.Event) -> None:
    with cluster.connect(database) as session:
        session.execute("call rag.drain(run_for => '60 s')")
    ended.set()


def wait(condition) -> None:
    for _ in range(100):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


@pytest.mark.parametrize("old", PAIRS[-1:], indirect=True, ids=["next"])
def test_versions_live_side_by_side(cluster, database, old):
    """One database is updated, another is not, and both work."""
    db, target = old
    db.execute(f"alter extension ragstone update to '{target}'")
    for name, version in ((db.info.dbname, target), (database, CURRENT)):
        with cluster.connect(name) as session:
            session.execute("select rag.embed('a text')")
            assert value(
                session, "select detail from rag.check() where \"check\" = 'extension'"
            ).startswith(f"database {version}")

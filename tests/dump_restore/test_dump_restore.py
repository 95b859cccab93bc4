"""A restored database answers as the dumped one did, and goes on working."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import rows, value

SAME = {
    "answers": "select source, document_id, content, round(similarity_score::numeric, 5), round(text_rank::numeric, 4), round(hybrid_score::numeric, 4) from rag.search_documents('text about foxes') order by 1, 2",
    "documents": "select source_id, document_id, generation, status, file_path from rag.documents order by 1, 2",
    "queue": "select source_id, document_id, status, attempts, error_code from rag.ingestion_queue order by job_id",
    "changes": "select source_id, keys from rag._changes order by change_id",
    "sources": "select source_id, name, relation::text from rag.sources order by 1",
    "pipelines": "select * from rag.pipelines order by 1",
    "models": "select name, dimension from rag.models order by 1",
    "settings": "select name, value from rag.settings order by 1",
    "triggers": "select tgrelid::regclass::text, tgname, tgenabled, tgargs from pg_trigger where tgname like 'ragstone%%' and tgrelid <> 'rag.uploads'::regclass order by 1, 2",
    "indexes": "select indexdef from pg_indexes where schemaname = 'rag' and tablename like 'document_chunks%%' order by 1",
    "partition": "select attname, attstorage from pg_attribute where attrelid = 'rag.document_chunks_1'::regclass and attnum > 0 order by 1",
    "statistics": "select lexeme, text_search_config, chunks from rag._lexemes order by 1, 2",
}
# pg_cron is in another database here, and nobody works on what waits.
NOT_HERE = ("pg_cron", "workers")


@pytest.fixture
def dumped(db, add, table, drain) -> dict[str, list]:
    """A database with a bit of everything; what it answers."""
    add(1, "A text about foxes.")
    add(2, "A text about geese.")
    # Named to come after rag: a restore loads tables in the order of their names.
    db.execute("create schema shop")
    db.execute("create table shop.notes (id uuid primary key default gen_random_uuid(), body text)")
    db.execute("select rag.attach_source('shop.notes', content_column => 'body')")
    db.execute("insert into shop.notes (body) values ('A note about foxes.')")
    db.execute(
        "create table shop.parts (id integer primary key, body text) partition by range (id)"
    )
    db.execute("create table shop.parts_1 partition of shop.parts for values from (0) to (10)")
    db.execute("create table shop.parts_2 partition of shop.parts for values from (10) to (20)")
    db.execute("select rag.attach_source('shop.parts', content_column => 'body')")
    db.execute(
        "insert into shop.parts values (1, 'A part about foxes.'), (11, 'A part about geese.')"
    )
    db.execute("select rag.add_document(name => 'a.txt', content => 'An upload about foxes.')")
    drain()
    add(3, "Not processed before the dump.")
    db.execute(f"insert into {table} values (4, 'missing.txt')")
    return state(db)


def state(db) -> dict[str, list]:
    return {name: rows(db, sql) for name, sql in SAME.items()}


@pytest.fixture
def other_root() -> Iterator[Path]:
    """The document root of another server."""
    with tempfile.TemporaryDirectory(prefix="ragstone-other-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def run(cluster, database, *command):
    done = subprocess.run(
        command, env=cluster.environment(database), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def dump(cluster, database, target, *options):
    run(cluster, database, "pg_dump", "-f", str(target), *options)


def restore(cluster, database, source, *options):
    run(cluster, database, "pg_restore", "--exit-on-error", "-d", database, *options, str(source))


def load(cluster, database, script):
    run(cluster, database, "psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", "-f", str(script))


def problems(db) -> list[tuple]:
    return rows(
        db,
        'select * from rag.check() where not ok and "check" <> all (%s)',
        list(NOT_HERE),
    )


def goes_on(cluster, database, before, table, root):
    """The restored database answers the same; what is inserted now is found, and nothing twice."""
    with cluster.connect(database) as db:
        assert state(db) == before
        assert problems(db) == []
        assert rows(db, "select * from rag.check_consistency()") == []
        (root / "5.txt").write_text("Inserted after the restore.")
        db.execute(f"insert into {table} values (5, '5.txt')")
        assert value(db, "select count(*) from rag.ingestion_queue where document_id = 5") == 1, (
            "triggers fire once"
        )
        db.execute("insert into shop.parts values (2, 'Another part.'), (12, 'And another.')")
        assert (
            value(db, "select count(*) from rag.ingestion_queue where document_id in (2, 12)") == 2
        )
        db.execute("call rag.drain()")
        found = "select document_id from rag.documents where source_id = 1 and status = 'completed' order by 1"
        assert [r[0] for r in rows(db, found)] == [1, 2, 3, 5]
        late = "select document_id from rag.search_documents('after the restore', match_count => 1)"
        assert value(db, late) == 5
        assert value(db, "select rag.cleanup_orphaned_chunks()") == 0
        # Triggers on tables of an extension are not dumped: these come back with the worker.
        assert (
            value(
                db,
                "select count(*) from pg_trigger where tgrelid = 'rag.uploads'::regclass and tgname like 'ragstone%%'",
            )
            == 7
        )
        assert value(db, "select rag.remove_document(1)")
        assert (
            value(
                db, "select count(*) from rag.search_documents('upload') where source = 'uploads'"
            )
            == 0
        )
        job = value(db, "select rag.add_document(name => 'b.txt', content => 'Another upload.')")
        assert value(db, "select count(*) from rag.job(%s)", job) == 1
        db.execute(f'delete from {table} where "DocumentID" = 5')
        assert (
            value(
                db,
                "select count(*) from rag.document_chunks where source_id = 1 and document_id = 5",
            )
            == 0
        )


FORMS = {
    "plain": ["-Fp"],
    "custom": ["-Fc"],
    "parallel": ["-Fd", "-j2"],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_restored_database_answers_the_same_and_goes_on(
    cluster, database, empty_database, dumped, table, document_root, tmp_path, form
):
    dump(cluster, database, tmp_path / "dump", *FORMS[form])
    if form == "plain":
        load(cluster, empty_database, tmp_path / "dump")
    else:
        jobs = ["-j2"] if form == "parallel" else []
        restore(cluster, empty_database, tmp_path / "dump", *jobs)
    goes_on(cluster, empty_database, dumped, table, document_root)


@pytest.mark.parametrize("form", FORMS)
def test_the_schema_first_and_then_the_data(
    cluster, database, empty_database, dumped, table, document_root, tmp_path, form
):
    """The triggers are there before the data: --disable-triggers keeps them from firing, and they are on again after."""
    dump(cluster, database, tmp_path / "schema", "-s")
    data = ["--data-only", "--disable-triggers"]
    load(cluster, empty_database, tmp_path / "schema")
    if form == "plain":
        dump(cluster, database, tmp_path / "data", "-Fp", *data)
        load(cluster, empty_database, tmp_path / "data")
    else:
        dump(cluster, database, tmp_path / "data", *FORMS[form])
        jobs = ["-j2"] if form == "parallel" else []
        restore(cluster, empty_database, tmp_path / "data", *data, *jobs)
    goes_on(cluster, empty_database, dumped, table, document_root)


def test_the_schema_alone_leaves_tables_that_can_be_written_and_attached(
    cluster, database, empty_database, dumped, table, tmp_path
):
    dump(cluster, database, tmp_path / "schema", "-s")
    load(cluster, empty_database, tmp_path / "schema")
    with cluster.connect(empty_database) as db:
        notices = []
        db.add_notice_handler(lambda n: notices.append(n.message_primary))
        db.execute("insert into shop.notes (body) values ('Geese and foxes.')")
        assert [n for n in notices if "is not attached" in n]
        ((name, _, detail, hint),) = problems(db)
        assert (name, "is not attached" in detail, "attach_source" in hint) == (
            "sources",
            True,
            True,
        )
        db.execute("select rag.attach_source('shop.notes', content_column => 'body')")
        db.execute("call rag.drain()")
        assert value(db, "select content from rag.search_documents('foxes')") == "Geese and foxes."


def test_a_server_with_another_document_root(
    cluster, database, empty_database, dumped, table, document_root, other_root, tmp_path
):
    dump(cluster, database, tmp_path / "dump", "-Fc")
    restore(cluster, empty_database, tmp_path / "dump")
    document_root.rename(other_root / "moved")
    try:
        with cluster.connect(empty_database) as db:
            ((name, _, _, hint),) = problems(db)
            assert (name, "rag.set('document_root'" in hint) == ("document_root", True)
            # Answers need no file.
            assert rows(db, SAME["answers"]) == dumped["answers"]
            db.execute("select rag.set('document_root', %s)", [str(other_root / "moved")])
        dumped["settings"] = [
            (name, str(other_root / "moved") if name == "document_root" else value_)
            for name, value_ in dumped["settings"]
        ]
        goes_on(cluster, empty_database, dumped, table, other_root / "moved")
    finally:
        (other_root / "moved").rename(document_root)


def test_what_the_page_says_restores_beside_the_database_of_pg_cron(own_cluster, tmp_path):
    """A dump of the database that workers run in holds pg_cron, which no second database can have."""
    cluster = own_cluster()
    with cluster.connect("cron") as db:
        db.execute("create extension ragstone cascade")
        db.execute("create table notes (id integer primary key, body text)")
        db.execute("select rag.attach_source('notes', content_column => 'body')")
        db.execute("insert into notes values (1, 'A note about foxes.')")
        db.execute("call rag.drain()")
        db.execute("select rag.start_workers(1)")
        db.execute("create database restored")
    page = (Path(__file__).resolve().parents[2] / "docs" / "backup.md").read_text()
    commands = re.search(r"```sh\n(pg_restore -l .*?)```", page, re.S)[1]
    dump(cluster, "cron", tmp_path / "backup", "-Fd")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands.replace("-d restored", "-e -d restored")],
        env=cluster.environment("restored"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with cluster.connect("restored") as db:
        assert value(db, "select content from rag.search_documents('foxes')")
        assert problems(db) == []

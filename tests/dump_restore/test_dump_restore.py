"""A restored database answers as the dumped one did, and goes on working."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import rows, value
from restored import SAME, fill, goes_on, problems


@pytest.fixture
def dumped(db, add, table, drain) -> dict[str, list]:
    """A database with a bit of everything; what it answers."""
    before = fill(db, add, table, drain)
    assert before["problems"] == []
    return before


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


@pytest.mark.parametrize("data_only", [False, True], ids=["whole", "data only"])
def test_settings_that_were_made_before_stay_and_the_others_come(
    cluster, database, empty_database, db, other_root, tmp_path, data_only
):
    """Whoever prepares a server has set its folder; the dump's folder is another server's."""
    db.execute("select rag.set('max_pages', '77')")
    db.execute("select rag.set('max_pages', '78', tenant_id => 5)")
    options = ["--data-only", "--disable-triggers"] if data_only else []
    dump(cluster, database, tmp_path / "dump", "-Fc", *options[:1])
    with cluster.connect(empty_database) as prepared:
        prepared.execute("create extension ragstone cascade")
        prepared.execute("select rag.set('document_root', %s)", [str(other_root)])
        done = subprocess.run(
            ["pg_restore", "-d", empty_database, *options, str(tmp_path / "dump")],
            env=cluster.environment(empty_database),
            capture_output=True,
            text=True,
        )
        errors = re.findall("error: .*", done.stderr)
        assert len(errors) <= 1 and all("already exists" in e for e in errors), done.stderr
        assert value(prepared, "select rag.get('document_root')") == str(other_root)
        assert value(prepared, "select rag.get('max_pages')") == "77"
        assert value(prepared, "select rag.get('max_pages', 5)") == "78"
        # What is set now is not taken for a restore.
        assert value(prepared, "select rag.set('max_pages', '79')") == "79"
        assert value(prepared, "select rag.get('max_pages')") == "79"


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

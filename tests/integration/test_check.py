"""rag.check() finds the mistakes that an installation has: each is made here."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import psycopg
import pytest
from fakes import FakeConnection
from helpers import eventually, in_background, rows, value

from ragstone.extract import tesseract
from ragstone.server import check

CHECKS = [
    "postgresql", "extension", "package", "libraries", "cpu", "model", "prepacked", "embedding", "extraction", "ocr", "pgvector",
    "pg_cron", "workers", "worker_processes", "cron_history", "maintenance", "stuck_jobs", "failures",
    "document_root", "sources", "indexes", "statistics", "memory", "row_security", "privileges",
]  # fmt: skip


def found(db, name):
    """ok, detail and hint of one check."""
    ((ok, detail, hint),) = rows(
        db, 'select ok, detail, hint from rag.check() where "check" = %s', name
    )
    return ok, detail, hint


def test_every_check_answers_on_a_good_installation(db, add, drain):
    add(1, "Some text.")
    drain()
    answers = rows(db, "select * from rag.check()")
    assert [a[0] for a in answers] == CHECKS
    # The tests' databases are not the one that pg_cron lives in.
    assert [a for a in answers if a[1] is False and a[0] not in ("pg_cron", "memory", "cpu")] == []
    assert all(detail for _, _, detail, _ in answers)
    assert [a[0] for a in answers if a[1] is False and not a[3]] == []


def test_it_costs_seconds_at_most_and_changes_nothing(db):
    db.execute("begin read only")
    db.execute("set local statement_timeout = '20s'")
    assert len(rows(db, "select * from rag.check()")) == len(CHECKS)
    db.execute("rollback")


MISTAKES = [
    ("model", "update rag.models set sha256 = sha256('another model')", "sha256"),
    ("model", "update rag.models set location = 'nowhere'", "cannot be read"),
    ("embedding", "update rag.models set location = 'nowhere'", "model.json"),
    ("embedding", "update rag.models set dimension = 3", "384"),
    ("document_root", "delete from rag._settings where name = 'document_root'", "not set"),
    ("document_root", "update rag._settings set value = '/nowhere'", "no such folder"),
    ("document_root", "update rag._settings set value = '/'", "whole file system"),
    ("sources", 'alter table "TblDocumentFiles" disable trigger ragstone_update', "disabled"),
    ("sources", 'alter event trigger ragstone_after_ddl disable; alter table "TblDocumentFiles" enable always trigger ragstone_update', "disabled"),
    ("sources", 'delete from rag.sources', "is not attached"),
    ("sources", "create function own() returns boolean language sql immutable as 'select true'; alter function own() owner to pg_monitor;"
                'alter event trigger ragstone_after_ddl disable; create index on "TblDocumentFiles" (note) where own()', "own()"),
    ("sources", 'drop trigger ragstone_delete on "TblDocumentFiles"', "1 table"),
    ("sources", "set session_replication_role = replica; alter event trigger ragstone_after_ddl disable; "
                'alter table "TblDocumentFiles" alter "DocumentFilePath" type json using null', "json"),
    ("indexes", "drop index rag.document_chunks_1_embedding_idx", "hnsw"),
    ("indexes", "update pg_index set indisvalid = false where indexrelid = 'rag.document_chunks_1_tags_idx'::regclass", "not valid"),
    ("indexes", "create index on rag.document_chunks_1 using hnsw ((embedding::halfvec(384)) halfvec_cosine_ops)", "does the work of"),
    ("indexes", "create index document_chunks_1_embedding_idx_00c0ffee on rag.document_chunks_1 using hnsw ((embedding::halfvec(384)) halfvec_cosine_ops)",
                "not in use"),
    ("indexes", "create index document_chunks_1_embedding_idx_ccnew on rag.document_chunks_1 using hnsw ((embedding::halfvec(384)) halfvec_cosine_ops)",
                "not in use"),
    ("indexes", "alter index rag.document_chunks_1_embedding_idx rename to document_chunks_1_embedding_idx_00c0ffee", "not in use"),
    ("failures", "update rag.ingestion_queue set status = 'dead', error_code = 'damaged'", "damaged"),
    ("stuck_jobs", "update rag.ingestion_queue set status = 'running', worker_id = 1, started_at = now() - interval '1 hour'", "gone"),
    ("workers", "select 1", "jobs are waiting"),
    ("workers", "select rag.set('workers_paused', 'on')", "paused, and jobs are waiting"),
    ("maintenance", "insert into rag.maintenance_log values ('contradictions found', 2, now(), now())", "2 contradiction"),
    ("maintenance", "insert into rag.maintenance_log values ('x', 0, now() - interval '3 days', now() - interval '3 days'); "
                    "create or replace function rag._scheduled_workers() returns integer language sql as 'select 1'", "last run"),
    ("row_security", 'alter table "TblDocumentFiles" enable row level security', "TblDocumentFiles"),
    ("privileges", "grant select on rag.documents to public", "everybody"),
    ("privileges", "grant execute on function rag.embed(text, text) to public", "everybody"),
    ("package", "create or replace function rag._check_in_python(name text, out ok boolean, out detail text, out hint text) language plpython3u "
                "as 'raise ImportError(\"No module named ragstone\")'", "No module"),
    ("extension", "update pg_extension set extversion = '0.0.1' where extname = 'ragstone'", "0.0.1"),
    ("pgvector", "update pg_extension set extversion = '0.7.4' where extname = 'vector'", "too old"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mistake", "expected"),
    MISTAKES,
    ids=[f"{c}-{n}" for n, (c, _, _) in enumerate(MISTAKES)],
)
def test_a_mistake_is_found_and_says_what_to_do(db, add, name, mistake, expected):
    add(1, "Some text.")
    db.execute(mistake)
    ok, detail, hint = found(db, name)
    assert ok is False
    assert expected in detail
    assert hint


def test_all_of_many_sources_are_attached(db):
    """A number that ends in 0 is as good as another."""
    for number in range(12):
        db.execute(f"create table s{number} (id integer primary key, body text)")
        db.execute(f"select rag.attach_source('s{number}', content_column => 'body')")
    assert found(db, "sources") == (True, "12 attached", None)


def test_what_puts_work_off_is_said_before_it_hurts(db, add, drain):
    add(1, "Some text.")
    drain()
    db.execute("select rag.set('workers_paused', 'on')")
    ok, detail, hint = found(db, "workers")
    assert ok is None and "paused" in detail and "rag.set('workers_paused', null)" in hint
    db.execute("select rag.defer_index()")
    ok, detail, hint = found(db, "indexes")
    assert ok is None and "deferred in default" in detail and "rag.build_index" in hint


def test_a_role_that_lacks_something_of_its_level_is_named(db):
    name = f"ragstone_check_{os.getpid()}"
    db.execute(f"create role {name}")
    try:
        db.execute("select rag.grant_usage(%s)", [name])
        assert found(db, "privileges")[0] is True
        db.execute(f"revoke execute on function rag.embed(text, text) from {name}")
        ok, detail, hint = found(db, "privileges")
        assert ok is False and name in detail and "rag.grant_usage" in hint
        db.execute(hint.removeprefix("Type: "))
        assert found(db, "privileges")[0] is True
    finally:
        db.execute(f"drop owned by {name}")
        db.execute(f"drop role {name}")


def test_a_check_that_fails_leaves_the_others_to_answer(db):
    db.execute(
        "create or replace function rag._check_statistics(out ok boolean, out detail text, out hint text) language sql as 'select 1 / 0 = 1, null, null'"
    )
    ok, detail, _ = found(db, "statistics")
    assert ok is None
    assert "division by zero" in detail
    assert len(rows(db, "select * from rag.check()")) == len(CHECKS)


def test_a_server_without_pg_cron_is_told_how_to_get_it(own_cluster):
    cluster = own_cluster(shared_preload_libraries="", max_worker_processes="1")
    with cluster.connect("postgres") as db:
        db.execute("set ragstone.without_pg_cron = on")
        db.execute("create extension ragstone cascade")
        ok, _, hint = found(db, "pg_cron")
        assert ok is False and "shared_preload_libraries" in hint
        ok, _detail, hint = found(db, "worker_processes")
        assert ok is False and "max_worker_processes = " in hint


def test_where_pg_cron_lives_workers_are_seen_and_missed(own_cluster):
    cluster = own_cluster()
    with cluster.connect(cluster.database) as db:
        db.execute("create extension ragstone cascade")
        # A launcher that came before its database is started again after a second.
        eventually(lambda: found(db, "pg_cron")[0])
        assert found(db, "workers")[0] is None
        db.execute("select rag.start_workers(1)")
        ok, detail, _hint = found(db, "workers")
        assert ok is False and "next full minute" in detail
        assert found(db, "cron_history")[0] is True
        db.execute("select rag.stop_workers()")


def test_a_database_beside_that_of_pg_cron_gets_workers_by_what_the_hint_says(own_cluster):
    cluster = own_cluster()
    with cluster.connect("postgres") as db, cluster.connect("cron") as home:
        db.execute("create extension ragstone cascade")
        db.execute("create table notes (id integer primary key, body text)")
        db.execute("select rag.attach_source('notes', content_column => 'body')")
        db.execute("insert into notes values (1, 'Jobs are waiting.')")
        eventually(lambda: found(db, "pg_cron")[1].startswith("runs in"))
        # Nobody is sent to rag.start_workers(), which refuses here.
        hints = rows(db, "select hint from rag.check() where hint ~ 'start_workers'")
        assert found(db, "workers")[0] is False and hints == []
        ok, _, hint = found(db, "pg_cron")
        assert ok is False
        home.execute(hint.removeprefix('In database "cron" type: '))
        assert rows(
            home, "select jobname, command from cron.job where database = 'postgres' order by 1"
        ) == [
            ("ragstone maintenance in postgres", "call rag.maintain()"),
            (
                "ragstone worker 1 in postgres",
                "call rag.drain(run_for => interval '120 s')",
            ),
        ]
        with cluster.connect("postgres") as worker:
            thread, _ = in_background(worker, "call rag.drain(run_for => '60 s')")
            eventually(lambda: found(db, "workers")[0])
            assert found(db, "pg_cron") == (True, "runs in database cron, this is postgres", None)

            # These would come back: who stops them is told where they come from.
            notices = []
            db.add_notice_handler(lambda n: notices.append((n.message_primary, n.message_hint)))
            db.execute("select rag.stop_workers()")
            thread.join(30)
        ((message, hint),) = notices
        assert "starts again" in message
        home.execute(hint.removeprefix('In database "cron" type: '))
        assert value(home, "select count(*) from cron.job") == 0


def test_jobs_that_a_dump_brought_for_a_database_of_another_name_go(own_cluster):
    cluster = own_cluster()
    with cluster.connect("cron") as db:
        db.execute("create extension ragstone cascade")
        db.execute("select rag.start_workers(1)")
        db.execute("select cron.schedule('another''s', '* * * * *', 'select 1')")
        db.execute(
            "update cron.job set database = 'gone', jobname = replace(jobname, 'in cron', 'in gone')"
        )
        db.execute("select rag.start_workers(1)")
        assert rows(db, "select jobname from cron.job order by 1") == [
            ("another's",),
            ("ragstone maintenance in cron",),
            ("ragstone worker 1 in cron",),
        ]
        db.execute("select rag.stop_workers()")


@pytest.mark.parametrize(("missing", "word"), [("seccomp", "system calls"), ("landlock", "read")])
def test_a_child_that_is_not_confined_is_said(missing, word):
    names = ["rlimits", "no_new_privs", "landlock_3", "seccomp (73 system calls)"]
    assert check.confinement(names).ok
    finding = check.confinement([name for name in names if not name.startswith(missing)])
    assert finding.ok is False
    assert word in finding.detail and missing in finding.hint.lower()


def test_the_row_about_scans_says_how_to_have_them_read(monkeypatch):
    monkeypatch.setattr(tesseract, "data_folder", lambda: None)

    finding = check.ocr(FakeConnection(pipelines=[]))
    assert finding.ok is None
    assert "apt-get install tesseract-ocr;" in finding.hint and "rag.set_ocr" in finding.hint


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "/root", "/it's missing"])
def test_a_folder_that_cannot_be_read_comes_with_a_command_that_shows_why(db, folder):
    with pytest.raises(psycopg.errors.InvalidParameterValue) as error:
        db.execute("select rag.set('document_root', %s)", [folder])
    hint = error.value.diag.message_hint
    command = hint.removeprefix("Type as root: ").partition(";")[0]
    assert shlex.split(command) == ["namei", "-l", folder]


@pytest.fixture
def broken_copy(db, document_root):
    """The installed package in a folder that may be broken, and a function that checks it; sessions that have the package already keep it."""
    source = value(db, "select prosrc from pg_proc where oid = 'rag._check_in_python'::regproc")
    version = value(db, "select extversion from pg_extension where extname = 'ragstone'")
    libraries = value(db, "select setting from pg_config where name = 'PKGLIBDIR'")
    installed = Path(libraries, "ragstone", version)
    copy = document_root / installed.name
    shutil.copytree(installed / "ragstone", copy / "ragstone")
    model = Path("models", "all-MiniLM-L6-v2")
    (copy / model).mkdir(parents=True)
    for path in [*installed.iterdir(), *(installed / model).iterdir()]:
        if path.name not in ("ragstone", "models"):
            (copy / path.relative_to(installed)).symlink_to(path)
    db.execute(
        f"""create or replace function rag._check_in_python(name text, out ok boolean, out detail text, out hint text)
            language plpython3u as $f$GD["ragstone {version}"] = "{copy}"{source}$f$"""
    )
    return copy


def test_a_library_that_is_gone_or_broken_is_named(connect, broken_copy):
    (broken_copy / "tokenizers").unlink()
    (broken_copy / "tokenizers").mkdir()
    (broken_copy / "tokenizers" / "__init__.py").write_text(
        "raise ImportError('libstdc++ is too old')"
    )
    ok, detail, hint = found(connect(), "libraries")
    assert ok is False and "tokenizers" in detail and "make install" in hint


def test_a_library_from_elsewhere_is_noticed(connect, broken_copy):
    (broken_copy / "numpy").unlink()
    session = connect()
    session.execute(
        "do language plpython3u $$ import sys, types; sys.modules['numpy'] = types.ModuleType('numpy') $$"
    )
    ok, detail, hint = found(session, "libraries")
    assert ok is False and "numpy" in detail and "reconnect" in hint


def test_a_prepacked_file_of_another_cpu_is_noticed(connect, broken_copy):
    (broken_copy / "models" / "all-MiniLM-L6-v2" / "model.prepacked.json").unlink()
    ok, detail, hint = found(connect(), "prepacked")
    assert ok is False and "plain file" in detail and hint, detail


def test_a_child_that_cannot_start_is_noticed(connect, broken_copy):
    (broken_copy / "semantic_text_splitter").unlink()
    ok, _, hint = found(connect(), "extraction")
    assert ok is False and hint


def test_files_that_the_server_could_change_are_noticed(connect, broken_copy):
    shutil.chown(broken_copy, "postgres")
    ok, detail, hint = found(connect(), "package")
    assert ok is False and "can write" in detail and "root" in hint

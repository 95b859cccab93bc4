"""A worker outside the server: a plain process that has a connection and the models' folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest
from helpers import eventually, long_text, rows, value

from ragstone.db.connection import Refused
from ragstone.db.psycopg import Psycopg
from ragstone.stores.files import open_file

DRAIN = """
import sys, psycopg
from ragstone.db.psycopg import Psycopg
from ragstone.worker.loop import drain
drain(Psycopg(psycopg.connect(sys.argv[1])), "0", None)
"""


@pytest.fixture
def start(cluster, database, db):
    """Starts a worker that takes the package, its libraries and models from the installed folder."""
    folder = value(db, "select setting from pg_config where name = 'PKGLIBDIR'")
    version = value(db, "select extversion from pg_extension where extname = 'ragstone'")
    dsn = f"host={cluster.host} port={cluster.port} user=postgres dbname={database}"
    started = []

    def start():
        environment = os.environ | {"PYTHONPATH": str(Path(folder, "ragstone", version))}
        command = [sys.executable, "-c", DRAIN, dsn]
        started.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def connection(connect):
    return Psycopg(connect())


def finished(process):
    """The end of a worker that shall succeed."""
    _, said = process.communicate(timeout=200)
    assert (process.returncode, said) == (0, "")


def test_a_process_outside_the_server_drains_the_queue(db, add, start):
    for number in range(20):
        add(number, f"Lighthouse number {number} stands on a rock.")
    add(20, b"\0\1\2 no document", "20.pdf")
    add(21, long_text(30), "21.md")
    finished(start())
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 21
    assert rows(db, "select document_id, status from rag.documents where status <> 'completed'") == [
        (20, "failed")
    ]
    (best,) = rows(
        db, "select document_id from rag.search_documents('lighthouse number 7') limit 1"
    )
    assert best == (7,)
    assert value(db, "select count(*) from rag.workers") == 0
    assert value(db, "select count(*) from rag.job_history") == 21


def test_it_stores_what_a_worker_in_the_server_stores(db, add, drain, start):
    add(1, long_text(20), "1.md")
    stored = """select chunk_index, content, page_number, section, token_count, embedding::text
                  from rag.document_chunks order by 1"""
    drain()
    inside = rows(db, stored)
    db.execute('delete from "TblDocumentFiles"')
    db.execute("""insert into "TblDocumentFiles" values (1, '1.md')""")
    finished(start())
    assert rows(db, stored) == inside


def test_it_reads_documents_in_a_column(db, start):
    db.execute("create table notes (id integer primary key, body text)")
    db.execute("select rag.attach_source('notes', content_column => 'body')")
    db.execute("insert into notes values (1, 'A lighthouse keeper.'), (2, null)")
    finished(start())
    assert rows(db, "select document_id, status from rag.documents order by 1") == [
        (1, "completed"),
        (2, "failed"),
    ]


def test_a_process_that_is_killed_loses_nothing(db, add, drain, start):
    add(1, long_text(400))
    process = start()
    eventually(lambda: value(db, "select count(*) from rag.ingestion_queue where worker_id > 0"))
    process.kill()
    process.wait()
    eventually(lambda: not value(db, "select count(*) from rag.worker_activity"))
    drain()
    assert rows(db, "select status from rag.documents") == [("completed",)]
    assert value(db, "select attempts from rag.job_history") == 2


def test_a_process_whose_connection_is_ended_ends_and_loses_nothing(db, add, drain, start):
    add(1, long_text(400))
    process = start()
    pid = eventually(lambda: value(db, "select max(pid) from rag.worker_activity where claimed > 0"))
    db.execute("select pg_terminate_backend(%s)", [pid])
    process.communicate(timeout=60)
    assert process.returncode != 0
    drain()
    assert rows(db, "select status from rag.documents") == [("completed",)]


def test_workers_in_and_outside_the_server_share_a_queue(db, add, start, connect):
    for number in range(60):
        add(number, f"Document number {number}.")
    process, session = start(), connect()
    inside = threading.Thread(target=session.execute, args=["call rag.drain()"])
    inside.start()
    finished(process)
    inside.join(120)
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 60
    assert value(db, "select count(*) from rag.job_history") == 60


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("int4", 7), ("int8", 2**40), ("int2", -3), ("float8", 0.25), ("bool", True),
        ("text", "it's %s $1 ✓"), ("bytea", b"\0\xff"), ("json", '{"a": [1, null]}'),
        ("text", None), ("int8[]", [1, 2]),
    ],
)  # fmt: skip
def test_values_are_the_same_on_both_implementations(db, connection, name, given):
    """In the server they come as plpy gives them."""
    assert connection.value("$1", [name], given) == given
    db.execute("create function pg_temp.same(sql text, type text, given text) returns boolean"
               " language plpython3u as $$"
               " return plpy.execute(plpy.prepare(sql, ['pg_catalog.' + type]), [eval(given)])[0]"
               "['value'] == eval(given) $$")  # fmt: skip
    assert value(db, "select pg_temp.same('select $1 as value', %s, %s)", name, repr(given))


def test_each_statement_commits_itself_and_a_transaction_is_all_or_nothing(db, connection):
    db.execute("create table t (n integer primary key)")
    connection.rows("insert into t values ($1)", ["int4"], 1)
    assert value(db, "select count(*) from t") == 1
    with pytest.raises(psycopg.errors.UniqueViolation) as caught, connection.transaction():
        connection.rows("insert into t values ($1)", ["int4"], 2)
        connection.rows("insert into t values ($1)", ["int4"], 1)
    assert connection.sqlstate(caught.value) == "23505"
    assert not connection.is_interrupt(caught.value)
    assert value(db, "select count(*) from t") == 1
    assert connection.value("1") == 1, "the session goes on"


def test_a_type_of_the_name_in_the_search_path_changes_nothing(db, connection):
    connection.rows("create domain public.int4 as pg_catalog.int4 check (value < 5)")
    connection.rows("set search_path = public, pg_catalog")
    assert connection.value("$1", ["int4"], 7) == 7


def test_a_lost_connection_is_an_interrupt_that_a_check_notices(db, connect):
    session = connect()
    connection = Psycopg(session)
    connection.check()
    db.execute("select pg_terminate_backend(%s)", [session.info.backend_pid])

    def interrupted():
        try:
            connection.check()
        except psycopg.OperationalError as error:
            return connection.is_interrupt(error)
        return False

    assert eventually(interrupted)
    with pytest.raises(psycopg.OperationalError) as caught:
        connection.rows("select 1")
    assert connection.is_interrupt(caught.value)


def test_a_refusal_says_what_to_type(connection):
    with pytest.raises(Refused) as caught:
        connection.error("no", sqlstate="22023", detail="because", hint="type this")
    error = caught.value
    assert (str(error), error.sqlstate, error.detail, error.hint) == (
        "no",
        "22023",
        "because",
        "type this",
    )


def test_the_package_needs_no_psycopg_in_the_server():
    """Nothing but its own module imports it: the server has none."""
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "import ragstone.worker.loop, ragstone.server.check, ragstone.server.preview\n"
        "import ragstone.server.maintenance, ragstone.server.functions, ragstone.db.plpy\n"
    )
    package = Path(sys.modules[open_file.__module__].__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(package)}
    )

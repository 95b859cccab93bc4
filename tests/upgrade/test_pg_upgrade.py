"""pg_upgrade takes a database to a newer server: it answers as before there, and goes on.

Needs two servers with ragstone installed: `make test-pg-upgrade` has them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from conftest import Cluster, cluster_script
from helpers import AS_SERVER, eventually, rows, value
from restored import fill, goes_on, state

# The one that pg_cron lives in, and that pg_upgrade lets a new cluster have.
DATABASE = "postgres"


@dataclass(frozen=True)
class Server:
    """An installed server."""

    pg_config: Path

    def ask(self, option: str) -> str:
        command = [self.pg_config, option]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    @property
    def major(self) -> int:
        return int(re.search(r"\d+", self.ask("--version"))[0])

    @property
    def has_ragstone(self) -> bool:
        return (Path(self.ask("--sharedir")) / "extension" / "ragstone.control").exists()


@pytest.fixture
def servers() -> tuple[Server, Server]:
    """The oldest and the newest that have ragstone."""
    installed = [Server(p) for p in Path("/usr/lib/postgresql").glob("*/bin/pg_config")]
    able = sorted((s for s in installed if s.has_ragstone), key=lambda s: s.major)
    if len(able) < 2:
        found = ", ".join(f"PostgreSQL {s.major}" for s in able) or "none"
        pytest.skip(
            f"it needs two servers with ragstone, here is {found}: type make test-pg-upgrade"
        )
    return able[0], able[-1]


@pytest.fixture
def clusters(servers, own_cluster, monkeypatch) -> tuple[Cluster, Cluster]:
    """One of each server, running."""
    made = []
    for server in servers:
        monkeypatch.setenv("PG_CONFIG", str(server.pg_config))
        made.append(own_cluster(database=DATABASE))
    return made[0], made[1]


@pytest.fixture
def db(clusters, document_root) -> Iterator[psycopg.Connection]:
    """A session in the old server, with the extension."""
    with clusters[0].connect(DATABASE) as connection:
        connection.execute("create extension ragstone cascade")
        connection.execute("select rag.set('document_root', %s)", [str(document_root)])
        yield connection


@pytest.fixture
def filled(db, add, table, drain) -> dict[str, list]:
    """A bit of everything in the old server, and what it answers."""
    db.execute("select rag.set('max_pages', '77')")
    db.execute("select rag.create_pipeline('second', chunk_size => 300)")
    drain()
    db.execute("select rag.activate_pipeline('second')")
    add(6, b"", "empty.txt")
    drain()
    fill(db, add, table, drain)
    assert rows(db, "select document_id from rag.dead_letters") == [(6,)]
    db.execute("select rag.start_workers(1)")
    # So that what waits still waits when both servers are compared.
    db.execute("update cron.job set active = false")
    return state(db)


def pg_upgrade(servers, clusters, *options):
    """As the account that owns both clusters, neither of which may run."""
    (old, new), (before, after) = servers, clusters
    folders = ["-d", before.home / "data", "-D", after.home / "data", "-s", after.home / "socket"]
    programs = [f"{new.ask('--bindir')}/pg_upgrade", "-b", old.ask("--bindir"), "-U", "postgres"]
    command = [*AS_SERVER, *programs, *folders, *options]
    done = subprocess.run(command, cwd=after.home, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def update_extensions(new, after):
    """What pg_upgrade leaves to be run where libraries are newer than the database."""
    script = after.home / "update_extensions.sql"
    if script.exists():
        command = [f"{new.ask('--bindir')}/psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", script]
        subprocess.run(command, env=after.environment(DATABASE), check=True)


@pytest.mark.parametrize("mode", [[], ["--link"]], ids=["copied", "linked"])
def test_an_upgraded_server_answers_the_same_and_goes_on(
    servers, clusters, filled, table, document_root, mode
):
    (old, new), (_, after) = servers, clusters
    for server, cluster in zip(servers, clusters, strict=True):
        cluster_script("stop", cluster.home, PG_CONFIG=str(server.pg_config))
    pg_upgrade(servers, clusters, *mode, "--check")
    pg_upgrade(servers, clusters, *mode)
    cluster_script("start", after.home, PG_CONFIG=str(new.pg_config))
    update_extensions(new, after)

    goes_on(after, DATABASE, filled, table, document_root)
    with after.connect(DATABASE) as db:
        assert (
            value(db, "select current_setting('server_version_num')::integer / 10000") == new.major
        )
        rows(db, "select * from rag.search_documents('foxes')")
        mapped = Path(f"/proc/{value(db, 'select pg_backend_pid()')}/maps").read_text()
        assert f"{new.ask('--pkglibdir')}/ragstone/" in mapped
        assert f"{old.ask('--pkglibdir')}/" not in mapped, "nothing of the old server is in use"
        workers_are_started_as_before(db, table, document_root)


def workers_are_started_as_before(db, table, root):
    """The jobs of pg_cron came along."""
    jobs = "select jobname from cron.job where jobname like 'ragstone%%' order by 1"
    assert rows(db, jobs) == [
        ("ragstone maintenance in postgres",),
        ("ragstone worker 1 in postgres",),
    ]
    (root / "7.txt").write_text("Taken in by a worker of pg_cron.")
    db.execute(f"insert into {table} values (7, '7.txt')")
    db.execute("update cron.job set active = true")
    found = "select 7 in (select document_id from rag.search_documents('worker of pg_cron'))"
    eventually(lambda: value(db, found), seconds=120)
    failing = 'select "check", detail from rag.check() where not ok'
    assert [name for name, _ in rows(db, failing)] == ["failures"], "the dead letter alone"

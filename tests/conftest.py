"""A real server for the tests: one cluster for all, one database a test."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from filelock import FileLock

pytest.register_assert_rewrite("restored")

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = "ragstone_template"
_numbers = itertools.count()


@dataclass(frozen=True)
class Cluster:
    """A running private cluster; `database` is the one pg_cron lives in."""

    host: str
    port: int
    database: str
    home: Path

    def connect(self, database: str, **options: object) -> psycopg.Connection:
        return psycopg.connect(
            host=self.host,
            port=self.port,
            user="postgres",
            dbname=database,
            autocommit=True,
            **options,
        )

    def environment(self, database: str) -> dict[str, str]:
        """For programs of PostgreSQL such as pg_dump."""
        return os.environ | {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGDATABASE": database,
        }

    @property
    def postmaster_pid(self) -> int:
        return int((self.home / "data" / "postmaster.pid").read_text().splitlines()[0])

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()


def cluster_script(command: str, directory: Path, *arguments: str, **environment: str) -> str:
    """Run tools/cluster.sh; its messages are part of a failing test's output."""
    return subprocess.run(
        [ROOT / "tools" / "cluster.sh", command, "--dir", str(directory), *arguments],
        check=True,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()


def start_cluster(
    directory: Path, database: str = "cron", port: int = 54330, **settings: str
) -> Cluster:
    """Make and start a cluster; nothing in it outlives the tests, so it need not reach the disk."""
    settings = {"fsync": "off", "autovacuum_naptime": "5s", "max_connections": "200"} | settings
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    cluster_script("start", directory, "--database", database, "--port", str(port), *options)
    home = Path(cluster_script("home", directory))
    return Cluster(str(home / "socket"), port, database, home)


def cluster_dir() -> Path:
    return Path(os.environ["RAGSTONE_TEST_CLUSTER"])


def pytest_configure(config: pytest.Config) -> None:
    """Each run has a cluster of its own; the workers of pytest-xdist inherit its name."""
    if not hasattr(config, "workerinput"):
        os.environ["RAGSTONE_TEST_CLUSTER"] = str(ROOT / f".cluster-test-{os.getpid()}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The cluster is taken away by the process that outlives all of pytest-xdist's workers."""
    if not hasattr(session.config, "workerinput") and cluster_dir().exists():
        cluster_script("destroy", cluster_dir())
        Path(f"{cluster_dir()}.lock").unlink()


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster that all tests share; none may stop it or kill its processes."""
    with FileLock(f"{cluster_dir()}.lock"):
        cluster = start_cluster(cluster_dir())
        with cluster.connect("postgres") as connection:
            made = connection.execute(
                "select from pg_database where datname = %s", [TEMPLATE]
            ).fetchone()
            if made is None:
                connection.execute("create database unfinished")
                with cluster.connect("unfinished") as template:
                    template.execute("create extension ragstone cascade")
                connection.execute(f"alter database unfinished rename to {TEMPLATE}")
    return cluster


@pytest.fixture
def own_cluster() -> Iterator[Callable[..., Cluster]]:
    """Makes clusters that a test may ill-treat."""
    made: list[Path] = []

    def make(**settings: str) -> Cluster:
        directory = Path(f"{cluster_dir()}-{os.getpid()}-{next(_numbers)}")
        made.append(directory)
        return start_cluster(directory, port=54331, **settings)

    yield make
    for directory in made:
        cluster_script("destroy", directory)


@pytest.fixture
def empty_database(cluster: Cluster) -> Iterator[str]:
    """Name of a database without the extension."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with cluster.connect("postgres") as connection:
        connection.execute(f"create database {name}")
        yield name
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """Name of a database with the extension, as create extension leaves it."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with cluster.connect("postgres") as connection:
        connection.execute(f"create database {name} template {TEMPLATE}")
        yield name
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def connect(cluster: Cluster, database: str) -> Iterator[Callable[..., psycopg.Connection]]:
    """Opens further sessions in the test's database."""
    connections: list[psycopg.Connection] = []

    def connect(**options: object) -> psycopg.Connection:
        connections.append(cluster.connect(database, **options))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()


@pytest.fixture
def document_root() -> Iterator[Path]:
    """An empty folder that the server's account can read."""
    folder = Path(tempfile.mkdtemp(prefix="ragstone-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def db(connect: Callable[..., psycopg.Connection], document_root: Path) -> psycopg.Connection:
    """A session with the document root set."""
    connection = connect()
    connection.execute("select rag.set('document_root', %s)", [str(document_root)])
    return connection


@pytest.fixture
def table(db: psycopg.Connection) -> str:
    """The table of the earlier system, attached."""
    db.execute(
        'create table "TblDocumentFiles" ("DocumentID" integer primary key, "DocumentFilePath" text, note text)'
    )
    db.execute(
        """select rag.attach_source('"TblDocumentFiles"', path_column => 'DocumentFilePath')"""
    )
    return '"TblDocumentFiles"'


@pytest.fixture
def add(db: psycopg.Connection, table: str, document_root: Path) -> Callable[..., None]:
    """Writes a file, inserts its row, and has it queued as a worker does that polls."""

    def add(document_id: int, content: str | bytes, name: str | None = None) -> None:
        name = name or f"{document_id}.txt"
        path = document_root / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o644)
        db.execute(f"insert into {table} values (%s, %s)", [document_id, name])
        db.execute("select rag._expand_changes(0::smallint)")

    return add


@pytest.fixture
def drain(db: psycopg.Connection) -> Callable[[], None]:
    """Works the queue off in the test's own session."""
    return lambda: db.execute("call rag.drain()")

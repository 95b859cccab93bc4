"""What every question needs: a database of its own, documents, watching, statistics, a report."""

from __future__ import annotations

import ast
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg

from ragstone.models.onnx import Embedder

REPOSITORY = Path(__file__).resolve().parents[1]
REPORTS = REPOSITORY / "build" / "bench"
MODEL = REPOSITORY / "build" / "model"

Connection = psycopg.Connection[tuple[Any, ...]]
Row = Mapping[str, str | int | float | None]


class BenchError(Exception):
    """The question can't be answered here; the text says what to do."""


# --- the database ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """The server that the PG* environment variables name."""

    template: str | None = None

    @contextmanager
    def database(self) -> Iterator[Database]:
        """A fresh database with ragstone in it, dropped at the end."""
        name = f"ragstone_bench_{os.getpid()}"
        try:
            admin = psycopg.connect(autocommit=True)
        except psycopg.OperationalError as error:
            raise BenchError(
                f'no server: {error}\nStart one: make cluster; eval "$(make -s env)"'
            ) from error
        with admin:
            copied = f" template {self.template}" if self.template else ""
            admin.execute(f"drop database if exists {name} with (force)")
            admin.execute(f"create database {name}{copied}")
            try:
                if not self.template:
                    _create_extension(name)
                yield Database(name)
            finally:
                admin.execute(f"drop database if exists {name} with (force)")


def _create_extension(name: str) -> None:
    with psycopg.connect(dbname=name, autocommit=True) as connection:
        # Documents are drained by hand here, in a database that pg_cron does not know.
        connection.execute("set ragstone.without_pg_cron = on")
        try:
            connection.execute("create extension ragstone cascade")
        except psycopg.Error as error:
            raise BenchError(f"{error}\nInstall it first: make install") from error


@dataclass(frozen=True)
class Database:
    """A database with ragstone."""

    name: str

    def connect(self) -> Connection:
        """A new session, each statement its own transaction."""
        return psycopg.connect(dbname=self.name, autocommit=True)

    def model_folder(self) -> Path:
        """Where the active pipeline's model is installed, asked of the server's own Python."""
        with self.connect() as connection:
            connection.execute("select rag.embed('')")  # puts the package on this session's path
            connection.execute(
                """
                create function pg_temp.installed() returns text language plpython3u
                as 'import ragstone; return str(ragstone.INSTALL_DIR)'
                """
            )
            (folder, location) = one(
                connection,
                """
                select pg_temp.installed(), m.location
                  from rag.pipelines p
                  join rag.models m on m.name = p.model
                 where p.state = 'active'
                """,
            )
        return Path(folder, "models", location)


def one(connection: Connection, sql: str, *values: object) -> tuple[Any, ...]:
    """The first row of a query that has one."""
    row = connection.execute(sql, values or None).fetchone()
    if row is None:
        raise BenchError(f"no row from: {sql}")
    return row


def drain(connection: Connection) -> None:
    """Work off the queue in this session.

    Raises BenchError unless every document is then completed: a figure must not come from less
    than the whole.
    """
    connection.execute("call rag.drain()")
    left = connection.execute(
        """
        select l.status || coalesce(': ' || l.last_error, ''), count(*)
          from rag.ingestion_log l
         where l.status <> 'completed'
         group by 1
         order by 2 desc
        """
    ).fetchall()
    if left:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left[:5])
        raise BenchError(f"not all documents were completed: {reasons}")


@dataclass(frozen=True, slots=True)
class Throughput:
    """What pgbench says, without the time to connect."""

    per_second: float
    mean_ms: float


def pgbench(
    connection: Connection, database: Database, script: str, clients: int, *options: str
) -> Throughput:
    """Run the script from so many sessions with the pgbench of the server's version.

    Raises BenchError where a statement fails.
    """
    (bindir,) = one(connection, "select setting from pg_config() where name = 'BINDIR'")
    program = Path(bindir, "pgbench")
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        said = subprocess.run(
            [program if program.exists() else "pgbench", "-n", "-M", "simple", "-f", file.name,
             "-c", str(clients), "-j", "2", *options, database.name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    per_second = re.search(r"tps = ([\d.]+)", said.stdout)
    latency = re.search(r"latency average = ([\d.]+)", said.stdout)
    if said.returncode or not per_second or not latency:
        raise BenchError(f"pgbench: {said.stderr or said.stdout}")
    return Throughput(float(per_second[1]), float(latency[1]))


# --- documents ---------------------------------------------------------------------------------


def library_texts(size_bytes: int) -> list[str]:
    """English documents of 1 to 60 kB from the Python library: its language reference and the
    docstrings of its modules, shuffled the same way each time, together about `size_bytes`.

    Raises BenchError where this Python has less.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    modules = [path for path in folder.rglob("*.py") if _is_plain_module(path.relative_to(folder))]
    texts = sorted(topics.values()) + [_docstrings(path) for path in sorted(modules)]
    texts = [text for text in texts if 1_000 <= len(text) <= 60_000]
    random.Random(1).shuffle(texts)
    chosen: list[str] = []
    while texts and size_bytes > 0:
        chosen.append(texts.pop())
        size_bytes -= len(chosen[-1])
    if size_bytes > 0:
        raise BenchError(f"this Python's library is {size_bytes:,} bytes short: ask for less")
    return chosen


def _is_plain_module(path: Path) -> bool:
    skipped = {"test", "tests", "site-packages", "dist-packages", "idlelib", "pydoc_data"}
    return not skipped.intersection(path.parts)


def _docstrings(path: Path) -> str:
    """What the module says of itself, function by function, as prose with headings."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return ""
    parts = [ast.get_docstring(tree) or ""]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            parts += [node.name, text] if text else []
    return "\n\n".join(part for part in parts if part)


def built_model() -> Embedder:
    """The model that was built here, for measuring outside the server.

    Raises BenchError where there is none.
    """
    if not MODEL.exists():
        raise BenchError(f"there is no model in {MODEL}: make build")
    return Embedder.load(MODEL)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A temporary folder that the server's account can read."""
    with tempfile.TemporaryDirectory(prefix="ragstone-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def attach_folder(connection: Connection, folder: Path) -> None:
    """An empty table of paths under `folder`, attached."""
    connection.execute("create table documents (id bigint primary key, path text)")
    one(connection, "select rag.set('document_root', %s)", str(folder))
    connection.execute("select rag.attach_source('documents', path_column => 'path')")


def insert_paths(connection: Connection, paths: Sequence[str]) -> None:
    """One statement, as an application's bulk load."""
    connection.execute(
        "insert into documents select i, p from unnest(%s::text[]) with ordinality u (p, i)",
        [list(paths)],
    )


# --- watching ----------------------------------------------------------------------------------


@dataclass
class Usage:
    """CPU seconds and peak bytes of one process while it was watched.

    `private` is what no other process has mapped (uss); `anonymous` leaves out what is only private
    because nobody else happens to map the same file now. `rss` has the shared buffers touched.
    """

    rss: int = 0
    private: int = 0
    anonymous: int = 0
    cpu_seconds: float = 0.0
    _cpu_before: float | None = None

    def see(self, process: psutil.Process) -> None:
        """Take the process's present state in."""
        times = process.cpu_times()
        if self._cpu_before is None:
            self._cpu_before = times.user + times.system
        self.cpu_seconds = times.user + times.system - self._cpu_before
        full = process.memory_full_info()
        self.rss = max(self.rss, full.rss)
        self.private = max(self.private, full.uss)
        self.anonymous = max(self.anonymous, _anonymous_bytes(process.pid))

    def row(self, name: str) -> Row:
        """For a table, in megabytes."""
        return {
            "process": name,
            "rss MB": self.rss / 2**20,
            "private MB": self.private / 2**20,
            "anonymous MB": self.anonymous / 2**20,
        }


def _anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class Watch:
    """Usage by a backend and its child processes, looked at every 50 ms while in the context.

    The children go by their names, extract and embed. All stay zero where this account may not look into the server's processes.
    """

    def __init__(self, backend_pid: int) -> None:
        self.backend = Usage()
        self.children: defaultdict[str, Usage] = defaultdict(Usage)
        self._pid = backend_pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_often, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _look_often(self) -> None:
        while not self._stop.wait(0.05):
            self._look()

    def _look(self) -> None:
        with suppress(psutil.Error, OSError):
            process = psutil.Process(self._pid)
            self.backend.see(process)
            for child in process.children():
                for name in child.cmdline()[-1:]:
                    self.children[name].see(child)


class Stopwatch:
    """Seconds spent in the context."""

    seconds = 0.0

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start


# --- the report --------------------------------------------------------------------------------


def percentile(values: Sequence[float], percent: int) -> float:
    """Linear between the neighbouring values."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def latency_row(name: str, seconds: Sequence[float], target_ms: float | None = None) -> Row:
    """Median and 95th percentile in milliseconds."""
    return {
        "what": name,
        "p50 ms": 1000 * percentile(seconds, 50),
        "p95 ms": 1000 * percentile(seconds, 95),
        "times": len(seconds),
        "target p50 ms": target_ms,
    }


@dataclass
class Report:
    """Tables, printed as they come and written as JSON at the end."""

    question: str
    arguments: Mapping[str, object]
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def table(self, title: str, rows: Iterable[Row]) -> None:
        """Add a table; all rows have the same keys."""
        self.tables[title] = list(rows)
        columns = list(self.tables[title][0])
        cells = [columns] + [[_cell(row[c]) for c in columns] for row in self.tables[title]]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        print(f"\n{title}")
        for line in cells:
            padded = [line[0].ljust(widths[0])]
            padded += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            print("  " + "  ".join(padded).rstrip(), flush=True)

    def write(self) -> Path:
        """Write build/bench/QUESTION.json, over that of the last run."""
        REPORTS.mkdir(parents=True, exist_ok=True)
        path = REPORTS / (re.sub(r"[^\w.=-]+", "-", self.question) + ".json")
        content = {
            "question": self.question,
            "arguments": {key: str(value) for key, value in self.arguments.items()},
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(),
            "tables": self.tables,
        }
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def _cell(value: str | int | float | None) -> str:
    match value:
        case None:
            return ""
        case float() if abs(value) < 1:
            return f"{value:.4f}"
        case float() if abs(value) < 100:
            return f"{value:.2f}"
        case float():
            return f"{value:,.0f}"
        case int():
            return f"{value:,}"
    return value


def machine() -> Mapping[str, str]:
    """What absolute figures depend on."""
    server = "none"
    with suppress(psycopg.OperationalError), psycopg.connect(autocommit=True) as connection:
        (server,) = one(connection, "show server_version")
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "postgresql": server,
        "onnxruntime": version("onnxruntime"),
        "python": platform.python_version(),
        "cpu": cpu,
        "cores": str(os.cpu_count()),
    }

"""The one module that talks to PostgreSQL.

It is handed its connection: ``plpy`` inside the database. SQL beyond a call stays in the database's
own functions; here are their names, argument types and results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ragstone.db.rows import (
    Cut,
    Job,
    Lane,
    Model,
    Pipeline,
    StoredChunk,
    StoredDocument,
    StoredFile,
)

# What only a worker needs is imported where it is used: the first search of a session waits.
if TYPE_CHECKING:
    from ragstone.errors import DocumentError


def _postmaster_pid() -> int:
    """From the file in the data directory, a backend's working directory.

    The parent would not do: of a session that began just before the postmaster died it is another.
    """
    try:
        return int(Path("postmaster.pid").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return os.getppid()


class Database:
    """Calls of the extension's SQL functions.

    Statements are prepared once a session (plpy.prepare in a loop leaks); they are kept in a module
    variable because the same session may build several of these.
    """

    _plans: ClassVar[dict[str, Any]] = {}

    def __init__(self, plpy: Any) -> None:
        self._plpy = plpy
        self._postmaster_pid = _postmaster_pid()

    def _rows(self, sql: str, types: Sequence[str] = (), *values: Any) -> Any:
        plan = self._plans.get(sql)
        if plan is None:
            plan = self._plans[sql] = self._plpy.prepare(sql, list(types))
        return self._plpy.execute(plan, list(values))

    def _value(self, sql: str, types: Sequence[str] = (), *values: Any) -> Any:
        return self._rows(f"select {sql} as value", types, *values)[0]["value"]

    # Session

    def check(self) -> None:
        """Let the server act on cancel, timeout and shutdown; raises what it decides.

        A session notices the death of the postmaster only where it waits: a busy worker would work
        on and keep the server from being started again.
        """
        if os.getppid() != self._postmaster_pid:
            self.sleep(1)
        self._rows("select 1")

    def commit(self) -> None:
        self._plpy.commit()

    def rollback(self) -> None:
        self._plpy.rollback()

    def sleep(self, milliseconds: int) -> None:
        """Wait, open to cancel and shutdown."""
        self._value("pg_catalog.pg_sleep($1)", ["float8"], milliseconds / 1000)

    def notice(self, message: str, **fields: str) -> None:
        self._plpy.notice(message, **fields)

    def log(self, message: str) -> None:
        """Write a line to the server's log, and to nobody else."""
        self._plpy.log(message)

    def warning(self, message: str, **fields: str) -> None:
        self._plpy.warning(message, **fields)

    def error(self, message: str, **fields: str) -> None:
        """Raise an error with sqlstate, detail and hint."""
        self._plpy.error(message, **fields)

    @property
    def database_errors(self) -> type[Exception]:
        """What a failing statement or commit raises."""
        return self._plpy.SPIError

    def is_interrupt(self, error: Exception) -> bool:
        """Whether an error is the server's wish to stop (class 57), which no code may swallow."""
        return self.sqlstate(error).startswith("57")

    def sqlstate(self, error: Exception) -> str:
        """The SQLSTATE of an error of the server, empty for any other."""
        return (isinstance(error, self.database_errors) and getattr(error, "sqlstate", None)) or ""

    def seconds(self, interval: str) -> float:
        return float(self._value("extract(epoch from $1)", ["interval"], interval))

    # Configuration

    def settings(self, tenant_id: int | None) -> dict[str, str | None]:
        """All settings as they are for a tenant, or where that is None for everybody."""
        rows = self._rows("select * from rag._settings_of($1)", ["int8"], tenant_id)
        return {row["name"]: row["value"] for row in rows}

    def model(self, name: str) -> Model:
        (row,) = self._rows(
            "select name, dimension, max_tokens, passage_prefix, location from rag.models"
            " where name operator(pg_catalog.=) $1",
            ["text"],
            name,
        )
        return Model(**row)

    def models_in_use(self) -> list[dict[str, str]]:
        """Name and sha256, in hexadecimal, of the models of active and building pipelines."""
        return list(
            self._rows(
                "select distinct m.name, pg_catalog.encode(m.sha256, 'hex') as sha256"
                " from rag.models m join rag.pipelines p on p.model operator(pg_catalog.=) m.name"
                " where p.state operator(pg_catalog.=) any ('{active,building}') order by 1"
            )
        )

    def languages_of_ocr(self) -> list[str]:
        """In which languages active and building pipelines have pictures recognised."""
        rows = self._rows(
            "select distinct ocr from rag.pipelines where ocr operator(pg_catalog.<>) 'off'"
            " and state operator(pg_catalog.=) any ('{active,building}') order by 1"
        )
        return [row["ocr"] for row in rows]

    def scheduled_workers(self) -> int:
        return self._value("rag._scheduled_workers()")

    def pipeline(self, pipeline_id: int) -> Pipeline:
        (row,) = self._rows(
            "select model, chunk_strategy, chunk_size, chunk_overlap, chunk_unit, embed_template,"
            " ocr from rag.pipelines where pipeline_id operator(pg_catalog.=) $1",
            ["int4"],
            pipeline_id,
        )
        model = self.model(row["model"])
        from ragstone.reading.chunk import ChunkSpec

        spec = ChunkSpec(
            strategy=row["chunk_strategy"],
            size=row["chunk_size"],
            overlap=row["chunk_overlap"],
            unit=row["chunk_unit"],
            max_tokens=model.max_tokens,
            template=model.passage_prefix + row["embed_template"],
        )
        return Pipeline(pipeline_id, model, spec, row["ocr"])

    def pipeline_named(self, name: str) -> Pipeline | None:
        """The pipeline of that name, or the one in use for "active"; None where there is none."""
        rows = self._rows(
            "select pipeline_id from rag.pipelines where name operator(pg_catalog.=) $1"
            " or $1 operator(pg_catalog.=) 'active' and state operator(pg_catalog.=) 'active'",
            ["text"],
            name,
        )
        return self.pipeline(rows[0]["pipeline_id"]) if rows else None

    # Worker

    def register_worker(self) -> int:
        return self._value("rag._register_worker()")

    def leave_worker(self, worker_id: int) -> None:
        self._rows("select rag._leave_worker($1)", ["int4"], worker_id)

    def report_worker(
        self, worker_id: int, state: str, documents: int, chunks: int, tokens: int
    ) -> bool:
        """Write what was done since the last report; True where the worker shall stop."""
        return self._value(
            "rag._report_worker($1, $2, $3, $4, $5)",
            ["int4", "text", "int4", "int4", "int8"],
            worker_id,
            state,
            documents,
            chunks,
            tokens,
        )

    def count(self, worker_id: int, counts: str) -> None:
        """Add to what rag.metrics() shows; counts is JSON of Meter.take()."""
        self._rows("select rag._count($1, $2)", ["int4", "json"], worker_id, counts)

    def expand_changes(self, min_priority: int) -> int:
        return self._value("rag._expand_changes($1)", ["int2"], min_priority)

    def refresh_statistics(self) -> None:
        self._rows("select rag._refresh_statistics()")

    def fill_pipelines(self) -> bool:
        return self._value("rag._fill_pipelines()")

    def build_deferred_index(self) -> bool:
        return self._value("rag._build_deferred_index()")

    def lanes(self) -> list[Lane]:
        """Where jobs wait; jobs of dead workers are freed first."""
        self._rows("select rag._free_jobs_of_dead_workers()")
        return [Lane(**row) for row in self._rows("select * from rag._lanes()")]

    def take(self, worker_id: int, lane: Lane, max_jobs: int) -> list[int]:
        return (
            self._value(
                "rag._claim_jobs($1, $2, $3, $4, $5)",
                ["int4", "int2", "int8", "int8", "int4"],
                worker_id,
                lane.priority,
                lane.tenant_id,
                lane.job_id,
                max_jobs,
            )
            or []
        )

    def take_retry(self, worker_id: int) -> list[int]:
        return self._value("rag._claim_retry($1)", ["int4"], worker_id) or []

    def jobs(self, job_ids: Sequence[int]) -> list[Job]:
        rows = self._rows("select * from rag._claimed_jobs($1)", ["int8[]"], list(job_ids))
        return [Job(**row) for row in rows]

    def give_back(self, worker_id: int) -> None:
        self._rows("select rag._give_back_jobs($1)", ["int4"], worker_id)

    # Job

    def content(self, job: Job) -> bytes | None:
        return self._value(
            "rag._source_content($1, $2)", ["int4", "text"], job.source_id, job.source_key
        )

    def finish_if_unchanged(self, worker_id: int, job: Job, sha256: str) -> bool:
        return self._value(
            "rag._finish_if_unchanged($1, $2, $3, pg_catalog.decode($4, 'hex'))",
            ["int8", "int4", "int8", "text"],
            job.job_id,
            worker_id,
            job.generation,
            sha256,
        )

    def quota_problem(self, job: Job, size: int, chunks: int) -> str | None:
        """What the document would exceed, in words, if it came to so many bytes and chunks."""
        return self._value(
            "rag._quota_problem($1, $2, $3)", ["int8", "int8", "int4"], job.job_id, size, chunks
        )

    def same_cut(self, job: Job) -> Cut | None:
        """The document as another pipeline with the same chunking has it, if there is one."""
        rows = self._rows("select * from rag._same_cut($1)", ["int8"], job.job_id)
        if not rows:
            return None
        first = rows[0]
        document = StoredDocument(
            sha256=first["sha256"],
            size=first["size"],
            mime_type=first["mime_type"],
            extracted=json.loads(first["extracted"]),
        )
        from ragstone.reading.chunk import Passage

        passages = [Passage(r["content"], r["page_number"], r["section"]) for r in rows]
        return Cut(document, first["title"], passages)

    def stored_hashes(self, job: Job) -> set[str]:
        rows = self._rows(
            "select pg_catalog.encode(h, 'hex') as hash from rag._stored_hashes($1) h",
            ["int8"],
            job.job_id,
        )
        return {row["hash"] for row in rows}

    def store(
        self, worker_id: int, job: Job, document: StoredDocument, chunks: Sequence[StoredChunk]
    ) -> str:
        return self._value(
            "rag._store_document($1, $2, $3, $4, $5)",
            ["int8", "int4", "int8", "json", "json"],
            job.job_id,
            worker_id,
            job.generation,
            json.dumps(asdict(document)),
            json.dumps([asdict(chunk) for chunk in chunks]),
        )

    def fail(self, worker_id: int, job: Job, error: DocumentError) -> str:
        message = error.message if not error.detail else f"{error.message}. {error.detail}"
        return self._value(
            "rag._fail_job($1, $2, $3, $4, $5, $6, $7, $8)",
            ["int8", "int4", "int8", "text", "text", "text", "text", "text"],
            job.job_id,
            worker_id,
            job.generation,
            error.failure,
            error.stage,
            error.code,
            message,
            error.hint,
        )

    # Maintenance

    def now(self) -> str:
        return self._value("pg_catalog.clock_timestamp()::text")

    def maintenance_task(self, call: str) -> int:
        """One of maintenance.TASKS."""
        return self._value(call)

    def log_maintenance(self, task: str, count: int, started: str) -> None:
        self._rows(
            "select rag._log_maintenance($1, $2, $3)",
            ["text", "int8", "timestamptz"],
            task,
            count,
            started,
        )

    def files_to_check(self, last: StoredFile | None) -> list[StoredFile]:
        after = (last.source_id, last.document_id) if last else (0, 0)
        rows = self._rows("select * from rag._files_to_check($1, $2)", ["int4", "int8"], *after)
        return [StoredFile(**row) for row in rows]

    def record_change(self, file: StoredFile) -> None:
        self._rows(
            "select rag._record_changes($1, array[$2], (-10)::pg_catalog.int2)",
            ["int4", "text"],
            file.source_id,
            file.source_key,
        )

"""The queue as a worker sees it: claims, the steps of a job, and the worker's own entry.

Each method is one transaction, so that none is open while a document is worked on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ragstone.db.connection import Connection, Row
from ragstone.db.rows import Cut, Job, Lane, StoredDocument
from ragstone.errors import DocumentError
from ragstone.extract.model import Block
from ragstone.reading.chunk import Chunk

_CLAIMED = """\
select (c.job).job_id, (c.job).source_id, (c.job).document_id, (c.document).source_key,
       (c.document).generation, (c.job).pipeline_id, (c.job).operation, (c.job).attempts,
       (c.document).file_path, (c.document).title, (c.document).language, (c.document).tenant_id,
       c.has_content
  from """


class Queue:
    """The calls of one worker, which is known by its number.

    The connection must commit (see `Plpy.of_procedure`), and must stay the same: its session's lock
    is what proves that the worker is alive.
    """

    def __init__(self, connection: Connection, worker_id: int) -> None:
        self._connection = connection
        self.worker_id = worker_id

    @classmethod
    def join(cls, connection: Connection) -> Queue:
        """Register the session as a worker."""
        return cls(connection, connection.value("rag._register_worker()"))

    # The worker

    def leave(self) -> None:
        self._connection.rows("select rag._leave_worker($1)", ["int4"], self.worker_id)

    def report(self, state: str, documents: int, chunks: int, tokens: int) -> bool:
        """Write what was done since the last report; True where the worker shall stop."""
        return self._connection.value(
            "rag._report_worker($1, $2, $3, $4, $5)",
            ["int4", "text", "int4", "int4", "int8"],
            self.worker_id,
            state,
            documents,
            chunks,
            tokens,
        )

    def count(self, counts: str) -> None:
        """Add to what rag.metrics() shows; counts is JSON of Meter.take()."""
        self._connection.rows(
            "select rag._count($1, $2)", ["int4", "json"], self.worker_id, counts
        )

    def expand_changes(self, min_priority: int) -> int:
        """Make jobs of changes that are only noted; returns of how many."""
        return self._connection.value("rag._expand_changes($1)", ["int2"], min_priority)

    def refresh_statistics(self) -> None:
        """Bring the statistics up to date, some documents at a time."""
        while self._connection.value("rag._refresh_statistics()"):
            self._connection.check()

    def fill_pipelines(self) -> bool:
        """Queue what pipelines that are being built lack; False where there is nothing."""
        return self._connection.value("rag._fill_pipelines()")

    def build_deferred_index(self) -> bool:
        """Build an index that was put off; False where there is none."""
        return self._connection.value("rag._build_deferred_index()")

    # Claims

    def lanes(self) -> list[Lane]:
        """Where jobs wait; jobs of dead workers are freed first."""
        self._connection.rows("select rag._free_jobs_of_dead_workers()")
        return [Lane(**row) for row in self._connection.rows("select * from rag._lanes()")]

    def claim(self, lane: Lane, max_jobs: int) -> list[Job]:
        """The next jobs of a lane."""
        return _jobs(
            self._connection.rows(
                _CLAIMED + "rag._claim_jobs($1, $2, $3, $4, $5) c",
                ["int4", "int2", "int8", "int8", "int4"],
                self.worker_id,
                lane.priority,
                lane.tenant_id,
                lane.job_id,
                max_jobs,
            )
        )

    def claim_retry(self) -> list[Job]:
        """A job that was tried before, if one is due."""
        return _jobs(
            self._connection.rows(
                _CLAIMED + "rag._claim_retry($1) c", ["int4"], self.worker_id
            )
        )

    def give_back(self) -> None:
        """Let others have what was claimed and not done."""
        self._connection.rows("select rag._give_back_jobs($1)", ["int4"], self.worker_id)

    # A job

    def content(self, job: Job) -> bytes | None:
        """The document itself, where the source keeps it in a column."""
        return self._connection.value(
            "rag._source_content($1, $2)", ["int4", "text"], job.source_id, job.source_key
        )

    def finish_if_unchanged(self, job: Job, sha256: str) -> bool:
        """End the job where the document is stored as it would come out again."""
        return self._connection.value(
            "rag._finish_if_unchanged($1, $2, $3, pg_catalog.decode($4, 'hex'))",
            ["int8", "int4", "int8", "text"],
            job.job_id,
            self.worker_id,
            job.generation,
            sha256,
        )

    def quota_problem(self, job: Job, size: int, chunks: int) -> str | None:
        """What the document would exceed, in words, if it came to so many bytes and chunks."""
        return self._connection.value(
            "rag._quota_problem($1, $2, $3)", ["int8", "int8", "int4"], job.job_id, size, chunks
        )

    def same_cut(self, job: Job) -> Cut | None:
        """The document as another pipeline with the same chunking has it, if there is one."""
        rows = self._connection.rows("select * from rag._same_cut($1)", ["int8"], job.job_id)
        if not rows:
            return None
        first = rows[0]
        document = StoredDocument(
            sha256=first["sha256"],
            size=first["size"],
            mime_type=first["mime_type"],
            extracted=json.loads(first["extracted"]),
        )
        blocks = [Block(row["content"], row["page_number"], row["section"]) for row in rows]
        return Cut(document, first["title"], blocks)

    def stored_hashes(self, job: Job) -> set[str]:
        """Hashes, in hexadecimal, of the chunks that the document has now."""
        rows = self._connection.rows(
            "select pg_catalog.encode(h, 'hex') as hash from rag._stored_hashes($1) h",
            ["int8"],
            job.job_id,
        )
        return {row["hash"] for row in rows}

    def store(
        self,
        job: Job,
        document: StoredDocument,
        chunks: Iterable[tuple[Chunk, str, str | None]],
    ) -> str:
        """Put the document in the place of what was stored of it; returns the job's outcome.

        Chunks come with their hash and their vector in pgvector's text form, None to keep the one
        that the document's present chunk of the same hash has.
        """
        return self._connection.value(
            "rag._store_document($1, $2, $3, $4, $5)",
            ["int8", "int4", "int8", "json", "json"],
            job.job_id,
            self.worker_id,
            job.generation,
            json.dumps(asdict(document)),
            json.dumps([_stored(index, *chunk) for index, chunk in enumerate(chunks)]),
        )

    def fail(self, job: Job, error: DocumentError) -> str:
        """End the attempt; returns queued, dead, or superseded where a newer job waits."""
        message = error.message if not error.detail else f"{error.message}. {error.detail}"
        return self._connection.value(
            "rag._fail_job($1, $2, $3, $4, $5, $6, $7, $8)",
            ["int8", "int4", "int8", "text", "text", "text", "text", "text"],
            job.job_id,
            self.worker_id,
            job.generation,
            error.failure,
            error.stage,
            error.code,
            message,
            error.hint,
        )


def _jobs(rows: Sequence[Row]) -> list[Job]:
    return [Job(**row) for row in rows]


def _stored(index: int, chunk: Chunk, hash_: str, embedding: str | None) -> Mapping[str, Any]:
    """A chunk as rag._store_document() takes it."""
    return {
        "chunk_index": index,
        "content": chunk.content,
        "char_count": chunk.char_count,
        "token_count": chunk.token_count,
        "page_number": chunk.page_number,
        "section": chunk.section,
        "hash": hash_,
        # What both legs index, null where that is the content alone.
        "indexed_text": None if chunk.embed_text == chunk.content else chunk.embed_text,
        "embedding": embedding,
    }

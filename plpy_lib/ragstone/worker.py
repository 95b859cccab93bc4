"""The worker: from claimed jobs to stored chunks.

Claim, commit, work, commit: no transaction is open while a document is read, extracted or embedded.
The child extracts the next document while this one is embedded, and several small documents are
embedded together; each is stored in a transaction of its own.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from ragstone import api
from ragstone.chunk import Chunk
from ragstone.db import Database, Job, Pipeline, StoredChunk, StoredDocument
from ragstone.embed import vector_literal
from ragstone.errors import DocumentError
from ragstone.extract.model import Limits
from ragstone.files import Snapshot, open_beneath, snapshot
from ragstone.protocol import Extraction, ExtractRequest
from ragstone.sandbox import Sandbox

EMBED_TOGETHER_TOKENS = 2048
"""Small documents are embedded together up to this: enough to fill a few runs of the model."""


def drain(plpy: Any, run_for: str, max_documents: int | None) -> None:
    """Body of the procedure rag.drain()."""
    db = Database(plpy)
    deadline = time.monotonic() + db.seconds(run_for)
    worker_id = db.register_worker()
    try:
        db.commit()
    except db.database_errors:
        db.error(
            "rag.drain() cannot run inside a transaction block",
            sqlstate="25001",
            detail="It commits after every document.",
            hint="Call it outside of begin … commit, and not from a function.",
        )
    worker = Worker(db, worker_id)
    try:
        worker.run(deadline, max_documents)
    finally:
        worker.close()


@dataclass(slots=True)
class Extracted:
    """A document between the child and the model."""

    job: Job
    source: Snapshot
    extraction: Extraction
    hashes: list[str]
    is_stored: list[bool]

    @property
    def new_chunks(self) -> list[Chunk]:
        return [
            c
            for c, stored in zip(self.extraction.chunks, self.is_stored, strict=True)
            if not stored
        ]


@dataclass(slots=True)
class Tally:
    """What was done since the last report."""

    documents: int = 0
    chunks: int = 0
    tokens: int = 0


@dataclass
class Worker:
    """One session's work on the queue."""

    db: Database
    worker_id: int
    _tally: Tally = field(default_factory=Tally)
    _pipelines: dict[int, Pipeline] = field(default_factory=dict)
    _settings: dict[int | None, dict[str, str | None]] = field(default_factory=dict)
    _sandbox: Sandbox = field(default_factory=Sandbox)

    def run(self, deadline: float, max_documents: int | None) -> None:
        """Work until queue and time are used up, until stopped, or until the maximum."""
        left = max_documents
        while left is None or left > 0:
            if self._report("working"):
                return
            self._forget_configuration()
            self.db.expand_changes(min_priority=0)
            self.db.commit()
            limit = self._integer("claim_documents")
            jobs = self.db.claim(self.worker_id, limit if left is None else min(limit, left))
            self.db.commit()
            if jobs:
                self._process(jobs)
                left = None if left is None else left - len(jobs)
                self.db.refresh_statistics()
                self.db.commit()
            elif not self._expand_backlog() and not self._wait(deadline):
                return

    def close(self) -> None:
        """Leave nothing behind: no child, no claimed job, no entry among the workers."""
        self._sandbox.close()
        self.db.rollback()
        self.db.give_back(self.worker_id)
        self.db.leave_worker(self.worker_id)
        self.db.commit()

    # The loop

    def _report(self, state: str) -> bool:
        tally, self._tally = self._tally, Tally()
        stop = self.db.report_worker(
            self.worker_id, state, tally.documents, tally.chunks, tally.tokens
        )
        self.db.commit()
        return stop

    def _forget_configuration(self) -> None:
        self._settings.clear()
        self._pipelines.clear()

    def _setting(self, name: str, tenant_id: int | None = None) -> str | None:
        if tenant_id not in self._settings:
            self._settings[tenant_id] = self.db.settings(tenant_id)
        return self._settings[tenant_id][name]

    def _integer(self, name: str, tenant_id: int | None = None) -> int:
        return int(self._setting(name, tenant_id) or 0)

    def _expand_backlog(self) -> bool:
        expanded = self.db.expand_changes(min_priority=-32768) > 0
        self.db.commit()
        return expanded

    def _wait(self, deadline: float) -> bool:
        """Sleep until the next look at the queue; False where there is no time left for one."""
        self.db.refresh_statistics()
        self.db.commit()
        if time.monotonic() >= deadline or self._report("idle"):
            return False
        self.db.sleep(self._integer("poll_interval_ms"))
        self.db.commit()
        return True

    # A batch

    def _process(self, jobs: Sequence[Job]) -> None:
        group: list[Extracted] = []
        for document in self._extractions(jobs):
            if group and group[0].job.pipeline_id != document.job.pipeline_id:
                self._embed_and_store(group)
                group = []
            group.append(document)
            if sum(c.token_count for d in group for c in d.new_chunks) >= EMBED_TOGETHER_TOKENS:
                self._embed_and_store(group)
                group = []
        if group:
            self._embed_and_store(group)

    def _extractions(self, jobs: Iterable[Job]) -> Iterator[Extracted]:
        """What the child makes of the jobs' documents, one document ahead of the consumer."""
        in_child: tuple[Job, Snapshot] | None = None
        for job in chain(jobs, [None]):
            done = (
                self._attempt(in_child[0], "extract", self._collect, *in_child)
                if in_child
                else None
            )
            in_child = self._attempt(job, "read", self._submit, job) if job else None
            if done is not None:
                yield done

    def _submit(self, job: Job) -> tuple[Job, Snapshot] | None:
        """Read the document and hand it to the child; None where it has its chunks already."""
        pipeline = self._pipeline(job)
        with self._read(job) as source:
            unchanged = self.db.finish_if_unchanged(self.worker_id, job, source.sha256)
            self.db.commit()
            if unchanged:
                self._tally.documents += 1
                return None
            self._check_quotas(job, source.size)
            self._sandbox.submit(self._request(job, pipeline), source.fd)
            return job, source

    def _request(self, job: Job, pipeline: Pipeline) -> ExtractRequest:
        return ExtractRequest(
            file_name=job.file_path or "",
            limits=self._limits(job.tenant_id),
            chunk_spec=pipeline.chunk_spec,
            tokenizer_path=api.model_dir(pipeline.model) / "tokenizer.json",
            title=job.title,
            language=job.language,
        )

    def _read(self, job: Job) -> Snapshot:
        limit = self._integer("max_file_bytes", job.tenant_id)
        if job.has_content:
            content = self.db.content(job)
            self.db.commit()
            if content is None:
                raise DocumentError(
                    "no_content",
                    "the content is null",
                    stage="read",
                    hint="Put the document into the content column, or delete the row.",
                )
            return snapshot(content, limit, self._check)
        root = self._setting("document_root")
        if root is None:
            raise DocumentError(
                "no_document_root",
                "no document root is set",
                permanent=False,
                stage="read",
                hint="Type: select rag.set('document_root', '/folder/of/the/documents');",
            )
        if job.file_path is None:
            raise DocumentError(
                "no_path",
                "the path is null",
                stage="read",
                hint="Put the file's name into the path column, or delete the row.",
            )
        fd = open_beneath(Path(root), job.file_path)
        try:
            return snapshot(fd, limit, self._check)
        finally:
            os.close(fd)

    def _collect(self, job: Job, source: Snapshot) -> Extracted:
        extraction = self._sandbox.result(self._check)
        self._check_type(job, extraction.mime_type)
        self._check_quotas(job, source.size, len(extraction.chunks))
        hashes = [chunk_hash(chunk) for chunk in extraction.chunks]
        stored = self.db.stored_hashes(job)
        self.db.commit()
        return Extracted(job, source, extraction, hashes, [h in stored for h in hashes])

    def _embed_and_store(self, group: Sequence[Extracted]) -> None:
        pipeline = self._pipeline(group[0].job)
        texts = [chunk.embed_text for document in group for chunk in document.new_chunks]
        vectors = iter(api.embedder(pipeline.model).embed(texts, check=self._check))
        for document in group:
            literals = [vector_literal(next(vectors)) for _ in document.new_chunks]
            self._attempt(document.job, "store", self._store, document, literals)

    def _store(self, document: Extracted, literals: Sequence[str]) -> None:
        extraction, embeddings = document.extraction, iter(literals)
        chunks = [
            StoredChunk(
                chunk_index=index,
                content=chunk.content,
                char_count=chunk.char_count,
                token_count=chunk.token_count,
                page_number=chunk.page_number,
                section=chunk.section,
                hash=hash_,
                embedding=None if stored else next(embeddings),
            )
            for index, (chunk, hash_, stored) in enumerate(
                zip(extraction.chunks, document.hashes, document.is_stored, strict=True)
            )
        ]
        stored_document = StoredDocument(
            sha256=document.source.sha256,
            size=document.source.size,
            mime_type=extraction.mime_type,
            extracted=properties(extraction),
        )
        self.db.store(self.worker_id, document.job, stored_document, chunks)
        self.db.commit()
        self._tally.documents += 1
        self._tally.chunks += len(chunks)
        self._tally.tokens += sum(chunk.token_count for chunk in document.new_chunks)

    # Helpers

    def _attempt(self, job: Job, stage: str, step: Any, *args: Any) -> Any:
        """Do one step for one document; what goes wrong is recorded on it, and the others go on."""
        try:
            return step(*args)
        except DocumentError as error:
            failure = error
        except Exception as error:
            if self.db.is_interrupt(error):
                raise
            failure = DocumentError(
                "internal_error",
                f"{type(error).__name__}: {error}",
                permanent=False,
                stage=stage,
                hint="This is a fault of ragstone or of the server: see the server's log.",
            )
        self.db.rollback()
        self.db.fail(self.worker_id, job, failure)
        self.db.commit()
        self._tally.documents += 1
        return None

    def _check(self) -> None:
        self.db.check()
        # A snapshot taken by the check would hold back vacuum for as long as the model works.
        self.db.commit()

    def _pipeline(self, job: Job) -> Pipeline:
        if job.pipeline_id not in self._pipelines:
            self._pipelines[job.pipeline_id] = self.db.pipeline(job.pipeline_id)
            self.db.commit()
        return self._pipelines[job.pipeline_id]

    def _limits(self, tenant_id: int | None) -> Limits:
        return Limits(
            max_bytes=self._integer("max_file_bytes", tenant_id),
            max_inflated_bytes=self._integer("max_inflated_bytes", tenant_id),
            max_pages=self._integer("max_pages", tenant_id),
            max_text_characters=self._integer("max_text_characters", tenant_id),
            max_chunks=self._integer("max_chunks", tenant_id),
            memory_bytes=self._integer("extraction_memory_bytes"),
            cpu_seconds=self._integer("extraction_cpu_s", tenant_id),
            wall_seconds=self._integer("extraction_wall_s", tenant_id),
        )

    def _check_type(self, job: Job, mime_type: str) -> None:
        allowed = self._setting("allowed_types", job.tenant_id) or "*"
        if not any(fnmatchcase(mime_type, pattern) for pattern in allowed.split(",")):
            raise DocumentError(
                "type_not_allowed",
                f"documents of type {mime_type} are not taken in",
                detail=f"allowed_types is {allowed}.",
                hint="Convert the document, or change the setting allowed_types.",
            )

    def _check_quotas(self, job: Job, size: int, chunks: int = 0) -> None:
        if job.tenant_id is None:
            return
        problem = self.db.quota_problem(job, size, chunks)
        self.db.commit()
        if problem:
            raise DocumentError(
                "over_quota",
                "the document is over a quota of its tenant",
                detail=f"{problem}.",
                hint="Delete other documents of the tenant, or raise the limit with rag.set().",
            )


def chunk_hash(chunk: Chunk) -> str:
    """sha256 in hexadecimal of what is stored and what is embedded: equal means the same vector."""
    return hashlib.sha256(f"{chunk.content}\0{chunk.embed_text}".encode()).hexdigest()


def properties(extraction: Extraction) -> dict[str, object]:
    """What the file says of itself, for rag.documents.extracted."""
    known = {
        "title": extraction.title,
        "author": extraction.author,
        "language": extraction.language,
        "created": extraction.created,
        "pages": extraction.pages,
        "partial": extraction.partial,
    }
    return extraction.metadata | {key: value for key, value in known.items() if value is not None}

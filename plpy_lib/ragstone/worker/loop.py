"""The worker: from claimed jobs to stored chunks.

Claim, commit, work, commit: no transaction is open while a document is read, extracted or embedded.
Documents are read in one child process and embedded in another, several small ones together, while
those before are stored, each in a transaction of its own: three stages at work at a time.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ragstone.db.calls import Database
from ragstone.db.rows import Job, Pipeline, StoredChunk, StoredDocument
from ragstone.errors import DocumentError
from ragstone.extract import tesseract
from ragstone.extract.options import Limits
from ragstone.memory import available_bytes, private_bytes
from ragstone.reading.chunk import Chunk, keep_cut
from ragstone.reading.passages import Extraction
from ragstone.reading.read import chunk_hash, limits, properties, read_file
from ragstone.sandbox.parent import Sandbox
from ragstone.sandbox.protocol import EmbedRequest, ExtractRequest
from ragstone.server import functions
from ragstone.stores.files import Snapshot, snapshot
from ragstone.worker.meter import Meter, log_line
from ragstone.worker.turns import Turns

EMBED_TOGETHER_TOKENS = 8192
"""Documents are embedded together up to this, a second's work: the more texts, the less padding."""


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
    worker = Worker(db, worker_id, recycles=db.seconds(run_for) > 0)
    try:
        worker.run(deadline, max_documents)
    finally:
        worker.close()


@dataclass(frozen=True, slots=True)
class Passages:
    """A document as chunks, before the model has seen them."""

    document: StoredDocument
    chunks: Sequence[Chunk]


@dataclass(frozen=True, slots=True)
class InChild:
    """A document whose answer the child owes."""

    job: Job
    source: Snapshot


@dataclass(slots=True)
class Prepared:
    """A document between the child and the model."""

    job: Job
    passages: Passages
    hashes: list[str]
    is_stored: list[bool]
    seconds_left: float

    @property
    def new_chunks(self) -> list[Chunk]:
        return [
            c for c, stored in zip(self.passages.chunks, self.is_stored, strict=True) if not stored
        ]


@dataclass(frozen=True, slots=True)
class InModel:
    """Documents whose vectors the model's process owes, if they have new chunks at all."""

    documents: Sequence[Prepared]
    is_sent: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that is over for now, with what its line in the log says of it."""

    outcome: str
    facts: Mapping[str, object]


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
    recycles: bool = False
    _tally: Tally = field(default_factory=Tally)
    _meter: Meter = field(default_factory=Meter)
    _pipelines: dict[int, Pipeline] = field(default_factory=dict)
    _settings: dict[int | None, dict[str, str | None]] = field(default_factory=dict)
    _reader: Sandbox[Extraction] = field(default_factory=Sandbox)
    _model: Sandbox[list[str]] = field(default_factory=lambda: Sandbox(name="embed"))
    _in_model: InModel | None = None
    _done: int = 0
    _last_work: float = field(default_factory=time.monotonic)
    _short_of_memory: bool = False

    def __post_init__(self) -> None:
        self._turns = Turns(
            look=self._committed(self.db.lanes),
            take=self._committed(lambda lane, most: self.db.take(self.worker_id, lane, most)),
            take_retry=self._committed(lambda: self.db.take_retry(self.worker_id)),
        )

    def run(self, deadline: float, max_documents: int | None) -> None:
        """Work until queue and time are used up, until stopped, or until the maximum."""
        self._work(deadline, max_documents)
        self._store_embedded()

    def close(self) -> None:
        """Leave nothing behind: no child, no claimed job, no entry among the workers."""
        self._close_children()
        self.db.rollback()
        self.db.give_back(self.worker_id)
        self._write_report("idle")
        self.db.leave_worker(self.worker_id)
        self.db.commit()

    # The loop

    def _work(self, deadline: float, max_documents: int | None) -> None:
        left = max_documents
        state = "working"
        while left is None or left > 0:
            self._check()
            if self._report(state):
                return
            self._forget_configuration()
            if held := self._held_back():
                state = held
                self._store_embedded()
                if not self._pause(deadline):
                    return
                continue
            self.db.expand_changes(min_priority=0)
            self.db.commit()
            limit = self._integer("claim_documents")
            jobs = self._claim(limit if left is None else min(limit, left))
            if jobs:
                state = "working"
                self._process(jobs)
                self._done += len(jobs)
                self._last_work = time.monotonic()
                left = None if left is None else left - len(jobs)
                self.db.refresh_statistics()
                self.db.commit()
                if self._is_spent():
                    return
            elif not self._store_embedded() and not self._expand_backlog():
                state = "idle"
                self.db.refresh_statistics()
                self.db.commit()
                if time.monotonic() >= deadline:
                    # The last word: nothing has come since, not even behind what was seen.
                    self._turns.look()
                    if not (jobs := self._claim(1)):
                        return
                    self._process(jobs)
                    left = None if left is None else left - len(jobs)
                else:
                    self._end_children_when_idle()
                    self._pause(deadline)

    def _committed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def committed(*args: Any) -> Any:
            result = call(*args)
            self.db.commit()
            return result

        return committed

    def _claim(self, max_jobs: int) -> list[Job]:
        job_ids = self._turns.claim(max_jobs)
        if not job_ids:
            return []
        jobs = self.db.jobs(job_ids)
        self.db.commit()
        return jobs

    def _report(self, state: str) -> bool:
        stop = self._write_report(state)
        self.db.commit()
        return stop

    def _write_report(self, state: str) -> bool:
        tally, self._tally = self._tally, Tally()
        if counts := self._meter.take():
            self.db.count(self.worker_id, counts)
        return self.db.report_worker(
            self.worker_id, state, tally.documents, tally.chunks, tally.tokens
        )

    def _forget_configuration(self) -> None:
        self._settings.clear()
        self._pipelines.clear()

    def _setting(self, name: str, tenant_id: int | None = None) -> str | None:
        if tenant_id not in self._settings:
            self._settings[tenant_id] = self.db.settings(tenant_id)
        return self._settings[tenant_id][name]

    def _integer(self, name: str, tenant_id: int | None = None) -> int:
        return int(self._setting(name, tenant_id) or 0)

    def _held_back(self) -> str | None:
        """The state of a worker that shall not take documents now, None where it may."""
        if self._setting("workers_paused") == "on":
            return "paused"
        available = available_bytes()
        limit = self._integer("min_available_memory_bytes")
        if available is None or available >= limit:
            self._short_of_memory = False
            return None
        if not self._short_of_memory:
            self._short_of_memory = True
            self.db.warning(
                f"work is put off: the machine has {available >> 20} MB of memory available",
                detail=f"Workers wait until it has {limit >> 20} MB.",
                hint="The limit: select rag.set('min_available_memory_bytes', …);",
            )
        return "short of memory"

    def _is_spent(self) -> bool:
        """Whether a worker that pg_cron will replace has done its part."""
        if not self.recycles:
            return False
        most = self._integer("worker_max_documents")
        memory = self._integer("worker_max_memory_bytes")
        pids = [os.getpid(), *(child.pid for child in (self._reader, self._model) if child.pid)]
        return 0 < most <= self._done or 0 < memory < private_bytes(pids)

    def _expand_backlog(self) -> bool:
        """Turn what is still only noted into jobs; False where there is nothing."""
        expanded = self.db.expand_changes(min_priority=-32768) > 0
        self.db.commit()
        filled = self.db.fill_pipelines()
        self.db.commit()
        if expanded or filled:
            return True
        built = self.db.build_deferred_index()
        self.db.commit()
        return built

    def _end_children_when_idle(self) -> None:
        if time.monotonic() - self._last_work > self._integer("model_idle_s"):
            self._close_children()
            self._last_work = math.inf

    def _close_children(self) -> None:
        self._in_model = None
        self._reader.close()
        self._model.close()

    def _pause(self, deadline: float) -> bool:
        """Sleep until the next look at the queue; False where there is no time left for one."""
        if time.monotonic() >= deadline:
            return False
        self.db.sleep(self._integer("poll_interval_ms"))
        self.db.commit()
        return True

    # A batch

    def _process(self, jobs: Sequence[Job]) -> None:
        """Read and embed the documents and store all but the last few, still in the model."""
        group: list[Prepared] = []
        for document in self._prepare(jobs):
            if group and group[0].job.pipeline_id != document.job.pipeline_id:
                self._hand_over(group)
                group = []
            group.append(document)
            if sum(c.token_count for d in group for c in d.new_chunks) >= EMBED_TOGETHER_TOKENS:
                self._hand_over(group)
                group = []
        if group:
            self._hand_over(group)

    def _prepare(self, jobs: Iterable[Job]) -> Iterator[Prepared]:
        """The jobs' documents as chunks; the child is one document ahead of the consumer."""
        in_child: InChild | None = None
        for job in chain(jobs, [None]):
            collected = (
                self._attempt(in_child.job, "extract", self._collect, in_child)
                if in_child
                else None
            )
            submitted = self._attempt(job, "read", self._submit, job) if job else None
            in_child = submitted if isinstance(submitted, InChild) else None
            if collected is not None:
                yield collected
            if isinstance(submitted, Prepared):
                yield submitted

    def _submit(self, job: Job) -> InChild | Prepared | Ended:
        """Read the document and hand it to the child, or do without."""
        pipeline = self._pipeline(job)
        if passages := self._same_cut(job, pipeline):
            return self._compare(job, passages)
        with self._read(job) as source:
            unchanged = self.db.finish_if_unchanged(self.worker_id, job, source.sha256)
            self.db.commit()
            if unchanged:
                return Ended("unchanged", {"size": source.size})
            self._check_quotas(job, source.size)
            self._reader.submit(self._request(job, pipeline), source.fd)
            return InChild(job, source)

    def _same_cut(self, job: Job, pipeline: Pipeline) -> Passages | None:
        """The document as another pipeline has cut it, where that serves here too."""
        cut = self.db.same_cut(job)
        self.db.commit()
        if cut is None:
            return None
        tokenizer = functions.tokenizer(pipeline.model)
        chunks = keep_cut(cut.passages, pipeline.chunk_spec, tokenizer, cut.title)
        return None if chunks is None else Passages(cut.document, chunks)

    def _collect(self, waiting: InChild) -> Prepared:
        job, extraction = waiting.job, self._reader.result(self._check)
        self._check_quotas(job, waiting.source.size, len(extraction.chunks))
        document = StoredDocument(
            sha256=waiting.source.sha256,
            size=waiting.source.size,
            mime_type=extraction.mime_type,
            extracted=properties(extraction),
        )
        return self._compare(job, Passages(document, extraction.chunks), self._reader.seconds)

    def _compare(self, job: Job, passages: Passages, seconds: float = 0.0) -> Prepared:
        """Find the chunks that the document has already; `seconds` were spent on it so far."""
        hashes = [chunk_hash(chunk) for chunk in passages.chunks]
        stored = self.db.stored_hashes(job)
        self.db.commit()
        left = self._integer("job_time_limit_s") - seconds
        return Prepared(job, passages, hashes, [h in stored for h in hashes], left)

    def _request(self, job: Job, pipeline: Pipeline) -> ExtractRequest:
        return ExtractRequest(
            file_name=job.file_path or "",
            limits=self._limits(job.tenant_id),
            chunk_spec=pipeline.chunk_spec,
            tokenizer_path=functions.tokenizer_path(pipeline.model),
            title=job.title,
            language=job.language,
            ocr=tesseract.ocr(pipeline.ocr),
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
        return read_file(self._setting("document_root"), job.file_path, limit, self._check)

    def _hand_over(self, group: Sequence[Prepared]) -> None:
        """Give documents to the model's process, and meanwhile store those it had before."""
        embedded = self._embedded()
        try:
            self._in_model = InModel(group, self._send_to_model(group))
        except Exception as error:
            embedded += self._embedded_alone(group, error)
        self._store_all(embedded)

    def _store_embedded(self) -> bool:
        """Store what is still in the model's process; False where nothing is."""
        if self._in_model is None:
            return False
        self._store_all(self._embedded())
        return True

    def _store_all(self, embedded: Iterable[tuple[Prepared, Sequence[str]]]) -> None:
        for document, literals in embedded:
            self._attempt(document.job, "store", self._store, document, literals)

    def _send_to_model(self, group: Sequence[Prepared]) -> bool:
        """False where the documents have nothing new to embed."""
        texts = [chunk.embed_text for document in group for chunk in document.new_chunks]
        if texts:
            folder = functions.model_dir(self._pipeline(group[0].job).model)
            left = min(document.seconds_left for document in group)
            self._model.submit(EmbedRequest(folder, texts, wall_seconds=max(left, 0.001)))
        return bool(texts)

    def _embedded(self) -> list[tuple[Prepared, Sequence[str]]]:
        """The documents in the model's process with the vectors of their new chunks."""
        if self._in_model is None:
            return []
        waiting, self._in_model = self._in_model, None
        try:
            literals = iter(self._model.result(self._check) if waiting.is_sent else ())
        except Exception as error:
            return self._embedded_alone(waiting.documents, error)
        if waiting.is_sent:
            job_ids = [document.job.job_id for document in waiting.documents]
            self._meter.add("embed", self._model.seconds, job_ids)
        return [(d, [next(literals) for _ in d.new_chunks]) for d in waiting.documents]

    def _embedded_alone(
        self, documents: Iterable[Prepared], error: Exception
    ) -> list[tuple[Prepared, Sequence[str]]]:
        """Each by itself, after an error of them all, which shows whose fault it was."""
        if self.db.is_interrupt(error):
            raise error
        self.db.rollback()
        alone = [
            (d, self._attempt(d.job, "embed", self._embed, d) if d.new_chunks else [])
            for d in documents
        ]
        return [(document, literals) for document, literals in alone if literals is not None]

    def _embed(self, document: Prepared) -> list[str]:
        try:
            self._send_to_model([document])
            return self._model.result(self._check)
        except DocumentError as error:
            error.stage = "embed"
            if error.code == "timeout":
                limit = self._integer("job_time_limit_s")
                error.detail = f"The limit is {limit} s for all stages."
                error.hint = "Split it, or: select rag.set('job_time_limit_s', …);"
            raise

    def _store(self, document: Prepared, literals: Sequence[str]) -> Ended:
        passages, embeddings = document.passages, iter(literals)
        chunks = [
            StoredChunk(
                chunk_index=index,
                content=chunk.content,
                char_count=chunk.char_count,
                token_count=chunk.token_count,
                page_number=chunk.page_number,
                section=chunk.section,
                hash=hash_,
                indexed_text=None if chunk.embed_text == chunk.content else chunk.embed_text,
                embedding=None if stored else next(embeddings),
            )
            for index, (chunk, hash_, stored) in enumerate(
                zip(passages.chunks, document.hashes, document.is_stored, strict=True)
            )
        ]
        outcome = self.db.store(self.worker_id, document.job, passages.document, chunks)
        self.db.commit()
        self._tally.chunks += len(chunks)
        self._tally.tokens += sum(chunk.token_count for chunk in document.new_chunks)
        size, new = passages.document.size, len(document.new_chunks)
        return Ended(outcome, {"size": size, "chunks": len(chunks), "new_chunks": new})

    # Helpers

    def _attempt(self, job: Job, stage: str, step: Any, *args: Any) -> Any:
        """Do one step for one document; what goes wrong is recorded on it, and the others go on."""
        try:
            with self._timing(stage, job):
                result = step(*args)
        except DocumentError as error:
            failure = error
        except Exception as error:
            if self.db.is_interrupt(error):
                raise
            failure = DocumentError(
                self.db.sqlstate(error) or "internal_error",
                f"{type(error).__name__}: {error}",
                permanent=False,
                stage=stage,
                hint="This is a fault of ragstone or of the server: see the server's log.",
            )
        else:
            if isinstance(result, Ended):
                self._finish(job, result)
            return result
        self.db.rollback()
        became = self.db.fail(self.worker_id, job, failure)
        self.db.commit()
        outcome = "retried" if became == "queued" else became
        self._finish(job, Ended(outcome, {"stage": failure.stage, "error": failure.code}))
        return None

    @contextmanager
    def _timing(self, stage: str, job: Job) -> Iterator[None]:
        """Note what the step takes; for a child's work that is the child's own time."""
        child = {"extract": self._reader, "embed": self._model}.get(stage)
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = child.seconds if child else time.monotonic() - started
            self._meter.add(stage, seconds, [job.job_id])

    def _finish(self, job: Job, ended: Ended) -> None:
        """Count a job that is over for now and, where the setting asks for it, log it."""
        self._tally.documents += 1
        spent = self._meter.finish(job.job_id, ended.outcome)
        threshold = self._setting("log_min_duration_ms")
        if threshold is None or (
            "error" not in ended.facts and sum(spent.values()) * 1000 < int(threshold)
        ):
            return
        fields = {
            "job": job.job_id,
            "source": job.source_id,
            "document": job.document_id,
            "pipeline": job.pipeline_id,
            "attempt": job.attempts,
            "outcome": ended.outcome,
        }
        self.db.log(log_line({**fields, **ended.facts}, spent))

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
        self._setting("max_pages", tenant_id)  # have the tenant's settings read
        return limits(self._settings[tenant_id])

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

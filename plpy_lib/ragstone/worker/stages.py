"""The three stages of a document: prepared in one child, embedded in another, stored.

They go on at a time: the next document is prepared and the one before is stored while some are
in the model. No transaction is open meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from ragstone.db.connection import Connection
from ragstone.db.queue import Queue
from ragstone.db.rows import Cut, Job, Pipeline, StoredDocument
from ragstone.errors import DocumentError
from ragstone.extract import tesseract
from ragstone.models import providers
from ragstone.reading.chunk import Chunk, keep_cut
from ragstone.reading.passages import Extraction
from ragstone.reading.read import chunk_hash, properties
from ragstone.sandbox.parent import Sandbox
from ragstone.sandbox.protocol import EmbedRequest, ExtractRequest
from ragstone.stores.places import open_document
from ragstone.stores.port import Snapshot
from ragstone.worker.attempts import Attempts
from ragstone.worker.configuration import Configuration
from ragstone.worker.records import Ended, InChild, InModel, Prepared

EMBED_TOGETHER_TOKENS = 8192
"""Documents are embedded together up to this, a second's work: the more texts, the less padding."""

Embedded = tuple[Prepared, Sequence[str]]
"""A document with the vectors of its new chunks."""


@dataclass
class Stages:
    """What one worker has in hand. `process` leaves the last documents in the model, `finish`
    stores them.
    """

    connection: Connection
    queue: Queue
    configuration: Configuration
    attempts: Attempts
    reader: Sandbox[Extraction] = field(default_factory=Sandbox)
    model: Sandbox[list[str]] = field(default_factory=lambda: Sandbox(name="embed"))
    _in_model: InModel | None = None

    def process(self, jobs: Sequence[Job]) -> None:
        """Read and embed the documents and store all but the last few, still in the model."""
        group: list[Prepared] = []
        tokens = 0
        for document in self._prepare(jobs):
            if group and group[0].job.pipeline_id != document.job.pipeline_id:
                self._hand_over(group)
                group, tokens = [], 0
            group.append(document)
            tokens += sum(chunk.token_count for chunk in document.new_chunks)
            if tokens >= EMBED_TOGETHER_TOKENS:
                self._hand_over(group)
                group, tokens = [], 0
        if group:
            self._hand_over(group)

    def finish(self) -> bool:
        """Store what is still in the model's process; False where nothing is."""
        if self._in_model is None:
            return False
        self._store_all(self._embedded())
        return True

    def close_children(self) -> None:
        """End both processes, with what they have in hand."""
        self._in_model = None
        self.reader.close()
        self.model.close()

    @property
    def child_pids(self) -> list[int]:
        return [child.pid for child in (self.reader, self.model) if child.pid]

    # Prepare

    def _prepare(self, jobs: Iterable[Job]) -> Iterator[Prepared]:
        """The jobs' documents as chunks; the child is one document ahead of the consumer."""
        in_child: InChild | None = None
        for job in chain(jobs, [None]):
            collected = self._try_to_collect(in_child) if in_child else None
            submitted = self._try_to_submit(job) if job else None
            in_child = submitted if isinstance(submitted, InChild) else None
            if collected is not None:
                yield collected
            if isinstance(submitted, Prepared):
                yield submitted

    def _try_to_submit(self, job: Job) -> InChild | Prepared | Ended | None:
        return self.attempts.step(job, "read", lambda: self._submit(job))

    def _try_to_collect(self, waiting: InChild) -> Prepared | None:
        return self.attempts.step(
            waiting.job, "extract", lambda: self._collect(waiting), lambda: self.reader.seconds
        )

    def _submit(self, job: Job) -> InChild | Prepared | Ended:
        """Read the document and hand it to the child, or do without."""
        pipeline = self.configuration.pipeline(job.pipeline_id)
        cut = self.queue.same_cut(job)
        if cut and (chunks := self._keep(cut, pipeline)):
            return self._compare(job, cut.document, chunks)
        with self._read(job) as source:
            if self.queue.finish_if_unchanged(job, source.sha256):
                return Ended("unchanged", {"size": source.size})
            self._check_quotas(job, source.size)
            self.reader.submit(self._request(job, pipeline), source.fd, self.connection.check)
            return InChild(job, source)

    def _keep(self, cut: Cut, pipeline: Pipeline) -> Sequence[Chunk] | None:
        """The document as another pipeline has cut it, where that serves here too."""
        counter = providers.token_counter(pipeline.model)
        return keep_cut(cut.blocks, pipeline.chunk_spec, counter, cut.title)

    def _read(self, job: Job) -> Snapshot:
        document = open_document(
            job.file_path,
            root=self.configuration.setting("document_root"),
            content=(lambda: self.queue.content(job)) if job.has_content else None,
        )
        limit = self.configuration.integer("max_file_bytes", job.tenant_id)
        with document:
            return document.snapshot(limit, self.connection.check)

    def _request(self, job: Job, pipeline: Pipeline) -> ExtractRequest:
        return ExtractRequest(
            file_name=job.file_path or "",
            limits=self.configuration.limits(job.tenant_id),
            chunk_spec=pipeline.chunk_spec,
            model=pipeline.model,
            title=job.title,
            language=job.language,
            ocr=tesseract.ocr(pipeline.ocr),
            owner=job.tenant_id,
        )

    def _collect(self, waiting: InChild) -> Prepared:
        extraction = self.reader.result(self.connection.check)
        self._check_quotas(waiting.job, waiting.source.size, len(extraction.chunks))
        document = StoredDocument(
            sha256=waiting.source.sha256,
            size=waiting.source.size,
            mime_type=extraction.mime_type,
            extracted=properties(extraction),
        )
        return self._compare(waiting.job, document, extraction.chunks, self.reader.seconds)

    def _compare(
        self, job: Job, document: StoredDocument, chunks: Sequence[Chunk], seconds: float = 0.0
    ) -> Prepared:
        """Find the chunks that the document has already; `seconds` were spent on it so far."""
        return Prepared(
            job=job,
            document=document,
            chunks=chunks,
            hashes=[chunk_hash(chunk) for chunk in chunks],
            stored=frozenset(self.queue.stored_hashes(job)),
            seconds_left=self.configuration.integer("job_time_limit_s") - seconds,
        )

    def _check_quotas(self, job: Job, size: int, chunks: int = 0) -> None:
        if job.tenant_id is None:
            return
        if problem := self.queue.quota_problem(job, size, chunks):
            raise DocumentError(
                "over_quota",
                "the document is over a quota of its tenant",
                detail=f"{problem}.",
                hint="Delete other documents of the tenant, or raise the limit with rag.set().",
            )

    # Embed

    def _hand_over(self, group: Sequence[Prepared]) -> None:
        """Give documents to the model's process, and meanwhile store those it had before."""
        embedded = self._embedded()
        try:
            self._in_model = InModel(group, self._send_to_model(group))
        except Exception as error:
            embedded += self._embedded_alone(group, error)
        self._store_all(embedded)

    def _send_to_model(self, group: Sequence[Prepared]) -> bool:
        """False where the documents have nothing new to embed."""
        texts = [chunk.embed_text for document in group for chunk in document.new_chunks]
        if texts:
            model = self.configuration.pipeline(group[0].job.pipeline_id).model
            left = min(document.seconds_left for document in group)
            request = EmbedRequest(model, texts, wall_seconds=max(left, 0.001))
            self.model.submit(request, None, self.connection.check)
        return bool(texts)

    def _embedded(self) -> list[Embedded]:
        """The documents in the model's process with the vectors of their new chunks."""
        if self._in_model is None:
            return []
        waiting, self._in_model = self._in_model, None
        try:
            literals = iter(self.model.result(self.connection.check) if waiting.is_sent else ())
        except Exception as error:
            return self._embedded_alone(waiting.documents, error)
        if waiting.is_sent:
            job_ids = [document.job.job_id for document in waiting.documents]
            self.attempts.meter.add("embed", self.model.seconds, job_ids)
        return [(d, [next(literals) for _ in d.new_chunks]) for d in waiting.documents]

    def _embedded_alone(self, documents: Iterable[Prepared], error: Exception) -> list[Embedded]:
        """Each by itself, after an error of them all, which shows whose fault it was."""
        if self.connection.is_interrupt(error):
            raise error
        alone = [(d, self._try_to_embed(d) if d.new_chunks else []) for d in documents]
        return [(document, literals) for document, literals in alone if literals is not None]

    def _try_to_embed(self, document: Prepared) -> Sequence[str] | None:
        return self.attempts.step(
            document.job, "embed", lambda: self._embed(document), lambda: self.model.seconds
        )

    def _embed(self, document: Prepared) -> Sequence[str]:
        try:
            self._send_to_model([document])
            return self.model.result(self.connection.check)
        except DocumentError as error:
            error.stage = "embed"
            if error.code == "timeout":
                limit = self.configuration.integer("job_time_limit_s")
                error.detail = f"The limit is {limit} s for all stages."
                error.hint = "Split it, or: select rag.set('job_time_limit_s', …);"
            raise

    # Store

    def _store_all(self, embedded: Iterable[Embedded]) -> None:
        for document, literals in embedded:
            self._try_to_store(document, literals)

    def _try_to_store(self, document: Prepared, literals: Sequence[str]) -> None:
        self.attempts.step(document.job, "store", lambda: self._store(document, literals))

    def _store(self, document: Prepared, literals: Sequence[str]) -> Ended:
        vectors = iter(literals)
        chunks = [
            (chunk, hash_, None if hash_ in document.stored else next(vectors))
            for chunk, hash_ in zip(document.chunks, document.hashes, strict=True)
        ]
        outcome = self.queue.store(document.job, document.document, chunks)
        new = document.new_chunks
        self.attempts.tally.chunks += len(chunks)
        self.attempts.tally.tokens += sum(chunk.token_count for chunk in new)
        size = document.document.size
        facts = {"size": size, "chunks": len(chunks), "new_chunks": len(new)}
        if outcome == "dead":
            # Other documents of the tenant were stored since its quota was checked.
            facts |= {"stage": "store", "error": "over_quota"}
        return Ended(outcome, facts)

"""In the place of the database and of the children: what answers without either."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ragstone.db.connection import Connection, Refused
from ragstone.reading.chunk import Chunk
from ragstone.reading.passages import Extraction

_CALL = re.compile(r"\brag\.(\w+)|\bpg_catalog\.(pg_\w+|clock_timestamp)")
_PARAMETER = re.compile(r"\$\d+")


class ServerError(Exception):
    """What a statement raises."""

    def __init__(self, sqlstate: str, message: str = "it failed") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class FakeConnection(Connection):
    """A connection that answers by the name of what a statement calls, or of the table it reads.

    An answer is a value, a list of rows, an error, or a function of the parameters that gives one
    of these. `asked` is every statement by name and parameters, `said` every message.
    """

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {"pg_sleep": None, "interval": 0.0} | answers
        self.asked: list[tuple[str, tuple[Any, ...]]] = []
        self.said: list[tuple[str, str]] = []
        self.checks = 0
        self.interrupt: Exception | None = None
        self.is_open = False

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        """The parameters of every call of that name."""
        return [values for asked, values in self.asked if asked == name]

    def rows(self, sql: str, types: Sequence[str] = (), *values: Any) -> list[dict[str, Any]]:
        assert len(types) == len(values) == len(set(_PARAMETER.findall(sql)))
        names = [name for pair in _CALL.findall(sql) for name in pair if name]
        name = names[0] if names else types[0]
        self.asked.append((name, values))
        answer = self.answers[name]
        answer = answer(*values) if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, list) else [{"value": answer}]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False

    def check(self) -> None:
        assert not self.is_open, "a transaction is open while Python works"
        self.checks += 1
        if self.interrupt:
            raise self.interrupt

    def notice(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        self.said.append(("notice", message))

    def warning(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        self.said.append(("warning", message))

    def log(self, message: str) -> None:
        self.said.append(("log", message))

    def error(
        self, message: str, *, sqlstate: str, detail: str | None = None, hint: str | None = None
    ) -> Any:
        raise Refused(message, sqlstate, detail, hint)

    def sqlstate(self, error: BaseException) -> str:
        return error.sqlstate if isinstance(error, ServerError) else ""


@dataclass
class FakeQueue:
    """The queue of one worker in memory: each document's content is its text, a line a chunk.

    `jobs` wait with their contents, by document; `stored` are the chunks of each as they were
    stored, `failed` what failed, by document.
    """

    jobs: dict[int, str] = field(default_factory=dict)
    settings: dict[str, str | None] = field(default_factory=dict)
    pipeline_of: dict[int, int] = field(default_factory=dict)
    tenant_of: dict[int, int] = field(default_factory=dict)
    hashes_of: dict[int, list[str]] = field(default_factory=dict)
    stored: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, dict[str, Any]] = field(default_factory=dict)
    claimed: list[int] = field(default_factory=list)
    stop_requested: bool = False

    def __post_init__(self) -> None:
        self.waiting = list(self.jobs)

    def connection(self, **answers: Any) -> FakeConnection:
        """A connection to it; `answers` go before its own."""
        own = {
            "_register_worker": 7,
            "_leave_worker": None,
            "_report_worker": lambda *_: self.stop_requested,
            "_count": None,
            "_settings_of": self._settings_of,
            "_expand_changes": 0,
            "_refresh_statistics": None,
            "_fill_pipelines": False,
            "_build_deferred_index": False,
            "_free_jobs_of_dead_workers": None,
            "_lanes": self._lanes,
            "_claim_jobs": self._claim_jobs,
            "_claim_retry": [],
            "_give_back_jobs": None,
            "_same_cut": [],
            "_source_content": lambda source, key: self.jobs[int(key)].encode(),
            "_finish_if_unchanged": False,
            "_quota_problem": None,
            "_stored_hashes": lambda job: [{"hash": h} for h in self.hashes_of.get(job, ())],
            "_store_document": self.store,
            "_fail_job": self._fail,
            "pipelines": PIPELINE,
            "models": MODEL,
        }
        return FakeConnection(**own | answers)

    def store(self, job: int, worker: int, generation: int, document: str, chunks: str) -> str:
        self.stored[job] = json.loads(chunks)
        return "done"

    def _settings_of(self, tenant: int | None) -> list[dict[str, Any]]:
        settings = SETTINGS | self.settings
        return [{"name": name, "value": value} for name, value in settings.items()]

    def _lanes(self) -> list[dict[str, int]]:
        first = min(self.waiting, default=None)
        return [] if first is None else [{"priority": 0, "tenant_id": 0, "job_id": first}]

    def _claim_jobs(self, worker: int, priority: int, tenant: int, start: int, most: int) -> Any:
        taken = sorted(job for job in self.waiting if job >= start)[:most]
        self.waiting = [job for job in self.waiting if job not in taken]
        self.claimed += taken
        return [self._row(job) for job in taken]

    def _row(self, job: int) -> dict[str, Any]:
        return {
            "job_id": job,
            "source_id": 1,
            "document_id": job,
            "source_key": str(job),
            "generation": 1,
            "pipeline_id": self.pipeline_of.get(job, 1),
            "operation": "index",
            "attempts": 1,
            "file_path": f"{job}.txt",
            "title": None,
            "language": None,
            "tenant_id": self.tenant_of.get(job),
            "has_content": True,
        }

    def _fail(self, job: int, *values: Any) -> str:
        names = ("worker", "generation", "failure", "stage", "code", "message", "hint")
        self.failed[job] = dict(zip(names, values, strict=True))
        return "queued"


SETTINGS: dict[str, str | None] = {
    "allowed_types": None,
    "claim_documents": "16",
    "document_root": None,
    "extraction_cpu_s": "30",
    "extraction_memory_bytes": "500000000",
    "extraction_wall_s": "60",
    "job_time_limit_s": "600",
    "log_min_duration_ms": None,
    "max_chunks": "1000",
    "max_file_bytes": "1000000",
    "max_inflated_bytes": "1000000",
    "max_pages": "100",
    "max_text_characters": "1000000",
    "min_available_memory_bytes": "0",
    "model_idle_s": "300",
    "ocr_document_s": "60",
    "ocr_page_s": "20",
    "poll_interval_ms": "1",
    "worker_max_documents": "0",
    "worker_max_memory_bytes": "0",
    "workers_paused": "off",
}
PIPELINE = [
    {
        "pipeline_id": 1,
        "model": "small",
        "chunk_strategy": "recursive",
        "chunk_size": 512,
        "chunk_overlap": 50,
        "chunk_unit": "characters",
        "embed_template": "{content}",
        "ocr": "off",
    }
]
MODEL = [
    {
        "name": "small",
        "provider": "fake",
        "location": "here",
        "dimension": 16,
        "max_tokens": 256,
        "passage_prefix": "",
        "sha256": "00",
        "options": "{}",
    }
]


class FakeChild:
    """A child that answers at once, by the function `work`."""

    def __init__(self, work: Callable[[Any, int | None], Any]) -> None:
        self._work = work
        self._answer: Any = None
        self.requests: list[Any] = []
        self.seconds = 0.25
        self.pid: int | None = None
        self.is_closed = False

    def submit(self, request: Any, fd: int | None, check: Callable[[], None]) -> None:
        check()
        assert self._answer is None, "the result of the last request was not collected"
        self.requests.append(request)
        try:
            self._answer = self._work(request, fd)
        except Exception as error:
            self._answer = error

    def result(self, check: Callable[[], None]) -> Any:
        check()
        answer, self._answer = self._answer, None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.is_closed, self._answer = True, None


def lines_as_chunks(text: str) -> tuple[Chunk, ...]:
    """A chunk a line, a token a word."""
    lines = text.splitlines()
    return tuple(Chunk(s, s, len(s), len(s.split()), None, None) for s in lines)


def read_lines(request: Any, fd: int | None) -> Extraction:
    """A document of plain text."""
    assert fd is not None
    chunks = lines_as_chunks(os.pread(fd, 1 << 24, 0).decode())
    return Extraction("text/plain", None, None, "en", None, {}, None, None, chunks)


def embed_lengths(request: Any, fd: int | None) -> list[str]:
    """The vector of a text is its length."""
    return [f"[{len(text)}]" for text in request.texts]

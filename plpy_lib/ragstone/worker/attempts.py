"""One step for one document: its time, its failure, and how the job ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ragstone.db.connection import Connection
from ragstone.db.queue import Queue
from ragstone.db.rows import Job
from ragstone.errors import DocumentError
from ragstone.worker.configuration import Configuration
from ragstone.worker.meter import Meter, log_line
from ragstone.worker.records import Ended, Tally

Result = TypeVar("Result")


@dataclass
class Attempts:
    """Runs the steps, and keeps count of them for the worker's next report."""

    connection: Connection
    queue: Queue
    configuration: Configuration
    meter: Meter = field(default_factory=Meter)
    tally: Tally = field(default_factory=Tally)

    def step(
        self,
        job: Job,
        stage: str,
        work: Callable[[], Result],
        seconds: Callable[[], float] | None = None,
    ) -> Result | None:
        """Do one step for one document; what goes wrong is recorded on it, and the others go on.

        `seconds` tells what the step took where that is a child's own time.
        """
        started = time.monotonic()
        try:
            try:
                result = work()
            finally:
                spent = seconds() if seconds else time.monotonic() - started
                self.meter.add(stage, spent, [job.job_id])
        except Exception as error:
            if self.connection.is_interrupt(error):
                raise
            self._fail(job, self._failure(error, stage))
            return None
        if isinstance(result, Ended):
            self._finish(job, result)
        return result

    def _failure(self, error: Exception, stage: str) -> DocumentError:
        """The error as it is shown on the document."""
        if isinstance(error, DocumentError):
            return error
        return DocumentError(
            self.connection.sqlstate(error) or "internal_error",
            f"{type(error).__name__}: {error}",
            permanent=False,
            stage=stage,
            hint="This is a fault of ragstone or of the server: see the server's log.",
        )

    def _fail(self, job: Job, failure: DocumentError) -> None:
        became = self.queue.fail(job, failure)
        outcome = "retried" if became == "queued" else became
        self._finish(job, Ended(outcome, {"stage": failure.stage, "error": failure.code}))

    def _finish(self, job: Job, ended: Ended) -> None:
        """Count a job that is over for now and, where the setting asks for it, log it."""
        self.tally.documents += 1
        spent = self.meter.finish(job.job_id, ended.outcome)
        threshold = self.configuration.setting("log_min_duration_ms")
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
        self.connection.log(log_line({**fields, **ended.facts}, spent))

    def report(self, state: str) -> bool:
        """Write what was done since the last report; True where the worker shall stop."""
        tally, self.tally = self.tally, Tally()
        if counts := self.meter.take():
            self.queue.count(counts)
        return self.queue.report(state, tally.documents, tally.chunks, tally.tokens)

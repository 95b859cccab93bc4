"""The worker: claims jobs, has them worked on, reports, rests.

It knows the database through its connection, which may be that of a backend or of a client.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ragstone.db.catalog import Catalog
from ragstone.db.connection import Connection
from ragstone.db.queue import Queue
from ragstone.db.rows import Job
from ragstone.memory import available_bytes, private_bytes
from ragstone.worker.attempts import Attempts
from ragstone.worker.configuration import Configuration
from ragstone.worker.stages import Stages
from ragstone.worker.turns import Turns


def drain(connection: Connection, run_for: str | None, max_documents: int | None) -> None:
    """Work on the queue until it is empty and `run_for` has passed, or until `max_documents`.

    The connection commits each statement. `run_for` is an interval in PostgreSQL's notation.
    Raises SQLSTATE 22023 for arguments that make no sense.
    """
    seconds = Catalog(connection).seconds(run_for) if run_for is not None else -1.0
    if seconds < 0:
        connection.error(
            f"run_for is an interval of 0 or more, not {run_for or 'null'}",
            sqlstate="22023",
            hint="To end once the queue is empty: call rag.drain();"
            " to work ten minutes: call rag.drain(run_for => '10 min');",
        )
    if max_documents is not None and max_documents < 0:
        connection.error(
            f"max_documents is a number of 0 or more, not {max_documents}",
            sqlstate="22023",
            hint="Null, or leaving it out, is for all documents.",
        )
    deadline = time.monotonic() + seconds
    worker = Worker(connection, Queue.join(connection), recycles=seconds > 0)
    try:
        worker.run(deadline, max_documents)
    finally:
        worker.close()


@dataclass
class Worker:
    """One session's work on the queue; one that `recycles` is replaced by another in time."""

    connection: Connection
    queue: Queue
    recycles: bool = False
    _done: int = 0
    _last_work: float = field(default_factory=time.monotonic)
    _short_of_memory: bool = False

    def __post_init__(self) -> None:
        self._configuration = Configuration(Catalog(self.connection))
        self._attempts = Attempts(self.connection, self.queue, self._configuration)
        self.stages = Stages(self.connection, self.queue, self._configuration, self._attempts)
        self._turns = Turns(self.queue.lanes, self.queue.claim, self.queue.claim_retry)

    def run(self, deadline: float, max_documents: int | None) -> None:
        """Work until queue and time are used up, until stopped, or until the maximum."""
        self._work(deadline, max_documents)
        self.stages.finish()

    def close(self) -> None:
        """Leave nothing behind: no child, no claimed job, no entry among the workers."""
        self.stages.close_children()
        self.queue.give_back()
        self._attempts.report("idle")
        self.queue.leave()

    def _work(self, deadline: float, max_documents: int | None) -> None:
        left = math.inf if max_documents is None else max_documents
        state = "working"
        while left > 0:
            self.connection.check()
            if self._attempts.report(state):
                return
            self._configuration.forget()
            if held := self._held_back():
                state = held
                self.stages.finish()
                if not self._pause(deadline):
                    return
                continue
            if jobs := self._claim(left):
                state = "working"
                self._work_on(jobs)
                left -= len(jobs)
                if self._is_spent():
                    return
            elif not self.stages.finish() and not self._expand_backlog():
                state = "idle"
                self.queue.refresh_statistics()
                if time.monotonic() < deadline:
                    self._rest(deadline)
                elif jobs := self._claim_last():
                    self.stages.process(jobs)
                    left -= len(jobs)
                else:
                    return

    def _claim(self, left: float) -> Sequence[Job]:
        """The next jobs, `left` of them at most."""
        self.queue.expand_changes(min_priority=0)
        most = self._configuration.integer("claim_documents")
        return _by_pipeline(self._turns.claim(int(min(most, left))))

    def _claim_last(self) -> Sequence[Job]:
        """Final check before exit: a job that came meanwhile, even one behind what was seen."""
        self._turns.look()
        return self._turns.claim(1)

    def _work_on(self, jobs: Sequence[Job]) -> None:
        self.stages.process(jobs)
        self._done += len(jobs)
        self._last_work = time.monotonic()
        self.queue.refresh_statistics()

    def _held_back(self) -> str | None:
        """The state of a worker that shall not take documents now, None where it may."""
        if self._configuration.setting("workers_paused") == "on":
            return "paused"
        available = available_bytes()
        limit = self._configuration.integer("min_available_memory_bytes")
        if available is None or available >= limit:
            self._short_of_memory = False
            return None
        if not self._short_of_memory:
            self._short_of_memory = True
            self.connection.warning(
                f"work is put off: the machine has {available >> 20} MB of memory available",
                detail=f"Workers wait until it has {limit >> 20} MB.",
                hint="The limit: select rag.set('min_available_memory_bytes', …);",
            )
        return "short of memory"

    def _is_spent(self) -> bool:
        """Whether a worker that will be replaced has done its part."""
        if not self.recycles:
            return False
        most = self._configuration.integer("worker_max_documents")
        memory = self._configuration.integer("worker_max_memory_bytes")
        pids = [os.getpid(), *self.stages.child_pids]
        return 0 < most <= self._done or 0 < memory < private_bytes(pids)

    def _expand_backlog(self) -> bool:
        """Turn what is still only noted into jobs; False where there is nothing."""
        expanded = self.queue.expand_changes(min_priority=-32768) > 0
        filled = self.queue.fill_pipelines()
        return expanded or filled or self.queue.build_deferred_index()

    def _rest(self, deadline: float) -> None:
        """Sleep; children that have had nothing to do for long are ended first."""
        if time.monotonic() - self._last_work > self._configuration.integer("model_idle_s"):
            self.stages.close_children()
            self._last_work = math.inf
        self._pause(deadline)

    def _pause(self, deadline: float) -> bool:
        """Sleep until the next look at the queue; False where there is no time left for one."""
        if time.monotonic() >= deadline:
            return False
        self.connection.sleep(self._configuration.integer("poll_interval_ms"))
        return True


def _by_pipeline(jobs: Sequence[Job]) -> Sequence[Job]:
    """Documents of one pipeline follow each other, as only those are embedded together."""
    return sorted(jobs, key=lambda job: (job.pipeline_id, job.job_id))

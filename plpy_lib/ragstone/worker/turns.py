"""Whose turn it is: the order in which a worker takes jobs. See the top of sql/51_claims.sql."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ragstone.db.rows import Job, Lane

RETRY_EVERY = 4
"""One claim in so many goes to a job that was tried before, if one is due."""

LOOK_SHARE = 40
"""Looking up where the lanes begin may take one part in so many of a worker's time."""

KEPT_EMPTY = 32
"""So many lanes in which nothing is left are asked again before the next look."""


class Turns:
    """The lanes as far as this worker knows them.

    `look` finds the lanes, `take` claims up to a number of jobs of one, `take_retry` a job that was
    tried before; all return at once, with nothing where there is nothing.
    """

    def __init__(
        self,
        look: Callable[[], Sequence[Lane]],
        take: Callable[[Lane, int], Sequence[Job]],
        take_retry: Callable[[], Sequence[Job]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._take = take
        self._take_retry = take_retry
        self._clock = clock
        self._lanes: dict[tuple[int, int], Lane] = {}
        # Keys of lanes in which nothing was left, in the order in which that was seen.
        self._empty: dict[tuple[int, int], None] = {}
        self._last: dict[int, int] = {}
        self._next_look = 0.0
        self._claims = 0

    def claim(self, max_jobs: int) -> list[Job]:
        """Up to so many jobs, or one that was tried before."""
        self._claims += 1
        if self._claims % RETRY_EVERY == 0 and (retry := self._take_retry()):
            return list(retry)
        if self._clock() >= self._next_look:
            self.look()
        return self._from_lanes(max_jobs) or list(self._take_retry())

    def look(self) -> None:
        """Find the lanes anew, and forget those in which nothing waits.

        It passes over what finished jobs have left in the index, which grows for as long as some
        transaction keeps vacuum from removing it; so the more it takes, the less often it is done.
        """
        started = self._clock()
        self._lanes = {(lane.priority, lane.tenant_id): lane for lane in self._look()}
        self._empty = {}
        now = self._clock()
        self._next_look = now + LOOK_SHARE * (now - started)

    def _from_lanes(self, max_jobs: int) -> list[Job]:
        jobs: list[Job] = []
        for priority in sorted({priority for priority, _ in self._lanes}, reverse=True):
            jobs += self._from_priority(priority, max_jobs - len(jobs))
            if len(jobs) >= max_jobs:
                break
        return jobs

    def _from_priority(self, priority: int, max_jobs: int) -> list[Job]:
        """In turn, beginning with the tenant after the one that was served last."""
        last = self._last.get(priority)
        lanes = sorted(
            (lane for lane in self._lanes.values() if lane.priority == priority),
            key=lambda lane: (last is not None and lane.tenant_id <= last, lane.tenant_id),
        )
        jobs: list[Job] = []
        while lanes and len(jobs) < max_jobs:
            share = max(1, (max_jobs - len(jobs)) // len(lanes))
            for lane in list(lanes):
                taken = self._from_lane(lane, min(share, max_jobs - len(jobs)))
                if not taken:
                    lanes.remove(lane)
                jobs += taken
                if len(jobs) >= max_jobs:
                    break
        return jobs

    def _from_lane(self, lane: Lane, max_jobs: int) -> Sequence[Job]:
        taken = self._take(lane, max_jobs)
        if taken:
            lane.job_id = max(job.job_id for job in taken) + 1
            self._last[lane.priority] = lane.tenant_id
            self._empty.pop((lane.priority, lane.tenant_id), None)
        else:
            self._note_empty(lane)
        return taken

    def _note_empty(self, lane: Lane) -> None:
        """Keep a few empty lanes, as the next look may be far off; each costs a query a claim."""
        key = (lane.priority, lane.tenant_id)
        self._empty.pop(key, None)
        self._empty[key] = None
        if len(self._empty) > KEPT_EMPTY:
            oldest = next(iter(self._empty))
            del self._empty[oldest], self._lanes[oldest]

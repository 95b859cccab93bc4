"""What a worker has done: counts and durations for rag.metrics(), and a line for the log."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

# Upper bounds of the histograms' buckets; rag._metric_bounds_s() says the same.
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# A class of error can come from a child that a hostile document has taken over.
_NOT_A_WORD = re.compile(r"[^A-Za-z0-9_.:-]")


@dataclass(slots=True)
class _Histogram:
    count: int = 0
    sum_s: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))

    def observe(self, seconds: float) -> None:
        self.count += 1
        self.sum_s += seconds
        self.buckets[bisect_left(BOUNDS_S, seconds)] += 1


@dataclass(slots=True)
class Meter:
    """Counts since the last take(), and how long the jobs in hand have taken by stage."""

    _outcomes: dict[str, int] = field(default_factory=dict)
    _stages: dict[str, _Histogram] = field(default_factory=dict)
    _jobs: dict[int, dict[str, float]] = field(default_factory=dict)

    def add(self, stage: str, seconds: float, job_ids: Sequence[int]) -> None:
        """Note what a stage took for some jobs, which share it evenly."""
        for job_id in job_ids:
            spent = self._jobs.setdefault(job_id, {})
            spent[stage] = spent.get(stage, 0.0) + seconds / len(job_ids)

    def finish(self, job_id: int, outcome: str) -> dict[str, float]:
        """Count a job with its outcome and return its seconds by stage."""
        spent = self._jobs.pop(job_id, {})
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
        for stage, seconds in spent.items():
            self._stages.setdefault(stage, _Histogram()).observe(seconds)
        return spent

    def take(self) -> str | None:
        """All counts since the last call, as rag._count() wants them; None where there are none."""
        rows: list[dict[str, object]] = [
            {"metric": "jobs", "label": outcome, "count": count}
            for outcome, count in self._outcomes.items()
        ]
        rows += [
            {"metric": "stage", "label": stage, **asdict(histogram)}
            for stage, histogram in self._stages.items()
        ]
        self._outcomes, self._stages = {}, {}
        return json.dumps(rows) if rows else None


def log_line(fields: Mapping[str, object], spent: Mapping[str, float]) -> str:
    """key=value pairs, durations in ms last; nothing in them can begin another line or pair."""
    pairs = [f"{k}={_NOT_A_WORD.sub('?', str(v))[:60]}" for k, v in fields.items() if v is not None]
    pairs += [f"{stage}_ms={seconds * 1000:.1f}" for stage, seconds in spent.items()]
    return "ragstone: " + " ".join(pairs)

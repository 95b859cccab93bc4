"""Counts of a worker, and its line in the log."""

from __future__ import annotations

import json

from ragstone.worker.meter import BOUNDS_S, Meter, log_line


def test_take_gives_everything_once():
    meter = Meter()
    meter.add("read", 0.1, [1])
    assert meter.take() is None
    spent = meter.finish(1, "done")
    assert list(spent) == ["read"]
    counts = {(row["metric"], row["label"]): row for row in json.loads(meter.take())}
    assert counts["jobs", "done"]["count"] == 1
    assert sum(counts["stage", "read"]["buckets"]) == counts["stage", "read"]["count"] == 1
    assert meter.take() is None


def test_a_stage_shared_by_several_is_divided_among_them():
    meter = Meter()
    meter.add("embed", 3.0, [1, 2])
    assert meter.finish(1, "done") == meter.finish(2, "done") == {"embed": 1.5}


def test_a_duration_falls_into_the_bucket_that_it_does_not_exceed():
    meter = Meter()
    for job, seconds in enumerate((BOUNDS_S[0], BOUNDS_S[-1] + 1)):
        meter._jobs[job] = {"read": seconds}
        meter.finish(job, "done")
    (stage,) = [row for row in json.loads(meter.take()) if row["metric"] == "stage"]
    assert stage["buckets"][0] == 1
    assert stage["buckets"][-1] == 1


def test_a_hostile_word_makes_neither_a_new_line_nor_a_new_pair():
    line = log_line({"job": 1, "error": "x\n2026 LOG: forged outcome=done"}, {"read": 0.0012})
    assert "\n" not in line
    assert line.split() == [
        "ragstone:",
        "job=1",
        "error=x?2026?LOG:?forged?outcome?done",
        "read_ms=1.2",
    ]

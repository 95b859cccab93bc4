"""How fast jobs are claimed while a transaction keeps vacuum from removing finished ones.

    python -m bench.bloat --minutes 10 --per-second 300

Two queues take the same steady stream in turns, in a cluster of their own: ragstone's, and the usual
one (`where status = 'queued' order by … limit 16 for update skip locked`). Claims alone are timed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import psycopg

from ragstone.turns import Lane, Turns
from tests.conftest import ROOT, cluster_script, start_cluster

NAIVE = """
create table naive (job_id bigint generated always as identity primary key, priority integer not null default 0,
                    status text not null default 'queued', run_at timestamptz not null default now());
create index on naive (priority desc, run_at, job_id) where status = 'queued';
"""
NAIVE_CLAIM = """
update naive set status = 'running' where job_id in (
  select job_id from naive where status = 'queued' and run_at <= now()
  order by priority desc, run_at, job_id limit 16 for update skip locked) returning job_id"""
FEED = """
insert into rag.ingestion_queue (source_id, document_id, pipeline_id, tenant_id)
select 1, nextval('rag._document_id_seq'), 1, n %% 4 from generate_series(1, %s) n"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--per-second", type=int, default=300)
    options = parser.parse_args()
    directory = ROOT / f".cluster-bloat-{os.getpid()}"
    cluster = start_cluster(directory, database="bloat", port=54333)
    try:
        with cluster.connect("bloat") as holder, cluster.connect("bloat") as db:
            db.execute("create extension ragstone cascade")
            db.execute(NAIVE)
            measure(holder, db, options.minutes * 60, options.per_second)
    finally:
        cluster_script("destroy", Path(directory))


def measure(
    holder: psycopg.Connection, db: psycopg.Connection, seconds: float, per_second: int
) -> None:
    (worker_id,) = db.execute("select rag._register_worker()").fetchone()

    def look() -> list[Lane]:
        db.execute("select rag._free_jobs_of_dead_workers()")
        return [Lane(*row) for row in db.execute("select * from rag._lanes()")]

    def take(lane: Lane, most: int) -> list[int]:
        arguments = [worker_id, lane.priority, lane.tenant_id, lane.job_id, most]
        claim = "select rag._claim_jobs(%s, %s::smallint, %s, %s, %s)"
        return db.execute(claim, arguments).fetchone()[0] or []

    def take_retry() -> list[int]:
        return db.execute("select rag._claim_retry(%s)", [worker_id]).fetchone()[0] or []

    turns = Turns(look, take, take_retry)
    holder.execute("begin isolation level repeatable read")
    holder.execute("select txid_current(), count(*) from naive")
    started = last = time.monotonic()
    spent: dict[str, list[float]] = {"ragstone": [], "naive": []}
    window: dict[str, list[float]] = {"ragstone": [], "naive": []}
    claimed = {"ragstone": 0, "naive": 0}
    report = seconds / 10
    print("   minute  finished      ragstone          naive   (ms a claimed job, mean)")
    finished = 0
    while (now := time.monotonic()) - started < seconds:
        due = int((now - started) * per_second) - finished
        if due < 16:
            time.sleep(0.01)
            continue
        due -= due % 16
        db.execute(FEED, [due])
        db.execute("insert into naive (priority) select 0 from generate_series(1, %s)", [due])
        for name in window:
            left = due
            while left:
                began = time.monotonic()
                jobs = (
                    turns.claim(16)
                    if name == "ragstone"
                    else [job for (job,) in db.execute(NAIVE_CLAIM).fetchall()]
                )
                spent_now = time.monotonic() - began
                table = "rag.ingestion_queue" if name == "ragstone" else "naive"
                db.execute(f"delete from {table} where job_id = any (%s)", [jobs])
                left -= min(left, len(jobs))
                if name == "ragstone" and not jobs:
                    # New jobs are seen at the next look, which a worker waits for; its time counts.
                    began = time.monotonic()
                    turns.look()
                    spent_now += time.monotonic() - began
                window[name].append(spent_now)
                claimed[name] += len(jobs)
        finished += due
        if now - last >= report:
            for name, times in window.items():
                spent[name].append(1000 * sum(times) / max(1, claimed[name]))
                times.clear()
                claimed[name] = 0
            print(
                f"{(now - started) / 60:9.1f} {finished:9} {spent['ragstone'][-1]:13.3f} {spent['naive'][-1]:14.3f}",
                flush=True,
            )
            last = now
    for name, means in spent.items():
        change = 100 * (means[0] / means[-1] - 1)
        print(f"{name}: claim rate changed by {change:+.0f} % from the first tenth to the last")


if __name__ == "__main__":
    sys.exit(main())

"""How fast jobs are claimed while a transaction keeps vacuum from removing finished ones.

Two queues take the same steady stream in turns: ragstone's, and the usual one (`where status =
'queued' order by … limit 16 for update skip locked`). After each tenth of the time 8,000 jobs more
are claimed from each as fast as that goes: the rate. Claims alone are timed, with the looks for new
lanes among them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.harness import BenchError, Connection, Report, Row, Server, attach_folder, one
from ragstone.db.psycopg import Psycopg
from ragstone.db.queue import Queue as Worker
from ragstone.worker.turns import Turns

NAIVE = """
create table naive (job_id bigint generated always as identity primary key, priority integer not null default 0,
                    status text not null default 'queued', run_at timestamptz not null default now());
create index on naive (priority desc, run_at, job_id) where status = 'queued';
"""
NAIVE_CLAIM = """
update naive set status = 'running' where job_id in (
  select job_id from naive where status = 'queued' and run_at <= now()
  order by priority desc, run_at, job_id limit 16 for update skip locked) returning job_id"""
NAIVE_FEED = "insert into naive (priority) select 0 from generate_series(1, %s)"
FEED = """
with documents as (
  insert into rag.documents (source_id, document_id, source_key, tenant_id)
  select 1, n, n, n %% 4 from (select nextval('rag._document_id_seq') as n from generate_series(1, %s)) s
  returning *)
insert into rag.ingestion_queue (source_id, document_id, pipeline_id, tenant_id)
select source_id, document_id, 1, tenant_id from documents"""
PERIODS = 10
BURST = 8_000


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that is fed and emptied; `claim` takes up to 16 jobs."""

    name: str
    db: Connection
    table: str
    feed_sql: str
    claim: Callable[[], list[int]]

    def feed(self, jobs: int) -> None:
        """So many jobs come."""
        self.db.execute(self.feed_sql, [jobs])

    def empty(self, jobs: int) -> float:
        """So many are claimed and finished; the seconds that the claims took, looks included."""
        claiming, misses = 0.0, 0
        while jobs > 0:
            started = time.monotonic()
            claimed = self.claim()
            claiming += time.monotonic() - started
            self.db.execute(f"delete from {self.table} where job_id = any (%s)", [claimed])
            jobs -= len(claimed)
            misses = 0 if claimed else misses + 1
            if misses > 10:
                raise BenchError(f"{self.name}: {jobs} jobs cannot be claimed")
        return claiming


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--minutes", type=float, default=10, help="how long vacuum is held back")
    parser.add_argument("--per-second", type=int, default=300, help="jobs of the steady stream")


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    report = Report("bloat", vars(options))
    with server.database() as database, database.connect() as holder, database.connect() as db:
        db.execute(NAIVE)
        attach_folder(db, Path("/tmp"))  # no file is read
        queues = [ragstone(db), naive(db)]
        for queue in queues:
            # Statistics of a queue that has jobs, and plans made with them.
            queue.feed(BURST)
            db.execute(f"analyze {queue.table}")
            queue.empty(BURST)
        holder.execute("begin isolation level repeatable read")
        one(holder, "select txid_current()")
        rows = measure(queues, options.minutes * 60, options.per_second)
        report.table("jobs claimed a second while vacuum is held back", rows)
        first, last = rows[0], rows[-1]
        report.table(
            "change of the rate from the first tenth of the time to the last, at least -10 asked",
            [{"queue": q.name, "%": 100 * (last[q.name] / first[q.name] - 1)} for q in queues],
        )
        holder.execute("rollback")
    return report


def ragstone(db: Connection) -> Queue:
    """The queue as a worker uses it."""
    (worker_id,) = one(db, "select rag._register_worker()")

    queue = Worker(Psycopg(db), worker_id)
    turns = Turns(queue.lanes, queue.claim, queue.claim_retry)

    def claim() -> list[int]:
        if not (jobs := turns.claim(16)):
            turns.look()  # as a worker does before it rests
        return [job.job_id for job in jobs]

    return Queue("ragstone", db, "rag.ingestion_queue", FEED, claim)


def naive(db: Connection) -> Queue:
    """The queue as it is usually built."""

    def claim() -> list[int]:
        return [job for (job,) in db.execute(NAIVE_CLAIM).fetchall()]

    return Queue("naive", db, "naive", NAIVE_FEED, claim)


def measure(queues: list[Queue], seconds: float, per_second: int) -> list[Row]:
    """The rates after each tenth of the time."""
    rows: list[Row] = []
    started = time.monotonic()
    streamed = 0
    for period in range(1, PERIODS + 1):
        while (now := time.monotonic()) - started < seconds * period / PERIODS:
            due = int((now - started) * per_second) - streamed
            if due < 16:
                time.sleep(0.01)
                continue
            for queue in queues:
                queue.feed(due)
                queue.empty(due)
            streamed += due
        finished = streamed + period * BURST
        row: Row = {"minute": seconds * period / PERIODS / 60, "finished": finished}
        for queue in queues:
            queue.feed(BURST)
            row[queue.name] = BURST / queue.empty(BURST)
        rows.append(row)
    return rows

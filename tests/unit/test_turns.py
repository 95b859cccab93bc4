"""The order in which waiting jobs are taken."""

from __future__ import annotations

from itertools import count

from ragstone.db.rows import Job, Lane
from ragstone.worker.turns import KEPT_EMPTY, LOOK_SHARE, RETRY_EVERY, Turns


def job(job_id):
    return Job(job_id, 1, job_id, str(job_id), 1, 1, "ingest", 1, None, None, None, None, False)


class Queue:
    """Waiting jobs by lane, and retries, as the database would hand them out."""

    def __init__(self, lanes, retries=()):
        self.lanes = {lane: list(jobs) for lane, jobs in lanes.items()}
        self.retries = list(retries)
        self.now = 0.0
        self.looks = 0
        self.takes = 0
        self.look_takes = 0.0

    def look(self):
        self.looks += 1
        self.now += self.look_takes
        return [Lane(*lane, min(jobs)) for lane, jobs in self.lanes.items() if jobs]

    def take(self, lane, max_jobs):
        self.takes += 1
        jobs = self.lanes[lane.priority, lane.tenant_id]
        taken = sorted(j for j in jobs if j >= lane.job_id)[:max_jobs]
        for each in taken:
            jobs.remove(each)
        return [job(each) for each in taken]

    def take_retry(self):
        return [job(self.retries.pop(0))] if self.retries else []

    def turns(self):
        return Turns(self.look, self.take, self.take_retry, clock=lambda: self.now)

    def claims(self):
        """Claims of one worker: from how many to the numbers of the jobs."""
        turns = self.turns()
        return lambda max_jobs: [each.job_id for each in turns.claim(max_jobs)]


def test_a_tenant_that_floods_the_queue_delays_no_other():
    queue = Queue({(0, 1): range(1000), (0, 2): [2001, 2002], (0, 3): [3001]})
    assert {2001, 2002, 3001} <= set(queue.claims()(16))


def test_more_tenants_than_fit_a_batch_are_all_served_in_turn():
    queue = Queue({(0, tenant): range(tenant * 100, tenant * 100 + 50) for tenant in range(1, 11)})
    claim = queue.claims()
    tenants = {job // 100 for _ in range(5) for job in claim(2)}
    assert tenants == set(range(1, 11))


def test_a_higher_priority_goes_first_whoever_waits():
    queue = Queue({(-10, 1): range(100), (5, 2): [900, 901], (0, 1): [500]})
    assert queue.claims()(3) == [900, 901, 500]


def test_retries_do_not_starve_new_work_nor_it_them():
    queue = Queue({(0, 0): range(1000)}, retries=range(5000, 6000))
    claim = queue.claims()
    batches = [claim(16) for _ in range(40)]
    retried = [b for b in batches if b[0] >= 5000]
    assert len(retried) == 40 // RETRY_EVERY
    assert all(len(b) == 1 for b in retried), "alone, in case it kills the worker"
    assert sum(map(len, batches)) == 10 + 30 * 16


def test_retries_are_taken_at_once_where_there_is_nothing_else():
    assert Queue({}, retries=[7]).claims()(16) == [7]


def test_a_dear_look_is_taken_seldom_and_work_goes_on_without():
    queue = Queue({(0, 0): range(10_000)})
    queue.look_takes = 0.5
    claim = queue.claims()
    numbers = count(10_000)
    for _ in range(100):
        queue.lanes[0, 0].append(next(numbers))
        assert len(claim(10)) == 10
        queue.now += 0.1
    assert queue.looks * queue.look_takes <= 2 * queue.now / LOOK_SHARE


def test_tenants_served_once_cost_an_idle_worker_nothing():
    queue = Queue({(0, tenant): [tenant] for tenant in range(1, 5001)})
    claim = queue.claims()
    while claim(16):
        pass
    queue.takes = 0
    for _ in range(10):
        queue.now += 1
        assert claim(16) == []
    assert queue.takes == 0


def test_tenants_served_once_cost_little_while_a_look_is_dear():
    queue = Queue({(0, tenant): [tenant] for tenant in range(1, 5001)})
    queue.look_takes = 60
    claim = queue.claims()
    while claim(16):
        pass
    queue.takes = 0
    for _ in range(10):
        assert claim(16) == []
    assert queue.looks == 1
    assert queue.takes <= 10 * KEPT_EMPTY


def test_a_tenant_that_was_forgotten_is_served_after_the_next_look():
    queue = Queue({(0, tenant): [tenant] for tenant in range(1, 101)})
    queue.look_takes = 0.1
    claim = queue.claims()
    while claim(16):
        pass
    queue.lanes[0, 1].append(1000)
    queue.now += 2 * LOOK_SHARE * queue.look_takes
    assert claim(16) == [1000]

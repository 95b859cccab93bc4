"""Two sessions stepped through the interleavings that matter: a worker, and somebody else.

The worker's steps are claim, store (or fail), commit; what somebody else does falls before, between
or into them, and commits before or after. Whatever the order, in the end every row is searchable with
its own text, or a dead letter, and nothing contradicts itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading

import psycopg
import pytest
from helpers import claim, rows, value

OLD, NEW = "The old text.", "The new text."

OTHERS = {
    "update": "update notes set body = %(new)s where id = 1",
    "delete": "delete from notes where id = 1",
    "truncate": "truncate notes",
    "delete and insert": "delete from notes where id = 1; insert into notes values (1, %(new)s, 1)",
    "update of the key": "update notes set id = 5 where id = 1",
    "another tenant": "update notes set tenant = 2 where id = 1",
    "cancel": "select rag.cancel(job_id) from rag.ingestion_queue where document_id = 1 and status <> 'dead' order by status limit 1",
    "retry": "select rag.retry()",
    "reembed": "select rag.reembed('{1}')",
    "new pipeline": "select rag.create_pipeline('v2', chunk_size => 200)",
    "detach": "select rag.detach_source('notes')",
    "restore": "select rag.restore_version(version_id) from rag.document_versions where restorable",
    "another worker's look": "select rag._free_jobs_of_dead_workers(everyone => true)",
}  # fmt: skip
MOMENTS = [
    "before the claim",
    "after the claim",
    "after the store",
    "into the store",
    "into a failure",
]


class Worker:
    """A worker by hand, one step at a time."""

    def __init__(self, session):
        self.session = session
        self.worker_id = value(session, "select rag._register_worker()")
        self.job = None

    def claim(self):
        claimed = claim(self.session, self.worker_id, 1)
        self.job = claimed[0] if claimed else None
        if self.job:
            read = "select rag._source_content(%s, %s)"
            self.text = value(self.session, read, self.job["source_id"], self.job["source_key"])

    def store(self):
        if not self.job or self.text is None:
            return None
        text = self.text.decode()
        chunk = {
            "chunk_index": 0, "content": text, "char_count": len(text), "token_count": 5,
            "hash": hashlib.sha256(text.encode()).hexdigest(), "embedding": json.dumps([0.05] * 384),
        }  # fmt: skip
        document = {"sha256": hashlib.sha256(self.text).hexdigest(), "size": len(text), "mime_type": "text/plain", "extracted": {}}  # fmt: skip
        return value(
            self.session, "select rag._store_document(%s, %s, %s, %s, %s)",
            self.job["job_id"], self.worker_id, self.job["generation"], json.dumps(document), json.dumps([chunk]),
        )  # fmt: skip

    def fail(self):
        if self.job:
            self.session.execute(
                "select rag._fail_job(%s, %s, %s, 'transient', 'read', 'test', 'it failed', '')",
                [self.job["job_id"], self.worker_id, self.job["generation"]],
            )

    def leave(self):
        self.session.execute("select rag._give_back_jobs(%s)", [self.worker_id])
        self.session.execute("select rag._leave_worker(%s)", [self.worker_id])


class Blocked:
    """A statement in a session that may have to wait for another one."""

    def __init__(self, call):
        self.error = None
        self._thread = threading.Thread(target=self._run, args=[call])
        self._thread.start()

    def _run(self, call):
        try:
            call()
        except psycopg.Error as error:
            self.error = error

    def finish(self):
        self._thread.join(30)
        assert not self._thread.is_alive(), "it waits for ever"
        # That somebody else's statement is refused is an outcome like any; a deadlock is not.
        assert not isinstance(self.error, psycopg.errors.DeadlockDetected)


def settle(db, drain):
    db.execute("select rag.retry()")
    drain()
    assert rows(db, "select * from rag.check_consistency()") == []
    wrong = """select n.id, n.body, array_agg(c.content) from notes n
                 left join rag.document_chunks c on c.document_id = n.id and c.pipeline_id = 1
                where exists (select from rag.sources)
                  -- What somebody has restored is meant to be older than the row.
                  and not exists (select from rag.document_versions r join rag.document_versions s using (document_id, pipeline_id)
                                  where r.state = 'ready' and s.state = 'superseded' and s.version_id > r.version_id)
                group by n.id having array_agg(c.content) is distinct from array[n.body]"""
    assert rows(db, wrong) == []
    assert value(db, "select count(*) from rag.ingestion_queue") == 0


@pytest.fixture
def notes(db, drain):
    """Document 1 with the old text searchable and an older one kept, a change of it queued."""
    db.execute("select rag.set('retry_delays_s', '0'), rag.set('model_idle_s', '0')")
    db.execute("create table notes (id integer primary key, body text, tenant integer)")
    db.execute(
        "select rag.attach_source('notes', content_column => 'body', tenant_column => 'tenant')"
    )
    for text in ("The oldest text.", OLD):
        db.execute("insert into notes values (1, %s, 1) on conflict (id) do update set body = excluded.body", [text])  # fmt: skip
        drain()
    db.execute("update notes set body = 'The text in the middle.'")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("other", OTHERS)
def test_whatever_happens_in_between_nothing_is_stale_or_lost(
    db, connect, notes, drain, other, moment
):
    worker, somebody = Worker(connect()), connect()

    def act():
        for statement in OTHERS[other].split("; "):
            somebody.execute(statement, {"new": NEW} if "%(" in statement else None)

    def attempt():
        # Refused, it changes nothing.
        with contextlib.suppress(psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
            act()

    if moment == "before the claim":
        attempt()
    worker.claim()
    if moment == "after the claim":
        attempt()
    if moment.startswith("into"):
        with worker.session.transaction():
            (worker.store if moment == "into the store" else worker.fail)()
            blocked = Blocked(act)
            blocked._thread.join(0.05)
        blocked.finish()
    else:
        worker.store()
    if moment == "after the store":
        attempt()
    worker.leave()
    settle(db, drain)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_change_not_yet_committed_while_the_worker_stores(db, connect, notes, drain, other, end):
    worker, somebody = Worker(connect()), connect()
    worker.claim()
    try:
        with somebody.transaction(force_rollback=end == "rollback"):
            for statement in OTHERS[other].split("; "):
                somebody.execute(statement, {"new": NEW} if "%(" in statement else None)
            blocked = Blocked(worker.store)
            blocked._thread.join(0.05)
    except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
        blocked = Blocked(worker.store)
    blocked.finish()
    assert blocked.error is None, "a store fails for no change of somebody else's"
    worker.leave()
    settle(db, drain)


def test_an_uncommitted_row_is_not_missed_by_a_new_pipeline(db, connect, notes, drain):
    somebody, maker = connect(), connect()
    with somebody.transaction():
        somebody.execute("insert into notes values (2, 'Inserted meanwhile.', 1)")
        blocked = Blocked(
            lambda: maker.execute("select rag.create_pipeline('v2', chunk_size => 200)")
        )
        blocked._thread.join(0.1)
    blocked.finish()
    settle(db, drain)
    assert value(db, "select ready from rag.pipeline_progress where name = 'v2'") == 2


def test_two_workers_never_have_the_same_document(db, connect, notes):
    first, second = Worker(connect()), Worker(connect())
    first.claim()
    db.execute("update notes set body = %s", [NEW])
    second.claim()
    assert first.job is not None
    assert second.job is None, "the change waits until the first worker is done"

"""A document's status is true after every operation, and nothing contradicts itself."""

from __future__ import annotations

import random
from collections.abc import Callable

import psycopg
import pytest
from helpers import claim, rows, value

TEXT = "The air in the paper store is {} and has to be watched every day."
TOO_LONG = "This note is far longer than the limit allows. " * 40

NOT_TRUE = """
  select d.document_id, d.status, d.error_code, q.status, q.failure
    from rag.documents d
    join rag.pipelines p on p.state = 'active'
    left join lateral (
      select q.status, q.failure from rag.ingestion_queue q
       where (q.source_id, q.document_id, q.pipeline_id) = (d.source_id, d.document_id, p.pipeline_id)
       order by q.status = 'running' limit 1) q on true
    left join rag.document_versions v
      on (v.source_id, v.document_id, v.pipeline_id) = (d.source_id, d.document_id, p.pipeline_id)
     and v.state = 'ready'
   where not case d.status
     when 'completed' then q.status is null and v.generation = d.generation and d.last_error is null
     when 'pending' then q.failure is null and d.last_error is null
                         and (q.status in ('queued', 'running')
                              or exists (select from rag._pipeline_fill f where f.pipeline_id = p.pipeline_id))
     when 'failed' then d.last_error is not null and q.failure is distinct from 'rejected'
                        and (q.failure is not null
                             or q.status is null and v.generation is distinct from d.generation)
     when 'rejected' then d.last_error is not null
                          and (q.failure = 'rejected' and q.status = 'dead'
                               or q.status is null and v.generation is distinct from d.generation)
     end
     or d.chunks <> (select count(*) from rag.document_chunks c
                      where (c.source_id, c.document_id, c.pipeline_id)
                          = (d.source_id, d.document_id, p.pipeline_id))
"""
MAY_BE_REFUSED = (
    psycopg.errors.ObjectInUse,
    psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.UndefinedObject,
    psycopg.errors.DuplicateObject,
    psycopg.errors.UniqueViolation,
)


@pytest.fixture
def notes(db):
    db.execute(
        "create table notes (id integer primary key, name text, body text, tenant integer, title text)"
    )
    db.execute(
        "select rag.attach_source('notes', content_column => 'body', name_column => 'name',"
        " tenant_column => 'tenant', title_column => 'title')"
    )
    db.execute("select rag.set('max_attempts', '2')")
    db.execute("select rag.set('retry_delays_s', '1')")


def assert_true(db, after):
    assert rows(db, NOT_TRUE) == [], after
    assert rows(db, "select * from rag.check_consistency()") == [], after


class Player:
    """Operations on a few notes, each with parameters of its own choice."""

    def __init__(
        self, db: psycopg.Connection, connect: Callable[..., psycopg.Connection], seed: int
    ):
        self.db, self.connect = db, connect
        self.random = random.Random(seed)
        self.pipelines = 0

    def one(self, sql: str) -> object:
        found = [row[0] for row in rows(self.db, sql)]
        return self.random.choice(sorted(found)) if found else None

    def note(self) -> int:
        return self.random.randint(1, 6)

    def body(self) -> str | None:
        kinds = [TEXT.format(self.random.randint(1, 5))] * 3 + [TOO_LONG, None]
        return self.random.choice(kinds)

    def insert(self) -> None:
        self.db.execute(
            "insert into notes values (%s, 'a.txt', %s, %s)",
            [self.note(), self.body(), self.random.choice([None, 1, 2])],
        )

    def update(self) -> None:
        self.db.execute("update notes set body = %s where id = %s", [self.body(), self.note()])

    def rename(self) -> None:
        name = self.random.choice(["a.txt", "a.csv", "sub/a.txt", "a.md"])
        self.db.execute("update notes set name = %s where id = %s", [name, self.note()])

    def move_to_tenant(self) -> None:
        tenant = self.random.choice([None, 1, 2])
        self.db.execute("update notes set tenant = %s where id = %s", [tenant, self.note()])

    def delete(self) -> None:
        self.db.execute("delete from notes where id = %s", [self.note()])

    def drain(self) -> None:
        self.db.execute("call rag.drain()")

    def change_limits(self) -> None:
        limit = self.random.choice([None, "500"])
        self.db.execute("select rag.set('max_file_bytes', %s)", [limit])
        quota = self.random.choice([None, "2"])
        self.db.execute("select rag.set('max_tenant_documents', %s, tenant_id => 1)", [quota])

    def retry(self) -> None:
        self.db.execute("select rag.retry()")

    def retry_one(self) -> None:
        job = self.one("select job_id from rag.ingestion_queue where status <> 'running'")
        self.db.execute("select rag.retry(%s)", [job])

    def discard(self) -> None:
        self.db.execute("select rag.discard()")

    def discard_one(self) -> None:
        job = self.one("select job_id from rag.ingestion_queue where status = 'dead'")
        self.db.execute("select rag.discard(%s)", [job])

    def cancel(self) -> None:
        job = self.one("select job_id from rag.ingestion_queue where status <> 'dead'") or 0
        self.db.execute("select rag.cancel(%s)", [job])

    def prioritize(self) -> None:
        self.db.execute("select rag.prioritize(%s)", [self.random.randint(-9, 9)])

    def reembed(self) -> None:
        self.db.execute("select rag.reembed(document_ids => %s)", [[self.note(), self.note()]])

    def restore(self) -> None:
        version = self.one("select version_id from rag.document_versions where restorable")
        self.db.execute("select rag.restore_version(%s)", [version])

    def create_pipeline(self) -> None:
        self.pipelines += 1
        size = self.random.choice([100, 512])
        self.db.execute(
            "select rag.create_pipeline(%s, chunk_size => %s)", [f"p{self.pipelines}", size]
        )

    def activate(self) -> None:
        name = self.one("select name from rag.pipelines where state <> 'active'")
        self.db.execute("select rag.activate_pipeline(%s, force => true)", [name])

    def resume(self) -> None:
        name = self.one("select name from rag.pipelines where state = 'superseded'")
        self.db.execute("select rag.resume_pipeline(%s)", [name])

    def drop_pipeline(self) -> None:
        name = self.one("select name from rag.pipelines where state <> 'active'")
        self.db.execute("select rag.drop_pipeline(%s)", [name])

    def fill(self) -> None:
        self.db.execute("select rag._fill_pipelines()")

    def outdate(self) -> None:
        version = self.one("select version_id from rag.document_versions where state = 'ready'")
        self.db.execute(
            "update rag.document_versions set fingerprint = null where version_id = %s", [version]
        )
        self.db.execute("select rag._queue_outdated()")

    def refuse(self) -> None:
        key = self.one("select id from notes")
        if key is not None:
            self.db.execute("select rag._refuse_row(1, %s, '22000', 'bad row')", [str(key)])

    def look_again(self) -> None:
        self.db.execute("select rag.enqueue_existing('notes')")
        while value(self.db, "select rag._expand_changes((-10)::smallint)"):
            pass

    def give_back(self) -> None:
        worker = value(self.db, "select rag._register_worker()")
        claim(self.db, worker, 2)
        self.db.execute("select rag._give_back_jobs(%s)", [worker])
        self.db.execute("select rag._leave_worker(%s)", [worker])

    def die(self) -> None:
        session = self.connect()
        claim(session, value(session, "select rag._register_worker()"), 2)
        session.close()

    def forget(self) -> None:
        self.db.execute("update rag.job_history set finished_at = now() - interval '1 year'")
        self.db.execute("update rag.document_versions set finished_at = now() - interval '1 year'")
        self.db.execute("select rag._prune_history(), rag._prune_version_history()")

    def play(self, steps: int) -> None:
        operations = [f for name, f in vars(Player).items() if name not in ("one", "note", "body", "play") and not name.startswith("_")]  # fmt: skip
        weights = [{"insert": 5, "update": 5, "drain": 4}.get(f.__name__, 1) for f in operations]
        played = []
        for _ in range(steps):
            operation = self.random.choices(operations, weights)[0]
            played.append(operation.__name__)
            try:
                operation(self)
            except MAY_BE_REFUSED as refused:
                played[-1] += f" ({refused.diag.message_primary})"
            assert_true(self.db, played)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_done_in_whatever_order_every_status_is_true(db, connect, notes, seed):
    Player(db, connect, seed).play(70)


def test_a_rejected_document_is_no_contradiction_and_stays_rejected_when_pipelines_switch(
    db, notes, drain
):
    db.execute("select rag.set('max_file_bytes', '100')")
    db.execute("insert into notes values (1, 'a.txt', %s)", [TOO_LONG])
    drain()
    assert_true(db, "rejected")
    db.execute("select rag.create_pipeline('v2', chunk_size => 200)")
    drain()
    db.execute("select rag.activate_pipeline('v2', force => true)")
    assert value(db, "select status from rag.documents") == "rejected"
    assert_true(db, "switched")
    db.execute("select rag.discard()")
    assert value(db, "select status from rag.documents") in ("pending", "rejected")
    drain()
    assert value(db, "select status from rag.documents") == "rejected"
    db.execute("select rag.discard()")
    assert_true(db, "discarded")


def test_a_document_given_up_in_a_pipeline_that_is_built_stays_so_when_history_is_pruned(
    db, notes, drain
):
    db.execute("insert into notes values (1, 'a.txt', %s)", [TEXT])
    drain()
    db.execute("select rag.create_pipeline('v2', chunk_size => 200)")
    drain()
    db.execute("select rag.reembed()")
    job = value(
        db,
        "select job_id from rag.ingestion_queue join rag.pipelines using (pipeline_id) where name = 'v2'",
    )
    db.execute("update notes set body = body || ' More.'")
    db.execute("select rag.cancel(%s)", [job])
    db.execute("select rag.discard()")
    drain()
    assert value(db, "select status from rag.documents") == "completed"
    Player(db, None, 0).forget()
    assert_true(db, "discarded")


def test_a_restored_version_takes_the_place_of_a_dead_letter(db, notes, drain):
    db.execute("insert into notes values (1, 'a.txt', %s)", [TEXT.format("dry")])
    drain()
    db.execute("update notes set body = %s", [TEXT.format("humid")])
    drain()
    db.execute("update notes set body = null")
    drain()
    assert value(db, "select status from rag.documents") == "failed"
    db.execute(
        "select rag.restore_version(max(version_id)) from rag.document_versions where restorable"
    )
    assert rows(db, "select status, last_error from rag.documents") == [("completed", None)]
    assert rows(db, "select * from rag.dead_letters") == []
    assert (
        value(db, "select outcome from rag.job_history order by finished_at desc limit 1")
        == "discarded"
    )
    assert_true(db, "restored")


def test_a_document_that_is_searchable_as_it_is_is_completed_when_its_dead_letter_goes(
    db, notes, drain
):
    db.execute("insert into notes values (1, 'a.txt', %s)", [TEXT])
    drain()
    db.execute("select rag.reembed()")
    db.execute("select rag.cancel(job_id) from rag.ingestion_queue")
    assert value(db, "select status from rag.documents") == "failed"
    db.execute("select rag.discard()")
    assert rows(db, "select status, last_error from rag.documents") == [("completed", None)]


def test_what_fails_in_a_pipeline_that_is_built_leaves_the_status_alone(db, notes, drain):
    db.execute("insert into notes values (1, 'a.txt', %s)", [TEXT])
    drain()
    db.execute("select rag.create_pipeline('v2', chunk_size => 200)")
    db.execute("select rag._fill_pipelines()")
    for call in ("cancel(job_id)", "retry(job_id)", "cancel(job_id)", "discard(job_id)"):
        db.execute(f"select rag.{call} from rag.ingestion_queue")
        assert value(db, "select status from rag.documents") == "completed", call
        assert_true(db, call)


def test_a_renamed_file_is_read_as_what_its_name_says(db, notes, drain):
    table = "name,store\nOtter,paper\nBadger,glass\n" * 3
    db.execute("insert into notes values (1, 'a.txt', %s)", [table])
    drain()
    assert value(db, "select mime_type from rag.documents") == "text/plain"
    db.execute("update notes set name = 'a.csv'")
    drain()
    assert value(db, "select mime_type from rag.documents") == "text/csv"


def test_a_file_that_only_moves_is_not_processed_again(db, notes, drain):
    db.execute("insert into notes values (1, 'old.folder/a.txt', %s)", [TEXT])
    drain()
    for name in ("new/a.txt", "new/b.TXT", ".hidden/b.txt"):
        db.execute("update notes set name = %s", [name])
        drain()
    assert value(db, "select count(*) from rag.document_versions") == 1
    assert value(db, "select count(*) from rag.job_history where outcome = 'unchanged'") == 3


BLOCKS = 200
"""Most blocks that a call for one document may read; the queue below has more than 300."""


@pytest.fixture
def long_queue(db, notes, drain):
    """A session whose plans were made for an empty queue, and a queue of 20,000 jobs."""
    db.execute("select rag.set('retain_versions', '1')")
    for number in range(8):
        db.execute("insert into notes values (%s, 'a.txt', 'First.')", [number])
    drain()
    db.execute("update notes set body = 'Second.'")
    drain()
    for number in range(7):
        for call in CALLS:
            db.execute("begin")
            db.execute(f"select {call}".format(number))
            db.execute("rollback")
    db.execute("insert into notes select n, 'a.txt', 'Text.' from generate_series(1000, 20999) n")
    while value(db, "select rag._expand_changes((-10)::smallint)"):
        pass
    assert value(db, "select count(*) from rag.ingestion_queue") == 20000


VERSION = "(select version_id from rag.document_versions where document_id = {} and restorable)"
CALLS = [
    "rag._delete_documents(1, array['{}'])",
    "rag._expand_keys(1, array['{}'], 0::smallint)",
    "rag._enqueue(1, array[{}])",
    "rag._set_document_state(1, array[{}])",
    "rag._refuse_row(1, '{}', '22000', 'bad row')",
    "rag.reembed(array[{}])",
    f"rag.restore_version({VERSION})",
]


def test_what_is_done_for_one_document_does_not_read_the_queue(db, long_queue):
    read = {}
    for call in CALLS:
        db.execute("begin")
        explained = f"explain (analyze, buffers, format json) select {call}".format(7)
        (plan,) = value(db, explained)
        db.execute("rollback")
        read[call] = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    assert {call: blocks for call, blocks in read.items() if blocks >= BLOCKS} == {}

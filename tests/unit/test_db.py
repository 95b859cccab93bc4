"""The connection that runs in the server, on a stand-in for plpy, and the calls made on it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fakes import FakeConnection, lines_as_chunks

from ragstone import db
from ragstone.db.maintenance import Maintenance
from ragstone.db.plpy import Plpy
from ragstone.db.queue import Queue
from ragstone.db.rows import Job, Lane, StoredDocument
from ragstone.errors import DocumentError
from ragstone.server.maintenance import maintain

JOB = Job(3, 1, 2, "key", 9, 1, "index", 1, "a.txt", None, None, None, False)


class StandIn:
    """plpy: notes what is done, in order."""

    class SPIError(Exception):
        sqlstate = "23505"

    class Error(Exception):
        pass

    def __init__(self, *, commits=True):
        self.done = []
        self._commits = commits

    def prepare(self, sql, types):
        return (sql, tuple(types))

    def execute(self, plan, values):
        self.done.append(plan[0])
        if plan[0] == "fail":
            raise self.SPIError("duplicate")
        return [{"value": values[0] if values else None}]

    def commit(self):
        if not self._commits:
            raise self.SPIError("invalid transaction termination")
        self.done.append("commit")

    def rollback(self):
        self.done.append("rollback")

    def error(self, message, **fields):
        raise self.Error(message, fields)


@pytest.fixture(autouse=True)
def no_plans(monkeypatch):
    monkeypatch.setattr(Plpy, "_plans", {})


def test_a_statement_of_a_procedure_is_a_transaction_and_one_of_a_function_is_not():
    plpy = StandIn()
    Plpy(plpy, commits=True).rows("select 1")
    Plpy(plpy).rows("select 2")
    assert plpy.done == ["select 1", "commit", "select 2"]


def test_an_error_leaves_no_transaction_open():
    plpy = StandIn()
    connection = Plpy(plpy, commits=True)
    with pytest.raises(StandIn.SPIError) as caught:
        connection.rows("fail")
    assert plpy.done == ["fail", "rollback"]
    assert connection.sqlstate(caught.value) == "23505"
    assert connection.sqlstate(ValueError()) == ""
    connection.rows("select 1")
    assert plpy.done[-1] == "commit"


def test_statements_that_belong_together_are_committed_together_or_not_at_all():
    plpy = StandIn()
    connection = Plpy(plpy, commits=True)
    with connection.transaction():
        connection.rows("select 1")
        connection.rows("select 2")
    assert plpy.done == ["select 1", "select 2", "commit"]
    plpy.done.clear()
    with pytest.raises(StandIn.SPIError), connection.transaction():
        connection.rows("select 1")
        connection.rows("fail")
    assert plpy.done == ["select 1", "fail", "rollback"]


def test_a_procedure_in_a_transaction_block_is_refused_before_it_does_anything():
    plpy = StandIn(commits=False)
    with pytest.raises(StandIn.Error) as caught:
        Plpy.of_procedure(plpy, "rag.drain()")
    message, fields = caught.value.args
    assert "rag.drain()" in message
    assert fields["sqlstate"] == "25001"
    assert fields["hint"]
    assert plpy.done == []


def test_a_type_of_the_same_name_in_the_search_path_is_not_taken():
    plpy = StandIn()
    connection = Plpy(plpy)
    connection.rows("select $1", ["int4"], 5)
    assert list(connection._plans.values()) == [("select $1", ("pg_catalog.int4",))]


def test_a_claim_gives_the_rows_it_has_in_hand():
    row = {name: getattr(JOB, name) for name in Job.__slots__}
    connection = FakeConnection(_claim_jobs=[row], _claim_retry=[])
    queue = Queue(connection, 7)
    assert queue.claim(Lane(0, 5, 100), 16) == [JOB]
    assert queue.claim_retry() == []
    assert connection.asked == [("_claim_jobs", (7, 0, 5, 100, 16)), ("_claim_retry", (7,))]


def test_jobs_of_dead_workers_are_freed_before_lanes_are_looked_up():
    lane = {"priority": 0, "tenant_id": 1, "job_id": 2}
    connection = FakeConnection(_free_jobs_of_dead_workers=None, _lanes=[lane])
    assert Queue(connection, 7).lanes() == [Lane(**lane)]
    assert [name for name, _ in connection.asked] == ["_free_jobs_of_dead_workers", "_lanes"]


def test_a_chunk_keeps_its_text_to_index_only_where_that_is_another():
    connection = FakeConnection(_store_document="done")
    (same, other) = lines_as_chunks("one\ntwo")
    other = type(other)("two", "Title: two", 3, 2, 4, "Chapter")
    document = StoredDocument("ab", 3, "text/plain", {})
    chunks = [(same, "h1", "[1]"), (other, "h2", None)]
    assert Queue(connection, 7).store(JOB, document, chunks) == "done"
    ((job, worker, generation, stored, sent),) = connection.calls("_store_document")
    assert (job, worker, generation) == (3, 7, 9)
    assert json.loads(stored)["sha256"] == "ab"
    first, second = json.loads(sent)
    assert (first["chunk_index"], first["indexed_text"], first["embedding"]) == (0, None, "[1]")
    assert (second["chunk_index"], second["indexed_text"], second["embedding"]) == (1, "Title: two", None)
    assert (second["hash"], second["page_number"], second["section"]) == ("h2", 4, "Chapter")


def test_a_failure_says_what_happened_and_why():
    connection = FakeConnection(_fail_job="dead")
    error = DocumentError("damaged", "it cannot be read", detail="No end.", hint="Save it.")
    assert Queue(connection, 7).fail(JOB, error) == "dead"
    (values,) = connection.calls("_fail_job")
    assert values[5:] == ("damaged", "it cannot be read. No end.", "Save it.")


def test_a_document_cut_for_another_pipeline_comes_as_blocks_in_order():
    row = {"sha256": "ab", "size": 3, "mime_type": "text/plain", "extracted": '{"pages": 2}',
           "title": "T", "content": "one", "page_number": 1, "section": None}  # fmt: skip
    connection = FakeConnection(_same_cut=[row, row | {"content": "two", "page_number": 2}])
    cut = Queue(connection, 7).same_cut(JOB)
    assert [(b.text, b.page) for b in cut.blocks] == [("one", 1), ("two", 2)]
    assert cut.document.extracted == {"pages": 2}
    assert Queue(FakeConnection(_same_cut=[]), 7).same_cut(JOB) is None


MAINTENANCE = {
    "_settings_of": [{"name": "document_root", "value": None}, {"name": "max_file_bytes", "value": "1"}],
    "_queue_outdated": 0, "cleanup_orphaned_chunks": 0, "_prune_versions": 0,
    "_prune_version_history": 0, "_prune_history": 0, "_evict_queries": 0,
    "_prune_cron_history": 0, "_fold_statistics": 0, "_count_problems": 0, "_log_maintenance": None,
    "clock_timestamp": "now", "_members_followed": 0, "sources": [{"source_id": 5}],
    "_compare_source": [{"last": None, "number": 0}],
}  # fmt: skip


def test_a_task_that_fails_is_a_warning_and_stops_no_other():
    connection = FakeConnection(**MAINTENANCE | {"_prune_history": ValueError("no"), "_prune_versions": 3})
    maintain(connection)
    assert ("warning", "maintenance failed: old jobs forgotten") in connection.said
    assert ("notice", "3 expired versions let go") in connection.said
    logged = [values[0] for values in connection.calls("_log_maintenance")]
    first = [Maintenance.members, *Maintenance.comparisons, "changed files queued"]
    assert logged == [*first, *Maintenance.tasks]
    failed = [values for values in connection.calls("_log_maintenance") if values[3] is not None]
    assert failed == [("old jobs forgotten", None, "now", "ValueError: no")]


def test_contradictions_are_a_warning():
    connection = FakeConnection(**MAINTENANCE | {"_count_problems": 2})
    maintain(connection)
    assert connection.said == [("warning", "2 contradictions found")]


def test_nothing_outside_db_runs_a_statement():
    package = Path(db.__file__).parents[1]
    modules = [path for path in package.rglob("*.py") if path.parent.name != "db"]
    assert len(modules) > 50
    assert [
        path.name
        for path in modules
        if re.search(r"\.(rows|value|transaction)\(|plpy\.(execute|prepare|cursor)\(|import psycopg", path.read_text())
    ] == []

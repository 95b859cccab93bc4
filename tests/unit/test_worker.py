"""The worker and its stages, with the database and the children in memory."""

from __future__ import annotations

import math
import time

import pytest
from fake_models import in_this_process, use_fake_provider
from fakes import FakeChild, FakeQueue, ServerError, embed_lengths, lines_as_chunks, read_lines

from ragstone.db.connection import Refused
from ragstone.db.queue import Queue
from ragstone.errors import DocumentError
from ragstone.reading.read import chunk_hash
from ragstone.worker.loop import Worker, drain
from ragstone.worker.stages import EMBED_TOGETHER_TOKENS


def worker(connection, *, reader=read_lines, model=embed_lengths, recycles=False):
    made = Worker(connection, Queue.join(connection), recycles=recycles)
    made.stages.reader = FakeChild(reader)
    made.stages.model = FakeChild(model)
    return made


def work(queue, connection=None, *, max_documents=None, seconds=0.0, **options):
    """Run a worker until the queue is empty; the worker."""
    made = worker(connection or queue.connection(), **options)
    try:
        made.run(time.monotonic() + seconds, max_documents)
    finally:
        made.close()
    return made


def chunks(queue, document):
    return [(c["content"], c["embedding"]) for c in queue.stored[document]]


def test_every_chunk_is_stored_with_its_own_vector():
    queue = FakeQueue({1: "a\nbb", 2: "ccc", 3: "dddd\neeeee\nffffff"})
    work(queue)
    assert chunks(queue, 1) == [("a", "[1]"), ("bb", "[2]")]
    assert chunks(queue, 2) == [("ccc", "[3]")]
    assert chunks(queue, 3) == [("dddd", "[4]"), ("eeeee", "[5]"), ("ffffff", "[6]")]
    assert [c["chunk_index"] for c in queue.stored[3]] == [0, 1, 2]
    assert queue.failed == {}


def test_a_document_goes_all_the_way_with_a_model_of_any_provider(monkeypatch):
    """By the code of the children, and a provider that nothing but a line makes known."""
    use_fake_provider(monkeypatch)
    sentence = "The pump must be inspected twice a year. "
    queue = FakeQueue({1: sentence * 100, 2: "Short."})
    made = work(queue, reader=in_this_process, model=in_this_process)
    assert queue.failed == {}
    assert queue.stored[2][0]["content"] == "Short."
    assert len(queue.stored[1]) > 5
    assert all(c["embedding"].count(",") == 15 for c in queue.stored[1])
    assert {request.model.provider for request in made.stages.model.requests} == {"fake"}


def test_a_model_that_is_down_fails_no_document_for_good(monkeypatch):
    use_fake_provider(monkeypatch).is_down = True
    queue = FakeQueue({1: "text"})
    work(queue, model=in_this_process)
    assert (queue.failed[1]["failure"], queue.failed[1]["code"]) == ("transient", "model_failed")


def test_small_documents_are_embedded_together_and_large_ones_are_not():
    small = FakeQueue({number: f"document {number}" for number in range(10)})
    assert len(work(small).stages.model.requests) == 1
    text = "word " * EMBED_TOGETHER_TOKENS
    large = FakeQueue({1: text, 2: text, 3: text})
    assert len(work(large).stages.model.requests) == 3


def test_the_child_is_told_whose_document_it_reads():
    queue = FakeQueue({1: "a", 2: "b", 3: "c"}, tenant_of={1: 7, 3: 8})
    assert [request.owner for request in work(queue).stages.reader.requests] == [7, None, 8]


def test_documents_of_two_pipelines_are_never_embedded_together():
    queue = FakeQueue({1: "a", 2: "b", 3: "c"}, pipeline_of={2: 2})
    made = work(queue)
    assert sorted(len(request.texts) for request in made.stages.model.requests) == [1, 2]
    assert set(queue.stored) == {1, 2, 3}


def test_chunks_that_the_document_has_are_not_embedded_again():
    (old,) = lines_as_chunks("old")
    queue = FakeQueue({1: "old\nnew one"}, hashes_of={1: [chunk_hash(old)]})
    made = work(queue)
    assert [list(request.texts) for request in made.stages.model.requests] == [["new one"]]
    assert chunks(queue, 1) == [("old", None), ("new one", "[7]")]


def test_a_document_with_nothing_new_needs_no_model():
    (old,) = lines_as_chunks("old")
    queue = FakeQueue({1: "old"}, hashes_of={1: [chunk_hash(old)]})
    made = work(queue)
    assert made.stages.model.requests == []
    assert chunks(queue, 1) == [("old", None)]


def test_an_unchanged_document_is_not_even_read_by_the_child():
    queue = FakeQueue({1: "text"})
    made = work(queue, queue.connection(_finish_if_unchanged=True))
    assert made.stages.reader.requests == []
    assert queue.stored == {}


def test_a_document_that_cannot_be_read_stops_no_other():
    def read(request, fd):
        if request.file_name == "2.txt":
            raise DocumentError("damaged", "the document cannot be read", hint="Save it anew.")
        return read_lines(request, fd)

    queue = FakeQueue({1: "a", 2: "b", 3: "c"})
    work(queue, reader=read)
    assert set(queue.stored) == {1, 3}
    assert queue.failed[2]["code"] == "damaged"
    assert queue.failed[2]["hint"] == "Save it anew."


def test_only_the_document_that_the_model_cannot_take_fails():
    def embed(request, fd):
        if "poison" in request.texts:
            raise DocumentError("crashed", "the document's text made the model crash")
        return embed_lengths(request, fd)

    queue = FakeQueue({1: "a", 2: "poison", 3: "c"})
    work(queue, model=embed)
    assert set(queue.stored) == {1, 3}
    assert (queue.failed[2]["code"], queue.failed[2]["stage"]) == ("crashed", "embed")


def test_a_document_that_takes_all_its_time_is_told_the_setting():
    def embed(request, fd):
        raise DocumentError("timeout", "the document takes longer than allowed")

    queue = FakeQueue({1: "a"}, settings={"job_time_limit_s": "5"})
    work(queue, model=embed)
    assert "5 s" in queue.failed[1]["message"]
    assert "job_time_limit_s" in queue.failed[1]["hint"]


def test_an_error_of_the_database_fails_the_document_with_its_sqlstate():
    queue = FakeQueue({1: "a", 2: "b"})

    def store(job, *values):
        return ServerError("23514") if job == 1 else queue.store(job, *values)

    work(queue, queue.connection(_store_document=store))
    assert set(queue.stored) == {2}
    assert (queue.failed[1]["code"], queue.failed[1]["stage"]) == ("23514", "store")


def test_a_null_document_says_what_to_do():
    queue = FakeQueue({1: ""})
    work(queue, queue.connection(_source_content=None))
    assert queue.failed[1]["code"] == "no_content"
    assert queue.failed[1]["hint"]


def test_a_document_over_a_quota_is_not_read():
    queue = FakeQueue({1: "a"}, tenant_of={1: 42})
    made = work(queue, queue.connection(_quota_problem="it is one too many"))
    assert queue.failed[1]["code"] == "over_quota"
    assert made.stages.reader.requests == []


@pytest.mark.parametrize("when", ["in the child", "in the model", "in the database"])
def test_a_cancel_ends_the_worker_and_gives_its_jobs_back(when):
    queue = FakeQueue({1: "a", 2: "b"})
    connection = queue.connection()
    cancel = ServerError("57014")

    def read(request, fd):
        connection.interrupt = cancel
        return read_lines(request, fd)

    def embed(request, fd):
        connection.interrupt = cancel
        return embed_lengths(request, fd)

    if when == "in the database":
        connection.answers["_stored_hashes"] = cancel
    options = {"in the child": {"reader": read}, "in the model": {"model": embed}}.get(when, {})
    made = worker(connection, **options)
    with pytest.raises(ServerError) as caught:
        try:
            made.run(math.inf, None)
        finally:
            connection.interrupt = None
            made.close()
    assert caught.value is cancel
    assert queue.failed == {}, "a cancel is not the document's fault"
    assert connection.calls("_give_back_jobs") == [(7,)]
    assert connection.calls("_leave_worker") == [(7,)]
    assert made.stages.reader.is_closed
    assert made.stages.model.is_closed


def test_a_maximum_of_documents_is_kept():
    queue = FakeQueue({number: "text" for number in range(50)})
    work(queue, max_documents=20)
    assert len(queue.stored) == len(queue.claimed) == 20
    nothing = FakeQueue({1: "text"})
    work(nothing, max_documents=0)
    assert nothing.claimed == []


def test_a_paused_worker_claims_nothing():
    queue = FakeQueue({1: "text"}, settings={"workers_paused": "on"})
    work(queue)
    assert queue.claimed == []


def test_a_machine_short_of_memory_is_spared_and_told_of_once():
    queue = FakeQueue({1: "text"}, settings={"min_available_memory_bytes": str(1 << 60)})
    connection = queue.connection()
    work(queue, connection, seconds=0.1)
    assert queue.claimed == []
    ((kind, message),) = connection.said
    assert kind == "warning"
    assert "memory" in message


def test_a_worker_that_shall_stop_claims_nothing_more():
    queue = FakeQueue({1: "text"}, stop_requested=True)
    work(queue)
    assert queue.claimed == []


def test_a_worker_that_is_replaced_ends_after_its_share():
    jobs = {number: "text" for number in range(50)}
    queue = FakeQueue(jobs, settings={"worker_max_documents": "16"})
    work(queue, seconds=60, recycles=True)
    assert len(queue.stored) == 16


def test_a_job_that_comes_at_the_last_moment_is_done():
    queue = FakeQueue({1: "text", 2: "late"})
    queue.waiting = [1]

    def refresh():
        if queue.claimed == [1] and 1 in queue.stored:
            queue.waiting = [2]

    work(queue, queue.connection(_refresh_statistics=refresh))
    assert set(queue.stored) == {1, 2}


def test_what_was_done_is_reported_and_logged_where_asked():
    queue = FakeQueue({1: "one two", 2: ""}, settings={"log_min_duration_ms": "0"})
    connection = queue.connection()
    work(queue, connection)
    reports = connection.calls("_report_worker")
    assert [sum(report[i] for report in reports) for i in (2, 3, 4)] == [2, 1, 2]
    lines = [text for kind, text in connection.said if kind == "log"]
    assert any("document=1" in line and "outcome=done" in line for line in lines)


@pytest.mark.parametrize(
    ("run_for", "max_documents", "word"),
    [(None, None, "run_for"), ("-1 s", None, "run_for"), ("0", -1, "max_documents")],
)
def test_what_makes_no_sense_is_refused_before_the_worker_registers(run_for, max_documents, word):
    queue = FakeQueue({1: "text"})
    connection = queue.connection(interval=lambda text: float(text.split()[0]))
    with pytest.raises(Refused, match=word) as caught:
        drain(connection, run_for, max_documents)
    assert caught.value.sqlstate == "22023"
    assert caught.value.hint
    assert connection.calls("_register_worker") == []

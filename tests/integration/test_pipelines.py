"""Another model or chunking is built beside the one that is searched, and switched to at once."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import onnx
import psycopg
import pytest
from conftest import ROOT
from helpers import rows, value
from onnx import TensorProto, helper, numpy_helper

LONG = "\n\n".join(f"Chapter {n} of a book about subject {n * 31}. " * 6 for n in range(12))


@pytest.fixture
def corpus(db, add, drain):
    """Twenty documents, searchable; afterwards nothing contradicts itself."""
    for number in range(20):
        add(number, f"Document {number}.\n\n{LONG}")
    drain()
    yield
    drain()
    assert rows(db, "select * from rag.check_consistency()") == []


def progress(db, name):
    columns = "state, documents, ready, waiting, percent::float"
    (row,) = rows(db, f"select {columns} from rag.pipeline_progress where name = %s", name)
    return row


def test_a_second_pipeline_is_filled_beside_the_first_and_switched_to(db, corpus, drain, table):
    before = value(db, "select count(*) from rag.document_chunks where pipeline_id = 1")
    db.execute("select rag.create_pipeline('v2', chunk_size => 200, chunk_overlap => 20)")
    assert progress(db, "v2") == ("building", 20, 0, 20, 0)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="20 documents") as error:
        db.execute("select rag.activate_pipeline('v2')")
    assert "force => true" in error.value.diag.message_hint
    drain()
    assert progress(db, "v2") == ("building", 20, 20, 0, 100)
    assert value(db, "select max(length(content)) from rag.search_documents('chapter')") > 200
    assert value(db, "select rag.activate_pipeline('v2')") == 0
    assert value(db, "select max(length(content)) from rag.search_documents('chapter')") <= 200
    chunks = value(db, "select sum(total_chunks) from rag.ingestion_log")
    assert (
        chunks
        == value(db, "select count(*) from rag.document_chunks where pipeline_id = 2")
        > before
    )
    assert value(db, "select rag.activate_pipeline('default')") == 0, "nothing has changed since"
    assert value(db, "select rag.drop_pipeline('v2')") == 20
    assert value(db, "select sum(total_chunks) from rag.ingestion_log") == before


def test_the_same_chunking_is_filled_from_stored_text_without_the_files(
    db, corpus, drain, document_root
):
    for file in document_root.iterdir():
        file.unlink()
    db.execute("select rag.create_pipeline('titled', embed_template => '{title} {content}')")
    drain()
    assert progress(db, "titled")[:4] == ("building", 20, 20, 0)
    same = """select count(*) from rag.document_chunks a join rag.document_chunks b
                using (document_id, chunk_index, content) where a.pipeline_id = 1 and b.pipeline_id = 2"""
    assert value(db, same) == value(
        db, "select count(*) from rag.document_chunks where pipeline_id = 1"
    )


def test_another_chunking_is_filled_from_the_files(db, corpus, drain, document_root):
    (document_root / "7.txt").unlink()
    db.execute("select rag.set('max_attempts', '1')")
    db.execute("select rag.create_pipeline('v2', chunk_size => 200)")
    drain()
    assert value(db, "select document_id from rag.dead_letters where pipeline = 'v2'") == 7
    assert value(db, "select status from rag.ingestion_log where document_id = 7") == "completed"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="1 document"):
        db.execute("select rag.activate_pipeline('v2')")
    assert value(db, "select rag.activate_pipeline('v2', force => true)") == 1
    assert value(db, "select status from rag.ingestion_log where document_id = 7") == "failed"


def test_changes_go_into_both_and_deletes_out_of_both(db, corpus, add, table, drain, document_root):
    db.execute("select rag.create_pipeline('v2', chunk_size => 200)")
    drain()
    add(100, "A late arrival about pelicans.")
    (document_root / "new.txt").write_text("Replaced by a text about herons.")
    db.execute(f'update {table} set "DocumentFilePath" = \'new.txt\' where "DocumentID" = 1')
    db.execute(f'delete from {table} where "DocumentID" = 2')
    drain()
    content = "select array_agg(content order by document_id) from rag.document_chunks where document_id in (1, 2, 100) and pipeline_id = %s"
    expected = ["Replaced by a text about herons.", "A late arrival about pelicans."]
    assert value(db, content, 1) == value(db, content, 2) == expected


def test_a_superseded_pipeline_is_gone_back_to_only_when_it_is_up_to_date(db, corpus, add, drain):
    db.execute("select rag.create_pipeline('v2', chunk_size => 200)")
    drain()
    db.execute("select rag.activate_pipeline('v2')")
    add(100, "A late arrival about pelicans.")
    drain()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="1 document") as error:
        db.execute("select rag.activate_pipeline('default')")
    assert "rag.resume_pipeline('default')" in error.value.diag.message_hint
    assert value(db, "select rag.resume_pipeline('default')") == 1
    drain()
    assert value(db, "select rag.activate_pipeline('default')") == 0
    assert value(db, "select document_id from rag.search_documents('pelicans', 1)") == 100


def test_a_forced_switch_fills_in_what_was_missing(db, corpus, drain):
    db.execute("select rag.create_pipeline('v2', chunk_size => 200)")
    assert value(db, "select rag.activate_pipeline('v2', force => true)") == 20
    assert rows(db, "select distinct status from rag.ingestion_log") == [("pending",)]
    drain()
    assert rows(db, "select distinct status from rag.ingestion_log") == [("completed",)]


def test_searches_throughout_never_fail_and_never_mix(db, connect, corpus, drain):
    """Every answer is of one pipeline: all its passages are of the one chunk size or the other."""
    db.execute("select rag.embed('warm up')")
    stop, answers, errors = threading.Event(), [], []
    session = connect()

    def search():
        while not stop.is_set():
            try:
                found = rows(session, "select length(content) from rag.search_documents('chapter')")
                answers.append({length <= 200 for (length,) in found})
            except psycopg.Error as error:
                errors.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    for name in ("v2", "v3"):
        db.execute("select rag.create_pipeline(%s, chunk_size => 200)", [name])
        drain()
        db.execute("select rag.activate_pipeline(%s)", [name])
        db.execute("select rag.activate_pipeline('default')")
        db.execute("select rag.drop_pipeline(%s)", [name])
    stop.set()
    thread.join()
    assert errors == []
    assert all(len(answer) == 1 for answer in answers), f"neither empty nor mixed: {answers}"


@pytest.mark.parametrize(
    "arguments",
    ["'chapter' || left(s.s::text, 0)", "rag.embed('chapter'), 'chapter' || left(s.s::text, 0)"],
)
def test_a_statement_that_began_before_its_pipeline_was_dropped_searches_the_next(
    db, connect, corpus, drain, arguments
):
    db.execute("select rag.create_pipeline('v2', chunk_size => 200)")
    drain()
    session = connect()
    session.execute("select rag.embed('warm up')")
    found = []
    sql = (
        f"select length(r.content) from pg_sleep(2) s, lateral rag.search_documents({arguments}) r"
    )
    thread = threading.Thread(target=lambda: found.extend(rows(session, sql)))
    thread.start()
    asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and pid = %s"
    while not value(db, asleep, session.info.backend_pid):
        assert thread.is_alive()
    db.execute("select rag.activate_pipeline('v2')")
    db.execute("select rag.drop_pipeline('default')")
    thread.join()
    assert len(found) == 10 and max(found) <= (200,)


def test_a_snapshot_from_before_the_drop_is_told_to_begin_again(db, connect, corpus, drain):
    db.execute("select rag.create_pipeline('v2', chunk_size => 200)")
    drain()
    session = connect()
    session.execute("begin isolation level repeatable read")
    session.execute("select from rag.pipelines")
    db.execute("select rag.activate_pipeline('v2')")
    db.execute("select rag.drop_pipeline('default')")
    with pytest.raises(psycopg.errors.SerializationFailure, match="has been dropped"):
        session.execute("select * from rag.search_documents('chapter')")


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        ("rag.create_pipeline('default')", psycopg.errors.DuplicateObject, "already"),
        ("rag.create_pipeline('active')", psycopg.errors.InvalidParameterValue, "identifier"),
        ("rag.create_pipeline('Not a name')", psycopg.errors.InvalidParameterValue, "identifier"),
        ("rag.create_pipeline('v2', model => 'none')", psycopg.errors.UndefinedObject, "none"),
        ("rag.create_pipeline('v2', chunk_size => 3)", psycopg.errors.InvalidParameterValue, "sane"),
        ("rag.create_pipeline('v2', text_search_config => 'klingon')", psycopg.errors.UndefinedObject, "klingon"),
        ("rag.activate_pipeline('v2')", psycopg.errors.UndefinedObject, "v2"),
        ("rag.drop_pipeline('default')", psycopg.errors.ObjectInUse, "active"),
        ("rag.drop_pipeline(null)", psycopg.errors.UndefinedObject, "null"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(db, call, error, word):
    with pytest.raises(error, match=word) as raised:
        db.execute(f"select {call}")
    assert raised.value.diag.message_hint


@pytest.fixture
def small_model(db):
    """A model of 8 dimensions: the mean of random vectors of the tokens."""
    folder = Path(tempfile.mkdtemp(prefix="ragstone-model-"))
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["n", "t"])
        for name in ("input_ids", "attention_mask")
    ]
    (source,) = (ROOT / "build" / "model").rglob("tokenizer.json")
    vocabulary = len(json.loads(source.read_text())["model"]["vocab"])
    weights = np.random.default_rng(1).standard_normal((vocabulary, 8), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["weights", "input_ids"], ["vectors"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
            helper.make_node("Mul", ["vectors", "wide"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "second"], ["sum"], keepdims=0),
            helper.make_node("LpNormalization", ["sum"], ["embedding"], axis=1, p=2),
        ],
        "small",
        tokens,
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 8])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "second"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    shutil.copy(source, folder)
    card = {"dimension": 8, "max_tokens": 256, "model_sha256": ""}
    (folder / "model.json").write_text(json.dumps(card))
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    db.execute(
        """insert into rag.models (name, provider, dimension, max_tokens, pooling, normalize, location, sha256)
           values ('small', 'onnx', 8, 256, 'mean', true, %s, sha256(''))""",
        [str(folder)],
    )
    yield "small"
    shutil.rmtree(folder)


def test_a_model_of_another_dimension_is_built_beside_and_switched_to(
    db, corpus, drain, small_model
):
    db.execute("select rag.create_pipeline('small', model => 'small')")
    drain()
    wide = value(db, "select count(*) from rag.search_documents('document')")
    assert wide > 0
    db.execute("select rag.activate_pipeline('small')")
    assert rows(
        db,
        "select distinct vector_dims(embedding) from rag.document_chunks c join rag.pipelines p using (pipeline_id) where p.state = 'active'",
    ) == [(8,)]
    assert value(db, "select count(*) from rag.search_documents('document')") == wide
    assert (
        value(db, "select count(*) from rag.search_documents('document', mode => 'semantic')")
        == wide
    )
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        db.execute(
            "select * from rag.search_documents(rag.embed('document', 'all-MiniLM-L6-v2'), 'document')"
        )
    assert "8" in str(caught.value) and "384" in str(caught.value)
    db.execute("select rag.activate_pipeline('default')")
    assert value(db, "select count(*) from rag.search_documents('document')") == wide
    db.execute("select rag.drop_pipeline('small')")
    assert rows(db, "select * from rag.check_consistency()") == []

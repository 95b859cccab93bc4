"""A cross-encoder that an administrator registers decides the order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import onnx
import psycopg
import pytest
from conftest import ROOT
from helpers import rows
from onnx import TensorProto, helper


def register(db, name, *, wide=False):
    """A model whose score is the number of tokens; wide: two scores a passage, of which none is it."""
    folder = Path(tempfile.mkdtemp(prefix="ragstone-reranker-"))
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"])
        for name in ("input_ids", "attention_mask")
    ]
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 2] if wide else ["n"])
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask", "axes"], ["sum"], keepdims=int(wide)),
        helper.make_node("Concat", ["sum", "sum"], ["score"], axis=1)
        if wide
        else helper.make_node("Identity", ["sum"], ["score"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "length", tokens, [score], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (tokenizer,) = (ROOT / "build" / "model").rglob("tokenizer.json")
    shutil.copy(tokenizer, folder)
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    db.execute(
        """insert into rag.models (name, kind, provider, dimension, max_tokens, pooling, normalize, location, sha256)
           values (%s, 'reranker', 'onnx', 1, 64, 'none', false, %s, sha256(''))""",
        [name, str(folder)],
    )
    return folder


@pytest.fixture
def reranker(db, drain):
    """The longest passage comes first."""
    folder = register(db, "length")
    db.execute("create table facts (id integer primary key, body text)")
    db.execute("select rag.attach_source('facts', content_column => 'body')")
    db.execute(
        "insert into facts select n, 'honey' || repeat(' and wax', n) from generate_series(1, 20) n"
    )
    drain()
    yield "length"
    shutil.rmtree(folder)


def test_the_reranker_decides_the_order(db, reranker):
    found = rows(
        db,
        "select document_id, rerank_score, hybrid_score from rag.search_documents('honey', 5, rerank => 'length')",
    )
    assert [f[0] for f in found] == [20, 19, 18, 17, 16]
    assert [f[1] for f in found] == sorted((f[1] for f in found), reverse=True)
    assert all(f[2] is not None for f in found)


def test_without_it_there_is_no_such_score(db, reranker):
    assert rows(db, "select distinct rerank_score from rag.search_documents('honey')") == [(None,)]


def test_nothing_found_is_nothing_to_rerank(db, reranker):
    assert (
        rows(
            db,
            "select from rag.search_documents('honey', document_filter => '{}', rerank => 'length')",
        )
        == []
    )


def test_a_long_passage_is_cut_to_what_the_model_reads(db, reranker, drain):
    db.execute("insert into facts values (100, repeat('honey and wax ', 30))")
    drain()
    (best,) = rows(
        db,
        "select document_id, rerank_score from rag.search_documents('honey', 1, rerank => 'length')",
    )
    assert best == (100, 64)


def test_a_model_with_more_than_one_score_a_passage_is_refused(db, reranker):
    folder = register(db, "classes", wide=True)
    with pytest.raises(psycopg.errors.ExternalRoutineException) as caught:
        db.execute("select from rag.search_documents('honey', rerank => 'classes')")
    shutil.rmtree(folder)
    assert caught.value.diag.message_primary == 'reranker "classes" cannot be used'
    assert caught.value.diag.message_detail.startswith("the first output of model.onnx has the")
    assert "one score" in caught.value.diag.message_hint


@pytest.mark.parametrize("file", ["tokenizer.json", "model.onnx"])
def test_a_missing_file_is_named_and_the_servers_folders_are_not(db, reranker, file):
    folder = register(db, "partial")
    (folder / file).unlink()
    with pytest.raises(psycopg.errors.ExternalRoutineException) as caught:
        db.execute("select from rag.search_documents('honey', rerank => 'partial')")
    shutil.rmtree(folder)
    said = caught.value.diag
    assert said.message_primary == 'reranker "partial" cannot be used'
    assert file in said.message_detail and "leave rerank out" in said.message_hint
    assert str(folder) not in f"{said.message_primary} {said.message_detail} {said.message_hint}"

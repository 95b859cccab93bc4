"""A cross-encoder that an administrator registers decides the order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import onnx
import pytest
from conftest import ROOT
from helpers import rows
from onnx import TensorProto, helper


@pytest.fixture
def reranker(db, drain):
    """A model whose score is the number of tokens: the longest passage comes first."""
    folder = Path(tempfile.mkdtemp(prefix="ragstone-reranker-"))
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"])
        for name in ("input_ids", "attention_mask")
    ]
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["mask", "axes"], ["score"], keepdims=0),
        ],
        "length",
        tokens,
        [score],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (tokenizer,) = (ROOT / "build" / "model").rglob("tokenizer.json")
    shutil.copy(tokenizer, folder)
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    db.execute(
        """insert into rag.models (name, kind, provider, dimension, max_tokens, pooling, normalize, location, sha256)
           values ('length', 'reranker', 'onnx', 1, 64, 'none', false, %s, sha256(''))""",
        [str(folder)],
    )
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

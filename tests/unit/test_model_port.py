"""What every provider of models promises, whichever it is and in whichever process it runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_models import FAKE, in_this_process, onnx_model, use_fake_provider, word_model
from fakes import FakeChild
from onnx import TensorProto, helper

from ragstone.errors import DocumentError
from ragstone.models import providers
from ragstone.models.port import (
    ModelRefused,
    ModelSpec,
    ModelUnavailable,
    TextTooLong,
    document_error,
    vector_literal,
)
from ragstone.reading.chunk import ChunkSpec
from ragstone.sandbox.parent import Sandbox
from ragstone.sandbox.protocol import EmbedRequest, ExtractRequest
from ragstone.stores.column import OpenContent

MODEL_DIR = Path(
    os.environ.get("RAGSTONE_MODEL_DIR", Path(__file__).resolve().parents[2] / "build" / "model")
)
TEXTS = ["Pumps need water.", "", "Ünïcödé 日本語 " * 5, "a " * 40, "Pumps need water."]


@pytest.fixture(params=["onnx", "fake"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    if request.param == "onnx":
        return onnx_model(MODEL_DIR)
    use_fake_provider(monkeypatch)
    return FAKE


@pytest.fixture
def child(model: ModelSpec) -> Iterator[Sandbox | FakeChild]:
    if model is FAKE:  # which another process does not know
        yield FakeChild(in_this_process)
        return
    with Sandbox(name="embed") as box:
        yield box


def nothing() -> None:
    pass


def cancel() -> None:
    raise KeyboardInterrupt


# Embedding


def test_each_text_gets_its_own_vector_in_its_place(model: ModelSpec) -> None:
    embedder = providers.embedder(model)
    vectors = embedder.embed_passages(TEXTS)
    assert vectors.shape == (len(TEXTS), model.dimension) == (len(TEXTS), embedder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[-1])
    assert vectors[0] @ vectors[1] < 0.99
    assert embedder.embed_passages([]).shape == (0, model.dimension)


def test_a_child_gives_the_vectors_of_the_model(
    model: ModelSpec, child: Sandbox | FakeChild
) -> None:
    child.submit(EmbedRequest(model, TEXTS, wall_seconds=60), None, nothing)
    here = providers.embedder(model).embed_passages(TEXTS)
    assert child.result(nothing) == [vector_literal(row) for row in here]


def test_a_question_is_found_by_the_passage_that_says_the_same(model: ModelSpec) -> None:
    embedder = providers.embedder(model)
    question = embedder.embed_question(TEXTS[0])
    assert not question.is_cut
    (passage,) = embedder.embed_passages(TEXTS[:1])
    assert question.vector @ passage > 0.999


def test_what_the_counter_lets_pass_the_model_reads_whole(model: ModelSpec) -> None:
    embedder, counter = providers.embedder(model), providers.token_counter(model)
    text = "word " * (embedder.max_tokens - 2)
    assert counter.count(text) == embedder.max_tokens
    embedder.embed_passages([text])
    assert not embedder.embed_question(text).is_cut


def test_a_long_passage_is_an_error_and_a_long_question_is_cut(model: ModelSpec) -> None:
    embedder = providers.embedder(model)
    long = "some words " * embedder.max_tokens
    with pytest.raises(TextTooLong) as caught:
        embedder.embed_passages(["short", long])
    assert caught.value.limit == embedder.max_tokens < caught.value.tokens
    assert embedder.embed_passages([long], truncate=True).shape == (1, embedder.dimension)
    assert embedder.embed_question(long).is_cut


def test_a_passage_too_long_for_the_childs_model_is_not_tried_again(
    model: ModelSpec, child: Sandbox | FakeChild
) -> None:
    long = "some words " * model.max_tokens
    child.submit(EmbedRequest(model, [long], wall_seconds=60), None, nothing)
    with pytest.raises(DocumentError) as caught:
        child.result(nothing)
    assert (caught.value.code, caught.value.failure) == ("text_too_long", "permanent")


def test_a_cancel_passes_through(model: ModelSpec) -> None:
    embedder = providers.embedder(model)
    with pytest.raises(KeyboardInterrupt):
        embedder.embed_passages(["text"], check=cancel)
    with pytest.raises(KeyboardInterrupt):
        embedder.embed_question("text", check=cancel)


# Counting


def test_pieces_fit_and_nothing_of_the_text_is_lost(model: ModelSpec) -> None:
    counter = providers.token_counter(model)
    text = "  One two three.\n\nFour, five; six seven " * 30
    pieces = counter.split_to_fit(text, 20)
    assert "".join(pieces) == text
    assert max(map(counter.count, pieces)) <= 20
    assert counter.split_to_fit("", 20) == []
    with pytest.raises(ValueError, match="max_tokens"):
        counter.split_to_fit(text, 2)


def test_counting_tokens_needs_a_part_of_the_models_files(model: ModelSpec) -> None:
    provider = providers.provider(model)
    files = provider.files(model)
    assert all(
        any(part == file or file in part.parents for file in files)
        for part in provider.token_files(model)
    )
    extraction = ExtractRequest("a.txt", model)
    semantic = replace(extraction, chunk_spec=ChunkSpec(strategy="semantic"))
    assert list(extraction.readable) == list(provider.token_files(model))
    assert list(semantic.readable) == list(files)
    assert list(EmbedRequest(model, ["text"], wall_seconds=1).readable) == list(files)


# Reranking


@pytest.fixture
def reranker(model: ModelSpec, tmp_path: Path) -> ModelSpec:
    """Its score is the number of tokens."""
    if model is FAKE:
        return model
    return length_reranker(tmp_path)


def length_reranker(folder: Path, *, scores: int = 1) -> ModelSpec:
    """A cross-encoder that counts, with so many scores a passage."""
    names = ("input_ids", "attention_mask")
    tokens = [helper.make_tensor_value_info(n, TensorProto.INT64, ["n", "t"]) for n in names]
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", scores])
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask", "axes"], ["sum"], keepdims=1),
        helper.make_node("Concat", ["sum"] * scores, ["score"], axis=1),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "length", tokens, [score], [axes])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "model.onnx")
    shutil.copy(MODEL_DIR / "tokenizer.json", folder)
    return onnx_model(folder)


def test_each_passage_gets_its_own_score_in_its_place(reranker: ModelSpec) -> None:
    passages = ["three words long", "one", "two words", "word " * 1_000]
    scores = providers.reranker(reranker).scores("What is it?", passages)
    assert len(scores) == len(passages)
    assert sorted(scores[:3], reverse=True) == [scores[0], scores[2], scores[1]]
    assert providers.reranker(reranker).scores("What is it?", []) == []
    with pytest.raises(KeyboardInterrupt):
        providers.reranker(reranker).scores("What is it?", passages, check=cancel)


def test_a_reranker_with_other_scores_is_refused_for_good(tmp_path: Path) -> None:
    reranker = providers.reranker(length_reranker(tmp_path, scores=2))
    with pytest.raises(ModelRefused, match="one score a passage"):
        reranker.scores("question", ["passage"])


# Errors


@pytest.fixture
def broken(model: ModelSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelSpec:
    """A model that cannot be used."""
    if model is FAKE:
        use_fake_provider(monkeypatch).is_down = True
        return model
    return onnx_model(tmp_path)


LOADS: list[Callable[[ModelSpec], object]] = [
    providers.embedder,
    providers.reranker,
    providers.token_counter,
]


@pytest.mark.parametrize("load", LOADS)
def test_a_model_that_cannot_be_used_says_to_wait_and_names_no_folder(
    broken: ModelSpec, load: Callable[[ModelSpec], object]
) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        load(broken)
    assert str(caught.value)
    assert broken.location not in str(caught.value)
    assert providers.provider(broken).problem(broken, nothing)


def test_a_model_that_comes_back_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use_fake_provider(monkeypatch)
    fake.is_down = True
    with pytest.raises(ModelUnavailable):
        providers.embedder(FAKE)
    fake.is_down = False
    assert providers.embedder(FAKE) is providers.embedder(FAKE)


def test_a_provider_that_is_not_there_says_which_are() -> None:
    with pytest.raises(ModelUnavailable, match=r'no provider "oracle", only .*onnx'):
        providers.embedder(ModelSpec("m", "oracle", "here", dimension=3, max_tokens=9))


@pytest.mark.parametrize(
    ("make", "strategy"), [(onnx_model, "recursive"), (word_model, "semantic")]
)
def test_a_missing_model_fails_no_document_for_good(
    tmp_path: Path, make: Callable[[Path], ModelSpec], strategy: str
) -> None:
    """Whichever part is missing and whoever asks for it first: the files may be put back."""
    request = ExtractRequest("a.txt", make(tmp_path), chunk_spec=ChunkSpec(strategy=strategy))
    document = OpenContent(b"One. Two. Three. " * 50)
    with document.snapshot(10**6, nothing) as source, Sandbox() as box:
        box.submit(request, source.fd, nothing)
        with pytest.raises(DocumentError) as caught:
            box.result(nothing)
    assert (caught.value.code, caught.value.failure) == ("model_failed", "transient")
    assert str(tmp_path) in caught.value.detail


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ModelUnavailable("it rests"), "transient"),
        (ModelRefused("it will not"), "permanent"),
        (TextTooLong(9, 8), "permanent"),
    ],
)
def test_an_error_says_what_becomes_of_the_document(error: Exception, failure: str) -> None:
    became = document_error(error, FAKE, "embed")
    assert (became.failure, became.stage) == (failure, "embed")
    assert str(error) in became.detail and became.hint


# The reference


def test_a_model_is_the_same_after_its_way_to_another_process() -> None:
    model = replace(FAKE, options={"batch": 3, "names": ["a"]}, sha256="00ff")
    there = ModelSpec.from_dict(json.loads(json.dumps(model.to_dict())))
    assert there == model and hash(there) == hash(model)
    assert replace(model, options={"batch": 4}) != model

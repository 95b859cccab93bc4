"""The built model: faithful to its weights, and int8 finds what fp32 finds."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tokenizers
from safetensors.numpy import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "build_model.py"
TEXTS = [
    "",
    "a",
    "Passages come out of one SQL function, ranked.",
    "Überraschung: naïve café, 日本語 and 🙂 in one line",
    " ".join(["The pump must be inspected every six months by a certified technician."] * 12),
]

PASSAGES = {
    "photosynthesis": "Green plants turn sunlight, water and carbon dioxide into sugar and oxygen.",
    "volcano": "Molten rock rises through cracks in the crust and erupts as lava and ash.",
    "tides": "The gravity of the moon pulls the oceans so the sea rises and falls twice a day.",
    "penicillin": "Alexander Fleming noticed a mould that killed bacteria in his dishes in 1928.",
    "invoice": "Invoices are due within thirty days; later, 5 percent interest is added.",
    "vacation": "Employees receive 25 days of paid leave a year; five may be carried over.",
    "fire": "In case of fire leave by the nearest exit; do not use the lifts.",
    "password": "Passwords have 14 characters and are reset on the self-service page.",
    "backup": "Databases are copied every night to a second site and kept for ninety days.",
    "bread": "Mix flour, water, salt and yeast, let it rise, then bake it for forty minutes.",
    "chess": "The knight moves two squares in one direction and one square sideways.",
    "marathon": "The race is 42.195 kilometres long and recalls a messenger's run to Athens.",
    "piano": "Pressing a key makes a felt hammer strike the strings.",
    "vaccine": "A vaccine shows the immune system a harmless part of a virus so it can prepare.",
    "inflation": "When prices rise across the economy, money buys less than before.",
    "mortgage": "The house serves as security for the loan until the last instalment is paid.",
    "bees": "Honeybees dance in the hive to tell the others where flowers are.",
    "whale": "The blue whale is the largest animal ever known and feeds on tiny krill.",
    "desert": "Camels store fat in their humps and can go for days without drinking.",
    "glacier": "Snow pressed into ice over centuries flows slowly down the valley.",
    "printing": "Gutenberg's movable type made books cheap in fifteenth-century Europe.",
    "moon": "In July 1969 two astronauts walked on the lunar surface for the first time.",
    "engine": "Fuel and air burn in the cylinder and push the piston down.",
    "battery": "Lithium ions travel between the electrodes while the cell charges and discharges.",
    "bridge": "Steel cables hung from two towers carry the roadway over the river.",
    "pump": "The hydraulic pump must be inspected every six months and its seals replaced.",
    "warranty": "Defects are repaired free of charge for two years from the date of purchase.",
    "returns": "Goods may be sent back unused within fourteen days for a full refund.",
    "privacy": "Personal data is erased once the purpose for which it was collected has ended.",
    "visa": "Travellers need a passport valid for six months and an entry permit.",
    "coffee": "Beans are roasted at about 200 degrees, which brings out the aroma.",
    "tea": "Leaves are withered, rolled, oxidised and dried before they are brewed.",
    "insulin": "The pancreas releases a hormone that lets cells take up sugar from the blood.",
    "earthquake": "Plates of the crust slip past each other and the ground shakes.",
    "rainbow": "Drops of water bend sunlight and split it into colours.",
    "index": "A B-tree keeps keys sorted so that a row is found in a few page reads.",
    "lock": "Two transactions that each wait for the other's row are a deadlock.",
    "compiler": "Source code is translated into machine instructions before it runs.",
    "parliament": "The lower house is elected every five years and passes the laws.",
    "shakespeare": "Hamlet, prince of Denmark, hesitates to avenge the murder of his father.",
}
QUESTIONS = {
    "How do plants make oxygen?": "photosynthesis",
    "Why does a mountain spit out lava?": "volcano",
    "What causes high and low water at the coast?": "tides",
    "Who discovered the first antibiotic?": "penicillin",
    "When do I have to pay a bill?": "invoice",
    "How many holidays do staff get?": "vacation",
    "May I take the elevator when there is smoke?": "fire",
    "I forgot my login credentials": "password",
    "How long are copies of the database retained?": "backup",
    "recipe for a loaf": "bread",
    "How does the horse piece move on the board?": "chess",
    "What distance do long-distance runners cover?": "marathon",
    "How does immunization protect against infection?": "vaccine",
    "Why does everything get more expensive?": "inflation",
    "borrowing money to buy a home": "mortgage",
    "How do insects communicate where nectar is?": "bees",
    "biggest creature in the ocean": "whale",
    "first people on the moon": "moon",
    "maintenance interval of the hydraulic equipment": "pump",
    "Can I get my money back for an item I do not want?": "returns",
    "What do I need to cross the border?": "visa",
    "hormone that controls blood glucose": "insulin",
    "two sessions block one another forever": "lock",
    "play about a Danish prince": "shakespeare",
}


@pytest.fixture(scope="module")
def model_dir() -> Path:
    folder = Path(os.environ.get("RAGSTONE_MODEL_DIR", REPOSITORY / "build" / "model"))
    if not (folder / "model.onnx").is_file() or not (folder / "model_fp32.onnx").is_file():
        pytest.fail(f"no model in {folder}: run make build")
    return folder


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_model", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_model"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    tokenizer = tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.fixture(scope="module")
def fp32(model_dir: Path) -> Any:
    return onnxruntime.InferenceSession(str(model_dir / "model_fp32.onnx"))


@pytest.fixture(scope="module")
def int8(model_dir: Path) -> Any:
    return onnxruntime.InferenceSession(str(model_dir / "model.onnx"))


def run(session: Any, tokenizer: Any, text: str) -> np.ndarray:
    ids = np.array([tokenizer.encode(text).ids], dtype=np.int32)
    return session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]


def layer_norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    return scaled * weights[name + ".weight"] + weights[name + ".bias"]


def dense(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    query, key, value = (
        dense(x, weights, f"{name}.{part}").reshape(len(x), 12, 32).transpose(1, 0, 2)
        for part in ("query", "key", "value")
    )
    scores = query @ key.transpose(0, 2, 1) / math.sqrt(32)
    share = np.exp(scores - scores.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    return (share @ value).transpose(1, 0, 2).reshape(len(x), 384)


def reference(weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """BERT, mean pooling and L2 norm as published, in float64 for one text."""
    x = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][: len(ids)]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    x = layer_norm(x, weights, "embeddings.LayerNorm")
    for index in range(6):
        layer = f"encoder.layer.{index}"
        attended = attention(x, weights, f"{layer}.attention.self")
        attended = dense(attended, weights, f"{layer}.attention.output.dense")
        x = layer_norm(x + attended, weights, f"{layer}.attention.output.LayerNorm")
        wide = gelu(dense(x, weights, f"{layer}.intermediate.dense"))
        x = layer_norm(
            x + dense(wide, weights, f"{layer}.output.dense"), weights, f"{layer}.output.LayerNorm"
        )
    pooled = x.mean(axis=0)
    return pooled / np.linalg.norm(pooled)


def rankings(session: Any, tokenizer: Any) -> dict[str, list[str]]:
    names = list(PASSAGES)
    passages = np.array([run(session, tokenizer, text) for text in PASSAGES.values()])
    return {
        question: [names[i] for i in np.argsort(-(passages @ run(session, tokenizer, question)))]
        for question in QUESTIONS
    }


def test_fp32_graph_computes_what_the_published_weights_say(
    tool: ModuleType, fp32: Any, tokenizer: Any
) -> None:
    source = tool.find_package(None)
    weights = {
        name: value.astype(np.float64)
        for name, value in load_file(source / "model.safetensors").items()
    }
    for text in TEXTS:
        expected = reference(weights, tokenizer.encode(text).ids)
        np.testing.assert_allclose(run(fp32, tokenizer, text), expected, atol=1e-5)


def test_search_finds_the_same_with_int8_as_with_fp32(fp32: Any, int8: Any, tokenizer: Any) -> None:
    full, small = rankings(fp32, tokenizer), rankings(int8, tokenizer)
    same_first = sum(full[question][0] == small[question][0] for question in QUESTIONS)
    shared = sum(len(set(full[q][:5]) & set(small[q][:5])) for q in QUESTIONS)
    assert same_first >= len(QUESTIONS) - 1
    assert shared / (5 * len(QUESTIONS)) >= 0.85


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_search_finds_the_answer(name: str, tokenizer: Any, request: pytest.FixtureRequest) -> None:
    ranked = rankings(request.getfixturevalue(name), tokenizer)
    first = sum(ranked[question][0] == answer for question, answer in QUESTIONS.items())
    recall_at_3 = sum(answer in ranked[question][:3] for question, answer in QUESTIONS.items())
    assert first >= len(QUESTIONS) - 2
    assert recall_at_3 >= len(QUESTIONS) - 1


def test_int8_vector_points_where_the_fp32_vector_points(
    fp32: Any, int8: Any, tokenizer: Any
) -> None:
    for text in PASSAGES.values():
        assert run(fp32, tokenizer, text) @ run(int8, tokenizer, text) > 0.96


def test_vectors_have_length_one(int8: Any, tokenizer: Any) -> None:
    for text in TEXTS:
        assert np.linalg.norm(run(int8, tokenizer, text)) == pytest.approx(1, abs=1e-5)


def test_checksums_in_the_card_are_those_of_the_files(model_dir: Path) -> None:
    card = json.loads((model_dir / "model.json").read_text())
    for name, key in (("model.onnx", "model_sha256"), ("tokenizer.json", "tokenizer_sha256")):
        assert hashlib.sha256((model_dir / name).read_bytes()).hexdigest() == card[key]
    assert (card["dimension"], card["max_tokens"]) == (384, 256)


def test_a_second_build_has_the_checksum_baked_into_the_extension(
    model_dir: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(TOOL), "build", "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("model.onnx", "tokenizer.json", "model.json"):
        assert (tmp_path / name).read_bytes() == (model_dir / name).read_bytes()


def test_altered_weights_are_refused_with_what_to_do(tool: ModuleType, tmp_path: Path) -> None:
    source = tool.find_package(None)
    (tmp_path / "model.safetensors").write_bytes(b"not the weights")
    shutil.copy(source / "tokenizer.json", tmp_path)
    with pytest.raises(tool.BuildError, match=r"has sha256 .* expected 53aa51.*install"):
        tool.build(tmp_path / "out", tmp_path, keep_fp32=False)
    assert not (tmp_path / "out").exists()


def test_prepack_needs_nothing_the_server_does_not_have(model_dir: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "tokenizer.json", "model.json"):
        shutil.copy(model_dir / name, tmp_path)
    program = (
        "import runpy, sys\n"
        "for name in ('onnx', 'safetensors', 'tokenizers'): sys.modules[name] = None\n"
        f"sys.argv = ['build_model.py', 'prepack', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert (tmp_path / "model.prepacked.onnx").is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []

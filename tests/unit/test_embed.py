"""Embedding and token counting as the backend and the sandbox use them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragstone.models import onnx
from ragstone.models.onnx import Embedder, batches, prepack
from ragstone.models.port import ModelError, TextTooLong, vector_literal
from ragstone.models.tokens import SPLIT_WINDOW_CHARACTERS, Tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL_DIR = Path(os.environ.get("RAGSTONE_MODEL_DIR", REPOSITORY / "build" / "model"))
SENTENCE = "The pump must be inspected every six months by a certified technician. "


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepacked copy, so that tests may damage it."""
    if not (MODEL_DIR / "model.onnx").is_file():
        pytest.fail(f"no model in {MODEL_DIR}: run make build")
    folder = tmp_path_factory.mktemp("model")
    for name in ("model.onnx", "tokenizer.json", "model.json"):
        shutil.copy(MODEL_DIR / name, folder)
    prepack(folder)
    return folder


@pytest.fixture(scope="module")
def embedder(model_dir: Path) -> Embedder:
    return Embedder.load(model_dir)


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer.load(model_dir / "tokenizer.json")


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "moved"))


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left * right).sum(axis=1)


# Loading

# A process of its own: what a library does when it is imported, it does once.
FRESH = """
import os, sys
sys.path[:0] = {paths!r}
{load}
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize(
    "load",
    [
        "from pathlib import Path; from ragstone.models.onnx import Embedder;"
        " Embedder.load(Path({model!r})).embed_passages(['a text'])",
        "from ragstone.server import check; check.libraries(None)",
    ],
)
def test_loading_the_model_starts_no_thread_and_leaves_no_file(
    model_dir: Path, tmp_path: Path, load: str
) -> None:
    """ONNX Runtime sends telemetry unless it is told not to: a thread, a database in the home."""
    paths = [str(Path(onnx.__file__).parents[2]), str(Path(np.__file__).parents[1])]
    code = FRESH.format(paths=paths, load=load.format(model=str(model_dir)))
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=home, check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.split() == ["1"]
    assert list(tmp_path.iterdir()) == []



def test_importing_the_module_costs_a_session_nothing() -> None:
    program = (
        "import sys, ragstone.models.onnx, ragstone.models.tokens\n"
        "print({'numpy', 'onnxruntime', 'tokenizers'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "plpy_lib")}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    )
    assert result.stdout.strip() == "set()"


def test_loading_leaves_the_signal_mask_as_it_was(model_dir: Path) -> None:
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        Embedder.load(model_dir)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        with pytest.raises(ModelError):
            Embedder.load(model_dir / "absent")
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def test_the_servers_signals_never_reach_the_libraries_threads(model_dir: Path) -> None:
    program = (
        "import sys, os, glob\n"
        "from pathlib import Path\n"
        "from ragstone.models.onnx import Embedder\n"
        "e = Embedder.load(Path(sys.argv[1]), threads=2)\n"
        "e.embed_passages(['a text'] * 3)\n"
        "for t in glob.glob('/proc/self/task/*'):\n"
        "    if os.path.basename(t) != str(os.getpid()):\n"
        "        s = dict(l.split(':\\t') for l in open(t + '/status') if ':\\t' in l)\n"
        "        print(s['SigBlk'].strip())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "plpy_lib")}
    result = subprocess.run(
        [sys.executable, "-c", program, str(model_dir)],
        env=environment, capture_output=True, check=True, text=True,
    )  # fmt: skip
    masks = [int(line, 16) for line in result.stdout.split()]
    assert masks
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM, signal.SIGHUP):
        assert all(mask >> (number - 1) & 1 for mask in masks)


def test_a_broken_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.json"):
        Embedder.load(tmp_path)


def test_prepacked_file_gives_the_same_vectors(model_dir: Path, embedder: Embedder) -> None:
    plain = Embedder.load(model_dir, prepacked=False)
    assert embedder.prepacked
    assert not plain.prepacked
    texts = ["a query", SENTENCE * 3, ""]
    np.testing.assert_allclose(embedder.embed_passages(texts), plain.embed_passages(texts), atol=1e-6)


def test_prepacked_file_survives_moving_the_folder(copy: Path, embedder: Embedder) -> None:
    moved = Embedder.load(copy)
    assert moved.prepacked
    np.testing.assert_array_equal(moved.embed_passages(["text"]), embedder.embed_passages(["text"]))


@pytest.mark.parametrize(
    "name", ["model.prepacked.onnx", "model.prepacked.data", "model.prepacked.json"]
)
def test_search_goes_on_without_the_prepacked_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    loaded = Embedder.load(copy)
    assert not loaded.prepacked
    assert loaded.embed_passages(["text"]).shape == (1, 384)


@pytest.mark.parametrize("name", ["model.prepacked.onnx", "model.prepacked.data"])
def test_search_goes_on_with_a_truncated_prepacked_file(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    assert not Embedder.load(copy).prepacked


@pytest.mark.parametrize("fact", ["cpu", "onnxruntime", "model_sha256"])
def test_a_prepacked_file_made_elsewhere_is_not_used(copy: Path, fact: str) -> None:
    stamp = copy / onnx.PREPACKED_STAMP_FILE
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), fact: "another"}))
    assert not Embedder.load(copy).prepacked


def test_a_kernel_update_does_not_disable_the_prepacked_file(tmp_path: Path) -> None:
    before, after, other = (tmp_path / name for name in ("before", "after", "other"))
    before.write_text("model\t: 1\nflags\t: fpu avx2\n\nmodel\t: 1\n")
    after.write_text("model\t: 1\nflags\t: avx2 new_mitigation fpu\n\n")
    other.write_text("model\t: 1\nflags\t: fpu avx2 avx512f\n\n")
    assert onnx.cpu_fingerprint(before) == onnx.cpu_fingerprint(after)
    assert onnx.cpu_fingerprint(before) != onnx.cpu_fingerprint(other)


# Embedding


def test_each_text_gets_its_own_vector_whatever_the_batch(embedder: Embedder) -> None:
    topics = ["whale", "piano", "volcano", "passport", "bread", "chess", "insulin", "glacier"]
    texts = [f"{topic} " * length for topic in topics for length in (1, 9, 40)]
    together = embedder.embed_passages(texts)
    alone = np.concatenate([embedder.embed_passages([text]) for text in texts])
    # A row's int8 scale is that of its whole batch, so equal only within quantization.
    assert cosines(together, alone).min() > 0.98
    nearest = np.argmax(together @ alone.T, axis=1)
    assert [texts[i].split()[0] for i in nearest] == [text.split()[0] for text in texts]


def test_nothing_to_embed_is_no_error(embedder: Embedder) -> None:
    vectors = embedder.embed_passages([])
    assert vectors.shape == (0, 384)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\0",
        "a\0b",
        "🙂👩‍👩‍👧",
        "日本語のテキスト",
        "e\u0301" * 30,
        "\ud800 lone",
        "\u202e",
        "각" * 50,
    ],
)
def test_odd_text_gives_a_finite_vector_of_length_one(embedder: Embedder, text: str) -> None:
    vectors = embedder.embed_passages([text])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_cancel_takes_effect_before_each_run(embedder: Embedder) -> None:
    class Cancelled(Exception):
        pass

    calls = 0

    def cancel() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Cancelled

    texts = [SENTENCE * 10] * 20
    with pytest.raises(Cancelled):
        embedder.embed_passages(texts, check=cancel)
    assert calls == 3


def test_no_step_between_two_checks_delays_a_cancel(embedder: Embedder) -> None:
    times: list[float] = []
    texts = [SENTENCE * (i % 15) for i in range(150)]
    embedder.embed_passages(texts, check=lambda: times.append(time.perf_counter()))
    assert len(times) > 20
    # Half the quarter second a cancel may take, as the median, so that a busy machine passes.
    assert np.median(np.diff(times)) < 2


def test_a_long_chunk_is_an_error_not_silently_cut(embedder: Embedder) -> None:
    text = SENTENCE * 40
    with pytest.raises(TextTooLong, match=rf"{embedder.count_tokens(text)} .*256") as caught:
        embedder.embed_passages(["short", text])
    assert caught.value.limit == 256
    with pytest.raises(TextTooLong):
        embedder.embed_passages([" " * 20_000 + SENTENCE * 40])


def test_a_text_of_exactly_the_limit_is_embedded(embedder: Embedder) -> None:
    text = "word " * (embedder.max_tokens - 2)
    assert embedder.count_tokens(text) == embedder.max_tokens
    assert embedder.embed_passages([text]).shape == (1, 384)
    with pytest.raises(TextTooLong):
        embedder.embed_passages([text + "word"])


@pytest.mark.timeout(60)
def test_a_query_of_a_megabyte_is_cut_and_quick(embedder: Embedder) -> None:
    query = SENTENCE * 14_000
    vectors = embedder.embed_passages([query], truncate=True)
    beginning = SENTENCE * 17
    assert embedder.count_tokens(beginning) < 256
    assert cosines(vectors, embedder.embed_passages([beginning])).min() > 0.95


def test_tokens_are_counted_beyond_the_files_own_truncation(embedder: Embedder) -> None:
    assert embedder.count_tokens("") == 2
    assert embedder.count_tokens("word " * 1000) == 1002


@given(st.lists(st.integers(1, 256), max_size=60), st.integers(256, 1024))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = list(batches(lengths, budget))
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) * max(lengths[row] for row in group) <= budget


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20)
)
def test_a_stored_vector_is_the_computed_one(values: list[float]) -> None:
    row = np.array(values, dtype=np.float32)
    literal = vector_literal(row)
    assert (literal[0], literal[-1]) == ("[", "]")
    assert np.allclose(np.array(literal[1:-1].split(","), dtype=np.float32), row, rtol=1e-5, atol=0)


# Splitting


@settings(deadline=None, max_examples=150)
@given(
    text=st.one_of(
        st.text(max_size=400),
        st.lists(
            st.sampled_from(
                ["word ", "unbelievable", "각", "日", "\n\n", "a" * 120, ".", "é", "🙂", "\0"]
            ),
            max_size=120,
        ).map("".join),
    ),
    max_tokens=st.integers(8, 40),
)
def test_splitting_loses_no_character_and_every_piece_fits(
    tokenizer: Tokenizer, text: str, max_tokens: int
) -> None:
    pieces = tokenizer.split_to_fit(text, max_tokens)
    assert "".join(pieces) == text
    assert all(pieces)
    assert all(tokenizer.count(piece) <= max_tokens for piece in pieces)


def test_text_is_split_between_words(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.split_to_fit(SENTENCE * 100, 64)
    assert all(piece.endswith(" ") for piece in pieces)
    assert sum(tokenizer.count(piece) for piece in pieces) / len(pieces) > 55


@pytest.mark.parametrize(
    "unit", ["a", "日", "각", "a.", " ", "🙂", "x" * 90 + "-", "a" * 3_000 + " b " * 400]
)
@pytest.mark.timeout(120)
def test_a_megabyte_of_anything_is_split_in_linear_time(tokenizer: Tokenizer, unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    # About 5 s at worst on an idle core; quadratic time would be minutes.
    pieces = tokenizer.split_to_fit(text, 256)
    assert "".join(pieces) == text
    assert all(tokenizer.count(piece) <= 256 for piece in pieces[:: max(1, len(pieces) // 50)])


def test_split_works_across_its_window(tokenizer: Tokenizer) -> None:
    text = (SENTENCE * 2000)[: 2 * SPLIT_WINDOW_CHARACTERS + 17]
    pieces = tokenizer.split_to_fit(text, 256)
    assert "".join(pieces) == text
    assert all(tokenizer.count(piece) <= 256 for piece in pieces)
    assert len(pieces) <= tokenizer.count(text) // 200


def test_the_empty_text_has_no_pieces(tokenizer: Tokenizer) -> None:
    assert tokenizer.split_to_fit("", 256) == []


def test_a_limit_too_small_for_any_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="at least"):
        tokenizer.split_to_fit("text", 2)

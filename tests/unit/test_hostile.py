"""Whatever a document does, it does it to itself: a reason, no harm, and the next one is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import SENTENCE, VALID
from fake_models import word_model as a_word_model
from hostile import HOSTILE, NAMES, SECRET

from ragstone.errors import DocumentError
from ragstone.extract.options import Limits
from ragstone.models.port import ModelSpec
from ragstone.reading.passages import Extraction
from ragstone.sandbox.parent import Sandbox
from ragstone.sandbox.protocol import ExtractRequest
from ragstone.stores.column import OpenContent

LIMITS = Limits(cpu_seconds=20, wall_seconds=60, max_text_characters=2_000_000)
# Reasons that a reader of the document's row can act upon. `crashed` is not one of them.
REASONS = {
    "cpu_limit", "damaged", "empty", "encrypted", "no_text", "out_of_memory", "timeout",
    "too_large", "too_many_chunks", "too_many_pages", "too_much_text", "unsupported",
}  # fmt: skip


@pytest.fixture(scope="module")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return a_word_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


def read(sandbox: Sandbox, word_model: ModelSpec, data: bytes, name: str) -> Extraction:
    with OpenContent(data).snapshot(10**9, lambda: None) as copy:
        sandbox.submit(ExtractRequest(name, word_model, LIMITS), copy.fd, lambda: None)
    return sandbox.result(lambda: None)


@pytest.mark.parametrize("name", VALID)
def test_every_format_is_read_within_the_confinement(
    sandbox: Sandbox, word_model: ModelSpec, name: str
) -> None:
    """Here, not in the tests of extraction, it shows where a library wants threads or files."""
    chunks = read(sandbox, word_model, VALID[name](), name).chunks
    assert any(SENTENCE in chunk.content for chunk in chunks)


@pytest.mark.parametrize("title", HOSTILE)
def test_a_hostile_document_harms_only_itself(
    sandbox: Sandbox, word_model: ModelSpec, title: str
) -> None:
    name, make = HOSTILE[title]
    data = make()
    try:
        found = read(sandbox, word_model, data, name)
    except DocumentError as error:
        assert error.code in REASONS, f"{error.code}: {error.message} {error.detail}"
        assert error.hint
    else:
        text = "\n".join(chunk.content for chunk in found.chunks)
        assert "root:" not in text
        assert len(text) < 3 * LIMITS.max_text_characters
    assert read(sandbox, word_model, b"The next one.", "b.txt").chunks
    assert not Path("/tmp/ragstone-was-here").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_changes_nothing(sandbox: Sandbox, word_model: ModelSpec, name: str) -> None:
    found = read(sandbox, word_model, b"Plain words in it.", name)
    assert found.chunks[0].content == "Plain words in it."


def test_no_child_and_no_descriptor_is_left_behind(word_model: ModelSpec) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Sandbox() as box:
        for title in ("deep_json", "zip_bomb", "last_cell"):
            name, make = HOSTILE[title]
            try:
                read(box, word_model, make(), name)
            except DocumentError:
                continue
        pid = box.pid
    assert set(os.listdir("/proc/self/fd")) == before
    assert not Path(f"/proc/{pid}").exists()


def test_the_servers_files_are_there_to_be_stolen() -> None:
    """Otherwise the tests above would prove nothing."""
    assert "root:" in Path(SECRET).read_text()

"""Models that need no files, and the child's code in this very process."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ragstone.errors import DocumentError
from ragstone.models import providers
from ragstone.models.port import (
    Check,
    EmbeddedQuestion,
    ModelSpec,
    ModelUnavailable,
    TextTooLong,
    no_check,
)
from ragstone.sandbox import child
from ragstone.sandbox.protocol import (
    REPLY_HEADER,
    Request,
    decode_reply,
    encode_reply,
    reply_bytes,
)

FAKE = ModelSpec("fake", "fake", location="here", dimension=16, max_tokens=64)
"""A model of the provider FakeProvider; `use_fake_provider` makes it known."""


def onnx_model(folder: Path) -> ModelSpec:
    """The model in a folder, of the dimensions of all-MiniLM-L6-v2."""
    return ModelSpec("test", "onnx", str(folder), dimension=384, max_tokens=256)


def word_model(folder: Path) -> ModelSpec:
    """A folder with a tokenizer alone, whose tokens are words: enough to split documents."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    return onnx_model(folder)


def use_fake_provider(monkeypatch: Any) -> FakeProvider:
    """Run models of the provider "fake" for the length of a test."""
    fake = FakeProvider()
    monkeypatch.setitem(providers.PROVIDERS, "fake", fake)
    for load in (providers.embedder, providers.reranker, providers.token_counter):
        load.cache_clear()
    return fake


class WordCounter:
    """Words are tokens, and two more are special."""

    def count(self, text: str) -> int:
        return len(text.split()) + 2

    def split_to_fit(self, text: str, max_tokens: int) -> list[str]:
        room = max_tokens - 2
        if room < 1:
            raise ValueError(f"max_tokens is {max_tokens}")
        words = re.findall(r"\s*\S+\s*$|\s*\S+|\s+$", text)
        return ["".join(words[i : i + room]) for i in range(0, len(words), room)]


class FakeEmbedder:
    """A vector says which words a text has."""

    def __init__(self, model: ModelSpec) -> None:
        self.dimension, self.max_tokens = model.dimension, model.max_tokens

    def embed_passages(
        self, texts: Sequence[str], *, check: Check = no_check, truncate: bool = False
    ) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            check()
            words = text.split()
            if len(words) + 2 > self.max_tokens and not truncate:
                raise TextTooLong(len(words) + 2, self.max_tokens)
            vector[0] = 1
            for word in words[: self.max_tokens - 2]:
                vector[zlib.crc32(word.lower().encode("utf-8", "replace")) % self.dimension] += 1
            vector /= np.linalg.norm(vector)
        return vectors

    def embed_question(self, text: str, *, check: Check = no_check) -> EmbeddedQuestion:
        (vector,) = self.embed_passages([text], check=check, truncate=True)
        return EmbeddedQuestion(vector, len(text.split()) + 2 > self.max_tokens)


class FakeReranker:
    """The score of a passage is how many words it has."""

    def scores(
        self, question: str, passages: Sequence[str], *, check: Check = no_check
    ) -> list[float]:
        check()
        return [float(len(passage.split())) for passage in passages]


class FakeProvider:
    """Set `is_down` to have nothing load."""

    def __init__(self) -> None:
        self.is_down = False

    def embedder(self, model: ModelSpec) -> FakeEmbedder:
        self._require_up()
        return FakeEmbedder(model)

    def reranker(self, model: ModelSpec) -> FakeReranker:
        self._require_up()
        return FakeReranker()

    def token_counter(self, model: ModelSpec) -> WordCounter:
        self._require_up()
        return WordCounter()

    def files(self, model: ModelSpec) -> Sequence[Path]:
        return []

    def token_files(self, model: ModelSpec) -> Sequence[Path]:
        return []

    def problem(self, model: ModelSpec, check: Check) -> str | None:
        return "it is down" if self.is_down else None

    def drawback(self, model: ModelSpec) -> str | None:
        return None

    def _require_up(self) -> None:
        if self.is_down:
            raise ModelUnavailable("it is down")


def in_this_process(request: Request[Any], fd: int | None) -> Any:
    """What a confined child would answer, by its own code: the work of a fakes.FakeChild.

    Not for semantic chunking and recognition of pictures, which set limits on the process.
    """
    message = json.loads(json.dumps(request.to_dict()))
    if request.kind == "embed":
        sent = encode_reply(child.embed(message))
    else:
        sent = encode_reply(child.read(message, child.take_all(None if fd is None else os.dup(fd))))
    header, body = sent[: REPLY_HEADER.size], sent[REPLY_HEADER.size :]
    assert reply_bytes(header, request.bounds) == len(body)
    reply = decode_reply(header, body, no_check)
    if "error" in reply.head:
        raise DocumentError.from_dict(reply.head["error"])
    return request.answer(reply)

"""What SQL functions call, and the models they share within a session."""

from __future__ import annotations

from pathlib import Path

import ragstone
from ragstone.db.catalog import Catalog
from ragstone.db.connection import Connection
from ragstone.db.rows import Model
from ragstone.models.onnx import TOKENIZER_FILE, Embedder, Reranker, vector_literal
from ragstone.models.tokens import Tokenizer

_embedders: dict[Path, Embedder] = {}
_rerankers: dict[Path, Reranker] = {}
_tokenizers: dict[Path, Tokenizer] = {}


def model_dir(model: Model) -> Path:
    """Folder of a model's files."""
    return ragstone.INSTALL_DIR / "models" / model.location


def tokenizer_path(model: Model) -> Path:
    """The file that says how a model's tokens are made."""
    return model_dir(model) / TOKENIZER_FILE


def embedder(model: Model) -> Embedder:
    """The model, loaded once a session; raises what loading raises."""
    path = model_dir(model)
    if path not in _embedders:
        _embedders[path] = Embedder.load(path)
    return _embedders[path]


def tokenizer(model: Model) -> Tokenizer:
    """The model's tokenizer, loaded once a session; raises what loading raises."""
    path = tokenizer_path(model)
    if path not in _tokenizers:
        _tokenizers[path] = Tokenizer.load(path)
    return _tokenizers[path]


def embed(connection: Connection, content: str, model_name: str) -> str:
    """The vector of one text in pgvector's text form; what is too long is cut, with a notice."""
    model = Catalog(connection).model(model_name)
    loaded = embedder(model)
    # A token has a character or more, and rarely more than 16.
    beginning = content[: 16 * loaded.max_tokens]
    if (
        len(beginning) > loaded.max_tokens - 2
        and loaded.count_tokens(beginning) > loaded.max_tokens
    ):
        connection.notice(
            f"the model reads only the first {loaded.max_tokens} tokens of this text",
            hint="Ask a shorter question, or embed the text in pieces.",
        )
    (vector,) = loaded.embed([content], check=connection.check, truncate=True)
    return vector_literal(vector)


def rerank(
    connection: Connection, query: str, passages: list[str], model_name: str
) -> list[float]:
    """The reranker's score of each passage."""
    model = Catalog(connection).model(model_name)
    path = model_dir(model)
    if path not in _rerankers:
        _rerankers[path] = Reranker.load(path, model.max_tokens)
    return _rerankers[path].scores(query, passages, check=connection.check)

"""What SQL functions call."""

from __future__ import annotations

from ragstone.db.catalog import Catalog
from ragstone.db.connection import Connection
from ragstone.models import providers
from ragstone.models.port import vector_literal


def embed(connection: Connection, content: str, model_name: str) -> str:
    """The vector of one text in pgvector's text form; what is too long is cut, with a notice."""
    model = Catalog(connection).model(model_name)
    embedder = providers.embedder(model)
    question = embedder.embed_question(content, check=connection.check)
    if question.is_cut:
        connection.notice(
            f"the model reads only the first {embedder.max_tokens} tokens of this text",
            hint="Ask a shorter question, or embed the text in pieces.",
        )
    return vector_literal(question.vector)


def rerank(connection: Connection, query: str, passages: list[str], model_name: str) -> list[float]:
    """The reranker's score of each passage."""
    model = Catalog(connection).model(model_name)
    return providers.reranker(model).scores(query, passages, check=connection.check)

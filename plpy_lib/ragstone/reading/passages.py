"""A document as passages."""

from __future__ import annotations

from dataclasses import dataclass

from ragstone.reading.chunk import Chunk


@dataclass(frozen=True)
class Extraction:
    """A document as passages. `partial` says what is missing, None if nothing is."""

    mime_type: str
    title: str | None
    author: str | None
    language: str | None
    created: str | None
    metadata: dict[str, str]
    pages: int | None
    partial: str | None
    chunks: tuple[Chunk, ...]

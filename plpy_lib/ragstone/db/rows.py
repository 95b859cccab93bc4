"""What the database gives and takes, a class for each kind of row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# What only a worker needs is imported where it is used: the first search of a session waits.
if TYPE_CHECKING:
    from ragstone.reading.chunk import ChunkSpec, Passage


@dataclass(frozen=True, slots=True)
class Model:
    """A row of rag.models."""

    name: str
    dimension: int
    max_tokens: int
    passage_prefix: str
    location: str


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a worker needs of a row of rag.pipelines."""

    pipeline_id: int
    model: Model
    chunk_spec: ChunkSpec
    ocr: str = "off"


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job with its document, as rag._claim_jobs() returns it."""

    job_id: int
    source_id: int
    document_id: int
    source_key: str
    generation: int
    pipeline_id: int
    operation: str
    attempts: int
    file_path: str | None
    title: str | None
    language: str | None
    tenant_id: int | None
    has_content: bool


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """What is stored of a document besides its chunks; sha256 is in hexadecimal, size in bytes."""

    sha256: str
    size: int
    mime_type: str
    extracted: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk on its way into rag.document_chunks.

    ``indexed_text`` is what both legs index, None where that is the content alone.
    ``embedding`` is the vector's text form, or None to keep the vector that the document's present
    chunk of the same ``hash`` (hexadecimal) has.
    """

    chunk_index: int
    content: str
    char_count: int
    token_count: int
    page_number: int | None
    section: str | None
    hash: str
    indexed_text: str | None
    embedding: str | None


@dataclass(frozen=True, slots=True)
class Cut:
    """A document as another pipeline has cut it."""

    document: StoredDocument
    title: str | None
    passages: Sequence[Passage]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it was when it was read; sha256 is in hexadecimal."""

    source_id: int
    document_id: int
    source_key: str
    file_path: str
    sha256: str


@dataclass(slots=True)
class Lane:
    """Jobs of one priority and tenant that were never tried; those before `job_id` were seen."""

    priority: int
    tenant_id: int
    job_id: int

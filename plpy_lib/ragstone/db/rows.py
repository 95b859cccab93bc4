"""What the database gives and takes, a class for each kind of row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# What only a worker needs is imported where it is used: the first search of a session waits.
if TYPE_CHECKING:
    from ragstone.extract.model import Block
    from ragstone.models.port import ModelSpec
    from ragstone.reading.chunk import ChunkSpec


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a worker needs of a row of rag.pipelines."""

    pipeline_id: int
    model: ModelSpec
    chunk_spec: ChunkSpec
    ocr: str = "off"


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job with its document, as Queue.claim() returns it."""

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
class Cut:
    """A document as another pipeline has cut it, a block for each chunk."""

    document: StoredDocument
    title: str | None
    blocks: Sequence[Block]


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

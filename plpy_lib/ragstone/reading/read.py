"""Reading one document: its limits, and the properties kept beside the passages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ragstone.extract.options import Limits
from ragstone.reading.chunk import Chunk
from ragstone.reading.passages import Extraction


def limits(settings: Mapping[str, str | None]) -> Limits:
    """The limits for a document, from the settings."""

    def integer(name: str) -> int:
        return int(settings[name] or 0)

    return Limits(
        max_file_bytes=integer("max_file_bytes"),
        max_inflated_bytes=integer("max_inflated_bytes"),
        max_pages=integer("max_pages"),
        max_text_characters=integer("max_text_characters"),
        max_chunks=integer("max_chunks"),
        memory_bytes=integer("extraction_memory_bytes"),
        cpu_seconds=integer("extraction_cpu_s"),
        wall_seconds=integer("extraction_wall_s"),
        ocr_page_seconds=integer("ocr_page_s"),
        ocr_seconds=integer("ocr_document_s"),
        allowed_types=(settings["allowed_types"] or "*").split(","),
    )


def chunk_hash(chunk: Chunk) -> str:
    """sha256 of the stored and the embedded text. Chunks with equal hashes have one vector."""
    return hashlib.sha256(f"{chunk.content}\0{chunk.embed_text}".encode()).hexdigest()


def properties(extraction: Extraction) -> dict[str, object]:
    """The properties that the file states, for rag.documents.extracted."""
    known = {
        "title": extraction.title,
        "author": extraction.author,
        "language": extraction.language,
        "created": extraction.created,
        "pages": extraction.pages,
        "partial": extraction.partial,
    }
    return extraction.metadata | {key: value for key, value in known.items() if value is not None}

"""What the backend and its sandboxed child say to each other: length-prefixed JSON, plus one fd.

Everything that comes from the child is taken for hostile and checked for form.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .chunk import Chunk, ChunkSpec
from .extract.model import Limits, Ocr

HEADER = struct.Struct("!I")


@dataclass(frozen=True)
class ExtractRequest:
    """What the child shall do with the file descriptor that comes with it.

    `title` and `language` are the source table's and go before what the file says of itself.
    `ocr` is None where pictures are left alone.
    """

    file_name: str
    tokenizer_path: Path
    limits: Limits = field(default_factory=Limits)
    chunk_spec: ChunkSpec = field(default_factory=ChunkSpec)
    title: str | None = None
    language: str | None = None
    ocr: Ocr | None = None


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


def encode(message: dict[str, Any]) -> bytes:
    """One message as bytes, its length first."""
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return HEADER.pack(len(body)) + body


def request_to_dict(request: ExtractRequest) -> dict[str, Any]:
    return {
        "file_name": request.file_name[-1_000:],
        "tokenizer_path": str(request.tokenizer_path),
        "limits": asdict(request.limits),
        "chunk_spec": asdict(request.chunk_spec),
        "title": request.title[:1_000] if request.title else None,
        "language": request.language,
        "ocr": asdict(request.ocr) if request.ocr else None,
    }


def request_from_dict(data: dict[str, Any]) -> ExtractRequest:
    return ExtractRequest(
        file_name=data["file_name"],
        tokenizer_path=Path(data["tokenizer_path"]),
        limits=Limits(**data["limits"]),
        chunk_spec=ChunkSpec(**data["chunk_spec"]),
        title=data["title"],
        language=data["language"],
        ocr=Ocr(**data["ocr"]) if data["ocr"] else None,
    )


def extraction_to_dict(extraction: Extraction) -> dict[str, Any]:
    """Chunks go as rows; the text to embed only where it differs from the content."""
    data = {name: getattr(extraction, name) for name in extraction.__dataclass_fields__}
    data["chunks"] = [
        [
            chunk.content,
            None if chunk.embed_text == chunk.content else chunk.embed_text,
            chunk.token_count,
            chunk.page_number,
            chunk.section,
        ]
        for chunk in extraction.chunks
    ]
    return data


def extraction_from_dict(data: dict[str, Any], request: ExtractRequest) -> Extraction:
    """Raises ValueError where the child did not keep to the form or to the limits."""
    rows = data.get("chunks")
    metadata = data.get("metadata")
    if not isinstance(rows, list) or not isinstance(metadata, dict):
        raise ValueError("chunks or metadata are missing")
    if len(rows) > request.limits.max_chunks:
        raise ValueError("more chunks than allowed")
    mime_type = _text(data.get("mime_type"))
    if mime_type is None:
        raise ValueError("the type is missing")
    return Extraction(
        mime_type=mime_type,
        title=_text(data.get("title")),
        author=_text(data.get("author")),
        language=_text(data.get("language")),
        created=_text(data.get("created")),
        metadata={str(_text(key)): str(_text(value)) for key, value in metadata.items()},
        pages=_number(data.get("pages")),
        partial=_text(data.get("partial")),
        chunks=tuple(_chunk(row) for row in rows),
    )


def _chunk(row: Any) -> Chunk:
    if not isinstance(row, list) or len(row) != 5:
        raise ValueError("a chunk is not of the form agreed")
    content, embed_text = _text(row[0]), _text(row[1])
    tokens = _number(row[2])
    if not content or tokens is None:
        raise ValueError("a chunk is empty")
    return Chunk(
        content=content,
        embed_text=content if embed_text is None else embed_text,
        char_count=len(content),
        token_count=tokens,
        page_number=_number(row[3]),
        section=_text(row[4]),
    )


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("a text was expected")
    if "\x00" in value:
        raise ValueError("a text holds a NUL")
    value.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    return value


def _number(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("a count was expected")
    return value

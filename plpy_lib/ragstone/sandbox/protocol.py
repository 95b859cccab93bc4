"""What the backend and its sandboxed children say to each other: length-prefixed JSON, plus one fd.

There are two kinds of request: read a document, and embed texts.

Everything that comes from a child is taken for hostile and checked for form.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from ragstone.extract.options import Limits, Ocr
from ragstone.reading.chunk import Chunk, ChunkSpec
from ragstone.reading.passages import Extraction

HEADER = struct.Struct("!I")

# What comparing the sentences of the longest document takes; the child's clock goes batch by batch.
SEMANTIC_SECONDS = 900.0

# What the CPU is decides whether a prepacked model fits, and which arithmetic is used.
CPU = (Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu"))

_VECTOR = re.compile(r"\[[-+.0-9e,]+\]")

Answer_co = TypeVar("Answer_co", covariant=True)


class Request(Protocol[Answer_co]):
    """One piece of work for a child, and what it may cost."""

    kind: ClassVar[str]
    crash: ClassVar[str]
    """What is said of a document whose work ended the child."""

    @property
    def memory_bytes(self) -> int: ...
    @property
    def cpu_seconds(self) -> int: ...
    @property
    def wall_seconds(self) -> float: ...
    @property
    def most_seconds(self) -> float:
        """How long to wait for the answer; a child may be given its time in parts."""

    @property
    def readable(self) -> Sequence[Path]:
        """Files and folders that the child must read, beside the libraries."""

    @property
    def max_reply_bytes(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...
    def answer(self, reply: dict[str, Any]) -> Answer_co:
        """What the child's reply says; raises ValueError, KeyError or TypeError on nonsense."""


@dataclass(frozen=True)
class ExtractRequest:
    """What the child shall do with the file descriptor that comes with it.

    `title` and `language` are the source table's and go before what the file says of itself.
    `ocr` is None where pictures are left alone.
    """

    kind: ClassVar[str] = "extract"
    crash: ClassVar[str] = "the document made its parser crash"

    file_name: str
    tokenizer_path: Path
    limits: Limits = field(default_factory=Limits)
    chunk_spec: ChunkSpec = field(default_factory=ChunkSpec)
    title: str | None = None
    language: str | None = None
    ocr: Ocr | None = None

    @property
    def memory_bytes(self) -> int:
        return self.limits.memory_bytes

    @property
    def cpu_seconds(self) -> int:
        return self.limits.cpu_seconds

    @property
    def wall_seconds(self) -> float:
        return self.limits.wall_seconds

    @property
    def most_seconds(self) -> float:
        seconds = self.wall_seconds
        if self.ocr:  # the time of all pages, and the last of them begins just before it ends
            seconds += self.limits.ocr_seconds + self.limits.ocr_page_seconds + self.wall_seconds
        if self.is_semantic:
            seconds += SEMANTIC_SECONDS
        return seconds

    @property
    def readable(self) -> Sequence[Path]:
        needed = [self.tokenizer_path.parent, *CPU] if self.is_semantic else [self.tokenizer_path]
        if self.ocr and self.ocr.data_folder:
            needed.append(Path(self.ocr.data_folder))
        return needed

    @property
    def is_semantic(self) -> bool:
        """Whether sentences are compared, for which the child needs the model."""
        return self.chunk_spec.strategy == "semantic"

    @property
    def max_reply_bytes(self) -> int:
        """Text, its overlap and its embedding text, at up to 4 bytes a character, and the rows."""
        return 12 * self.limits.max_text_characters + 200 * self.limits.max_chunks + 1_000_000

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "file_name": self.file_name[-1_000:],
            "tokenizer_path": str(self.tokenizer_path),
            "limits": asdict(self.limits),
            "chunk_spec": asdict(self.chunk_spec),
            "title": self.title[:1_000] if self.title else None,
            "language": self.language,
            "ocr": asdict(self.ocr) if self.ocr else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ExtractRequest:
        return cls(
            file_name=data["file_name"],
            tokenizer_path=Path(data["tokenizer_path"]),
            limits=Limits(**data["limits"]),
            chunk_spec=ChunkSpec(**data["chunk_spec"]),
            title=data["title"],
            language=data["language"],
            ocr=Ocr(**data["ocr"]) if data["ocr"] else None,
        )

    def answer(self, reply: dict[str, Any]) -> Extraction:
        return extraction_from_dict(reply["document"], self)


@dataclass(frozen=True)
class EmbedRequest:
    """Texts of which the child shall return the vectors, in pgvector's text form and their order.

    The memory is room for the model beside the libraries, a guard and not a measure: address space
    and not what is used, and a model's file is mapped.
    """

    kind: ClassVar[str] = "embed"
    crash: ClassVar[str] = "the document's text made the model crash"

    model_dir: Path
    texts: Sequence[str]
    wall_seconds: float
    memory_bytes: int = 4 << 30

    @property
    def cpu_seconds(self) -> int:
        return int(self.wall_seconds) + 1

    @property
    def most_seconds(self) -> float:
        return self.wall_seconds

    @property
    def readable(self) -> Sequence[Path]:
        return [self.model_dir, *CPU]

    @property
    def max_reply_bytes(self) -> int:
        """A number takes at most 14 characters; pgvector has up to 16,000 of them in a vector."""
        return 14 * 16_000 * len(self.texts) + 1_000

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "model_dir": str(self.model_dir),
            "texts": list(self.texts),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EmbedRequest:
        return cls(Path(data["model_dir"]), data["texts"], data["wall_seconds"])

    def answer(self, reply: dict[str, Any]) -> list[str]:
        vectors = reply["vectors"]
        if len(vectors) != len(self.texts) or not all(map(_VECTOR.fullmatch, vectors)):
            raise ValueError("the vectors are not of the form agreed")
        return list(vectors)


def encode(message: dict[str, Any]) -> bytes:
    """One message as bytes, its length first."""
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return HEADER.pack(len(body)) + body


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

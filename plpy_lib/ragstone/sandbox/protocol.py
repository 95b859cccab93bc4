"""What the backend and its sandboxed children say to each other.

There are two kinds of request, as length-prefixed JSON: read a document, whose descriptor comes
with it, and embed texts. The reply is a little JSON, and columns of numbers and texts that are not:
parsing the JSON of a hostile child takes 24 times its length of memory, and no cancel is seen then.

Everything that comes from a child is taken for hostile and checked for form.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from ragstone.extract.options import Limits, Ocr
from ragstone.models import providers
from ragstone.models.port import ModelSpec
from ragstone.reading.chunk import Chunk, ChunkSpec
from ragstone.reading.passages import Extraction

HEADER = struct.Struct("!I")
# Of a reply: bytes of its JSON, how many numbers, how many texts, bytes of all texts.
REPLY_HEADER = struct.Struct("!IIII")
_MAX_HEAD_BYTES = 1_000_000
_NONE = 0xFFFFFFFF  # in place of a number, or of a text's length
_TEXTS_A_CHECK = 1_000

# What comparing the sentences of the longest document takes; the child's clock goes batch by batch.
SEMANTIC_SECONDS = 900.0

_VECTOR = re.compile(r"\[[-+.0-9e,]+\]")

Answer_co = TypeVar("Answer_co", covariant=True)


@dataclass(frozen=True)
class Bounds:
    """The most that a reply may hold."""

    numbers: int = 0
    texts: int = 0
    text_bytes: int = 0


@dataclass(frozen=True)
class Reply:
    """What a child answers; who asked knows what the numbers and texts are."""

    head: dict[str, Any]
    numbers: Sequence[int | None] = ()
    texts: Sequence[str | None] = ()


class ReplyTooLarge(Exception):
    """More text than may be handed on; the text says how much."""


class Request(Protocol[Answer_co]):
    """One piece of work for a child, and what it may cost."""

    kind: ClassVar[str]
    crash: ClassVar[str]
    """What is said of a document whose work ended the child."""

    @property
    def owner(self) -> int | None:
        """Whose work it is: a child that served one owner serves no other."""

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
    def bounds(self) -> Bounds: ...
    def to_dict(self) -> dict[str, Any]: ...
    def answer(self, reply: Reply) -> Answer_co:
        """What the child's reply says; raises ValueError, KeyError or TypeError on nonsense."""


@dataclass(frozen=True)
class ExtractRequest:
    """What the child shall do with the file descriptor that comes with it.

    `model` is the one whose tokens are counted. `title` and `language` are the source table's and
    go before what the file says of itself. `ocr` is None where pictures are left alone. `owner` is
    the tenant, None where there is none.
    """

    kind: ClassVar[str] = "extract"
    crash: ClassVar[str] = "the document made its parser crash"

    file_name: str
    model: ModelSpec
    limits: Limits = field(default_factory=Limits)
    chunk_spec: ChunkSpec = field(default_factory=ChunkSpec)
    title: str | None = None
    language: str | None = None
    ocr: Ocr | None = None
    owner: int | None = None

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
        provider = providers.provider(self.model)
        needed = [*(provider.files if self.is_semantic else provider.token_files)(self.model)]
        if self.ocr and self.ocr.data_folder:
            needed.append(Path(self.ocr.data_folder))
        return needed

    @property
    def is_semantic(self) -> bool:
        """Whether sentences are compared, for which the child needs the model."""
        return self.chunk_spec.strategy == "semantic"

    @property
    def bounds(self) -> Bounds:
        """Text, its overlap and its embedding text, at up to 4 bytes a character, and sections."""
        chunks = self.limits.max_chunks
        text_bytes = 12 * self.limits.max_text_characters + 200 * chunks + 1_000_000
        return Bounds(_NUMBERS * chunks, _TEXTS * chunks, text_bytes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "file_name": self.file_name[-1_000:],
            "model": self.model.to_dict(),
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
            model=ModelSpec.from_dict(data["model"]),
            limits=Limits(**data["limits"]),
            chunk_spec=ChunkSpec(**data["chunk_spec"]),
            title=data["title"],
            language=data["language"],
            ocr=Ocr(**data["ocr"]) if data["ocr"] else None,
        )

    def answer(self, reply: Reply) -> Extraction:
        return extraction_from_reply(reply)


@dataclass(frozen=True)
class EmbedRequest:
    """Texts of which the child shall return the vectors, in pgvector's text form and their order.

    The memory is room for the model beside the libraries, a guard and not a measure: address space
    and not what is used, and a model's file is mapped. It has no owner: texts of several tenants go
    together, as the model's code sees them as numbers of tokens only.
    """

    kind: ClassVar[str] = "embed"
    crash: ClassVar[str] = "the document's text made the model crash"
    owner: ClassVar[int | None] = None

    model: ModelSpec
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
        return providers.provider(self.model).files(self.model)

    @property
    def bounds(self) -> Bounds:
        """A number takes at most 14 characters; pgvector has up to 16,000 of them in a vector."""
        return Bounds(texts=len(self.texts), text_bytes=14 * 16_000 * len(self.texts) + 1_000)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "model": self.model.to_dict(),
            "texts": list(self.texts),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EmbedRequest:
        return cls(ModelSpec.from_dict(data["model"]), data["texts"], data["wall_seconds"])

    def answer(self, reply: Reply) -> list[str]:
        vectors = [text for text in reply.texts if text and _VECTOR.fullmatch(text)]
        if not len(vectors) == len(reply.texts) == len(self.texts):
            raise ValueError("the vectors are not of the form agreed")
        return vectors


# Of a chunk there are so many numbers (tokens, page) and texts (content, text to embed, section).
_NUMBERS, _TEXTS = 2, 3


def encode(message: dict[str, Any]) -> bytes:
    """One message as bytes, its length first."""
    body = _json(message)
    return HEADER.pack(len(body)) + body


def encode_reply(reply: Reply) -> bytes:
    """A reply as bytes, its header first."""
    head = _json(reply.head)
    texts = [None if text is None else text.encode("utf-8", "replace") for text in reply.texts]
    lengths = [_NONE if text is None else len(text) for text in texts]
    numbers = [_NONE if number is None else number for number in reply.numbers]
    body = b"".join(text for text in texts if text is not None)
    table = struct.pack(f"!{len(numbers) + len(lengths)}I", *numbers, *lengths)
    sizes = REPLY_HEADER.pack(len(head), len(numbers), len(texts), len(body))
    return b"".join((sizes, head, table, body))


def reply_bytes(header: bytes, bounds: Bounds) -> int:
    """How many bytes come after this header; raises ValueError, ReplyTooLarge beyond the bounds."""
    head, numbers, texts, text_bytes = REPLY_HEADER.unpack(header)
    if head > _MAX_HEAD_BYTES or numbers > bounds.numbers or texts > bounds.texts:
        raise ValueError("the answer is larger than agreed")
    if text_bytes > bounds.text_bytes:
        raise ReplyTooLarge(
            f"The answer has {text_bytes:,} bytes; the limit is {bounds.text_bytes:,}."
        )
    return int(head + 4 * (numbers + texts) + text_bytes)


def decode_reply(header: bytes, body: bytes | bytearray, check: Callable[[], None]) -> Reply:
    """The reply of this header and body; raises ValueError where it is not of the form agreed.

    `check` is called every few milliseconds.
    """
    head, numbers, texts, text_bytes = REPLY_HEADER.unpack(header)
    message = json.loads(body[:head])
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    check()
    table = struct.unpack_from(f"!{numbers + texts}I", body, head)
    lengths = table[numbers:]
    if sum(length for length in lengths if length != _NONE) != text_bytes:
        raise ValueError("the texts are not as long as was said")
    found: list[str | None] = []
    start = len(body) - text_bytes
    for length in lengths:
        if len(found) % _TEXTS_A_CHECK == 0:
            check()
        if length == _NONE:
            found.append(None)
            continue
        found.append(str(body[start : start + length], "utf-8"))
        start += length
    columns = [None if number == _NONE else number for number in table[:numbers]]
    return Reply(message, columns, found)


def _json(message: dict[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def extraction_to_reply(extraction: Extraction) -> Reply:
    """The text to embed goes only where it differs from the content."""
    names = [name for name in extraction.__dataclass_fields__ if name != "chunks"]
    numbers: list[int | None] = []
    texts: list[str | None] = []
    for chunk in extraction.chunks:
        numbers += (chunk.token_count, chunk.page_number)
        embed_text = None if chunk.embed_text == chunk.content else chunk.embed_text
        texts += (chunk.content, embed_text, chunk.section)
    return Reply({"document": {name: getattr(extraction, name) for name in names}}, numbers, texts)


def extraction_from_reply(reply: Reply) -> Extraction:
    """Raises ValueError where the child did not keep to the form."""
    data = reply.head["document"]
    metadata, mime_type = data.get("metadata"), _text(data.get("mime_type"))
    if not isinstance(metadata, dict) or mime_type is None:
        raise ValueError("metadata or type are missing")
    count = len(reply.texts) // _TEXTS
    if len(reply.texts) != _TEXTS * count or len(reply.numbers) != _NUMBERS * count:
        raise ValueError("the chunks are not of the form agreed")
    chunks = (
        _chunk(
            reply.numbers[_NUMBERS * place : _NUMBERS * (place + 1)],
            reply.texts[_TEXTS * place : _TEXTS * (place + 1)],
        )
        for place in range(count)
    )
    return Extraction(
        mime_type=mime_type,
        title=_text(data.get("title")),
        author=_text(data.get("author")),
        language=_text(data.get("language")),
        created=_text(data.get("created")),
        metadata={str(_text(key)): str(_text(value)) for key, value in metadata.items()},
        pages=_number(data.get("pages")),
        partial=_text(data.get("partial")),
        chunks=tuple(chunks),
    )


def _chunk(numbers: Sequence[int | None], texts: Sequence[str | None]) -> Chunk:
    tokens, page = map(_number, numbers)
    content, embed_text, section = map(_text, texts)
    if not content or tokens is None:
        raise ValueError("a chunk is empty")
    return Chunk(
        content=content,
        embed_text=content if embed_text is None else embed_text,
        char_count=len(content),
        token_count=tokens,
        page_number=page,
        section=section,
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

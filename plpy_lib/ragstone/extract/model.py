"""The input and output of every extractor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..errors import DocumentError
from .cleaning import clean_text
from .options import Limits

if TYPE_CHECKING:
    from .ocr import Recogniser

Kind = Literal["paragraph", "heading", "table", "code", "list"]

# A longer heading is a paragraph in large type. So paths of headings stay readable.
MAX_HEADING = 200
_MAX_SECTION = 400
# Names of columns longer than this are not repeated.
MAX_TABLE_HEADER = 300
_NUMERIC = re.compile(r"[\W\d_]*")


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, heading, table, listing or list item, in reading order.

    `page` counts from 1. `section` is the path of headings, e.g. `1 Intro > 1.2 Scope`. `level`
    is the depth of a heading, else 0. `continues` is true where the text carries on the block
    before it, in mid-sentence over a page break. `header` is the first row of the table that a
    row belongs to, where that row names the columns.
    """

    text: str
    page: int | None = None
    section: str | None = None
    kind: Kind = "paragraph"
    level: int = 0
    continues: bool = False
    header: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A document's bytes with its name and its recognised type.

    `ocr` recognises its pictures, None where OCR is off.
    """

    name: str
    data: bytes
    mime_type: str
    ocr: Recogniser | None = None


@dataclass(frozen=True)
class Extracted:
    """A document as text. `partial` says what is missing, None if nothing is."""

    blocks: tuple[Block, ...]
    mime_type: str
    title: str | None = None
    author: str | None = None
    language: str | None = None
    created: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    pages: int | None = None
    partial: str | None = None


class Collector:
    """Takes the pieces an extractor finds, cleans them and keeps track of section and size."""

    def __init__(self, limits: Limits) -> None:
        self._left = limits.max_text_characters
        self._limit = limits.max_text_characters
        self._path: list[tuple[int, str]] = []
        self.section: str | None = None
        self.blocks: list[Block] = []

    def add(
        self,
        text: str,
        *,
        page: int | None = None,
        kind: Kind = "paragraph",
        level: int = 0,
        continues: bool = False,
        header: str | None = None,
    ) -> None:
        """Append a block unless it is empty. Raises DocumentError too_much_text."""
        self._left -= len(text)
        if self._left < 0:
            raise DocumentError(
                "too_much_text",
                "the document holds more text than the limit max_text_characters",
                detail=f"The limit is {self._limit:,} characters.",
                hint="Split the document, or raise the limit.",
            )
        text = clean_text(text, keep_indent=kind == "code")
        if text:
            self.blocks.append(Block(text, page, self.section, kind, level, continues, header))

    def table(self, rows: Iterable[Sequence[str]], *, page: int | None = None) -> None:
        """Append a table row by row as `a | b`, with the names that its first row may have."""
        header: str | None = None
        for number, cells in enumerate(rows):
            text = row_text(cells)
            if number == 0 and names_columns(cells):
                header = text[:MAX_TABLE_HEADER]
                self.add(text, page=page, kind="table")
            else:
                self.add(text, page=page, kind="table", header=header)

    def heading(self, text: str, level: int, *, page: int | None = None) -> None:
        """Append a heading and open its section. A heading that is too long is a paragraph."""
        title = " ".join(clean_text(text).split())
        if not title:
            return
        if len(title) > MAX_HEADING:
            self.add(text, page=page)
            return
        self.enter(title, level)
        self.add(title, page=page, kind="heading", level=level)

    def leave(self) -> None:
        """Close all sections."""
        self._path = []
        self.section = None

    def enter(self, title: str, level: int) -> None:
        """Open a section whose heading is not part of the text, or is added by the caller."""
        self._path = [item for item in self._path if item[0] < level]
        self._path.append((level, title[:MAX_HEADING]))
        path = " > ".join(item[1] for item in self._path)
        self.section = path if len(path) <= _MAX_SECTION else path[-_MAX_SECTION:]


def row_text(cells: Iterable[str]) -> str:
    """A row of a table as `a | b`, without empty cells at its end."""
    texts = [" ".join(cell.split()) for cell in cells]
    while texts and not texts[-1]:
        texts.pop()
    return " | ".join(texts) if any(texts) else ""


def names_columns(cells: Sequence[str]) -> bool:
    """Whether the first row of a table has names: several, different, and not numbers."""
    names = [cell.strip() for cell in cells if cell.strip()]
    return (
        len(names) > 1
        and len(names) == len(set(names))
        and not any(_NUMERIC.fullmatch(name) or len(name) > 80 for name in names)
    )

"""Rich text (RTF)."""

from __future__ import annotations

import re

from ..errors import DocumentError
from .model import Collector, Extracted, Source
from .options import Limits

_CODE_PAGE = re.compile(rb"\\ansicpg(\d{3,5})")
_INFO = re.compile(rb"\{\\info(.{0,8000})", re.DOTALL)
_FIELD = r"\{\\%s ([^{}]{0,500})\}"
_CREATED = re.compile(rb"\{\\creatim\\yr(\d{4})\\mo(\d{1,2})\\dy(\d{1,2})")
_PAGE_BREAK = re.compile(r"\\page(?![a-z])[ ]?")
_BINARY = re.compile(rb"\\bin(\d{1,9})[ ]?")
_PARAGRAPH = re.compile(r"\n+")
_PAGE_MARK = "\x0c"


def extract(source: Source, limits: Limits) -> Extracted:
    """Paragraphs, rows of tables and pages where the file breaks them.

    Raises DocumentError damaged.
    """
    data = _without_binary(source.data)
    page = _code_page(data)
    # striprtf takes text. Latin 1 keeps each byte until the code page is applied.
    text = plain_text(data.decode("latin-1"), page)
    collector = Collector(limits)
    pages = text.split(_PAGE_MARK)
    for number, part in enumerate(pages, start=1):
        for line in _PARAGRAPH.split(part):
            where = number if len(pages) > 1 else None
            if "|" in line and line.rstrip().endswith("|"):
                cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
                collector.add(" | ".join(cells), page=where, kind="table")
            else:
                collector.add(line, page=where)
    created = _CREATED.search(data[:20_000])
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=_info(data, "title", page),
        author=_info(data, "author", page),
        created="{}-{:0>2}-{:0>2}".format(*(part.decode() for part in created.groups()))
        if created
        else None,
        pages=len(pages) if len(pages) > 1 else None,
    )


def plain_text(rtf: str, code_page: str) -> str:
    """The text of RTF, with form feeds between pages. Raises DocumentError damaged."""
    from striprtf.striprtf import rtf_to_text

    marked = _PAGE_BREAK.sub(r"\\par \\'0c\\par ", rtf)
    try:
        return str(rtf_to_text(marked, encoding=code_page, errors="replace"))
    except (ValueError, IndexError, KeyError, LookupError) as error:
        raise DocumentError(
            "damaged", "the document is damaged", detail=f"It is not readable RTF: {error}"
        ) from None


def _without_binary(data: bytes) -> bytes:
    """Remove pictures in raw bytes, because their braces are not part of the RTF."""
    parts: list[bytes] = []
    place = 0
    while match := _BINARY.search(data, place):
        parts.append(data[place : match.start()])
        place = match.end() + int(match[1])
    return b"".join([*parts, data[place:]])


def _code_page(data: bytes) -> str:
    match = _CODE_PAGE.search(data[:2_000])
    name = f"cp{match[1].decode()}" if match else "cp1252"
    try:
        "".encode(name)
    except LookupError:
        return "cp1252"
    return name


def _info(data: bytes, field: str, page: str) -> str | None:
    head = _INFO.search(data[:50_000])
    match = re.search((_FIELD % field).encode(), head[1]) if head else None
    if not match:
        return None
    return plain_text("{\\rtf1 " + match[1].decode("latin-1") + "}", page).strip() or None

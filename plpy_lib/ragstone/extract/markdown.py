"""Markdown, split by its structure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .encoding import decode
from .model import MAX_TABLE_HEADER, Collector, Extracted, Source, row_text
from .options import Limits

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FIELD = re.compile(r"^(title|author|lang|language|date)[ \t]*:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_TAG = re.compile(r"<!--.{0,500}?-->|<[^<>]{0,500}>", re.DOTALL)
# The time of the parser grows with the square of a paragraph of brackets or marks.
_MAX_PARAGRAPH = 50_000
_parser: MarkdownIt | None = None


def extract(source: Source, limits: Limits) -> Extracted:
    """Headings become sections. Listings, tables and list items keep their kind."""
    text = decode(source.data)[0].replace("\r\n", "\n").replace("\r", "\n")
    fields: dict[str, str] = {}
    if match := _FRONT_MATTER.match(text):
        fields = {name: value.strip("\"'") for name, value in _FIELD.findall(match[1])}
        text = text[match.end() :]
    collector = Collector(limits)
    longest = max(map(len, text.split("\n\n")))
    partial = None
    if longest > _MAX_PARAGRAPH:
        partial = f"read as plain text, since a paragraph has {longest:,} characters"
        for paragraph in text.split("\n\n"):
            collector.add(paragraph)
    else:
        add(text, collector)
    first = next((block for block in collector.blocks if block.kind == "heading"), None)
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=fields.get("title") or (first.text if first and first.level == 1 else None),
        author=fields.get("author"),
        language=fields.get("lang") or fields.get("language"),
        created=fields.get("date"),
        partial=partial,
    )


def add(text: str, collector: Collector) -> None:
    """Append the blocks of a text in Markdown."""
    _walk(_markdown().parse(text), collector)


def _markdown() -> MarkdownIt:
    global _parser
    if _parser is None:
        from markdown_it import MarkdownIt

        _parser = MarkdownIt("commonmark", {"maxNesting": 50}).enable("table")
    return _parser


def _walk(tokens: Sequence[Token], collector: Collector) -> None:
    cells: list[str] | None = None
    header: str | None = None
    heading = 0
    bullets: list[int | None] = []  # one for each open list: the next number, None if a bullet
    marker = ""
    for token in tokens:
        match token.type:
            case "heading_open":
                heading = int(token.tag[1])
            case "heading_close":
                heading = 0
            case "bullet_list_open":
                bullets.append(None)
            case "ordered_list_open":
                bullets.append(int(token.attrs.get("start", 1)))
            case "bullet_list_close" | "ordered_list_close":
                bullets.pop()
            case "list_item_open":
                number = bullets[-1] if bullets else None
                marker = "- " if number is None else f"{number}. "
                if number is not None:
                    bullets[-1] = number + 1
            case "tr_open":
                cells = []
            case "table_open":
                header = None
            case "tr_close":
                row = row_text(cells or ())
                collector.add(row, kind="table", header=header)
                header = header or row[:MAX_TABLE_HEADER]
                cells = None
            case "fence" | "code_block":
                collector.add(token.content, kind="code")
            case "html_block":
                collector.add(_TAG.sub(" ", token.content))
            case "inline":
                text = _inline(token)
                if heading:
                    collector.heading(text, heading)
                elif cells is not None:
                    cells.append(" ".join(text.split()))
                elif bullets:
                    collector.add(marker + text, kind="list")
                    marker = ""
                else:
                    collector.add(text)


def _inline(token: Token) -> str:
    parts = []
    for child in token.children or ():
        match child.type:
            case "text" | "code_inline":
                parts.append(child.content)
            case "softbreak":
                parts.append(" ")
            case "hardbreak":
                parts.append("\n")
            case "image":
                parts.append(child.content)
    return "".join(parts)

"""Web pages."""

from __future__ import annotations

import codecs
import re
from typing import Any

from lxml import etree

from .encoding import decode
from .model import MAX_TABLE_HEADER, Collector, Extracted, Kind, Source, names_columns
from .options import Limits

_SKIPPED = frozenset(
    [
        "script",
        "style",
        "noscript",
        "template",
        "svg",
        "math",
        "head",
        "nav",
        "iframe",
        "object",
        "embed",
        "canvas",
        "audio",
        "video",
        "map",
        "select",
        "option",
        "button",
        "input",
        "textarea",
        "dialog",
    ]
)
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "caption",
        "center",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "html",
        "legend",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
    ]
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_CHARSET = re.compile(rb"<meta[^>]{0,300}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)
_SPACES = re.compile(r"[ \t\r\n\f]+")


def extract(source: Source, limits: Limits) -> Extracted:
    """The visible text of the page: no scripts, no navigation, no hidden parts.

    Raises DocumentError damaged where there is no page in it.
    """
    root, partial = parse_html(decode_page(source.data))
    collector = Collector(limits)
    add(root, collector)
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=_text_of(root, ".//title"),
        author=_meta(root, "author"),
        language=_language(root),
        created=_meta(root, "date") or _meta(root, "article:published_time"),
        metadata=_described(root),
        partial=partial,
    )


def add(root: Any | None, collector: Collector) -> None:
    """Append the blocks of a page."""
    if root is not None:
        _Walker(collector, has_main=root.find(".//main") is not None).walk(root)


def parse_html(text: str) -> tuple[Any, str | None]:
    """The tree, None if there is none, and what is missing from it, None if nothing is.

    Nothing is fetched, no entity but HTML's own is known.
    """
    parser = etree.HTMLParser(
        encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True, huge_tree=False
    )
    root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    cut = any("depth" in entry.message for entry in parser.error_log)
    return root, "elements nested too deeply were left out" if cut else None


def decode_page(data: bytes) -> str:
    """The page as text, in the encoding that it declares unless that is wrong."""
    declared = _CHARSET.search(data[:4_096])
    has_mark = data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if declared and not has_mark:
        name = declared[1].decode("ascii")
        # Browsers read these as the encodings that they nearly always are.
        name = {"iso-8859-1": "windows-1252", "gb2312": "gb18030"}.get(name.lower(), name)
        try:
            if codecs.lookup(name)._is_text_encoding:
                return data.decode(name)
        except (LookupError, UnicodeDecodeError):
            pass  # a lying declaration: find out as for any text
    return decode(data)[0]


class _Walker:
    """Goes through the tree without recursion and gathers the text of each block."""

    def __init__(self, collector: Collector, *, has_main: bool) -> None:
        self._collector = collector
        self._has_main = has_main
        self._text: list[str] = []
        self._cells: list[list[str]] = []  # the cells of each open row, tables within tables
        self._header: str | None = None
        self._marker = ""
        self._preformatted = 0

    def walk(self, root: Any) -> None:
        skipped: Any = None
        for event, node in etree.iterwalk(root, events=("start", "end")):
            if skipped is not None:
                if event == "end" and node is skipped:
                    skipped = None
                    self._add(node.tail)
                continue
            if event == "start":
                if self._is_skipped(node):
                    skipped = node
                else:
                    self._open(node)
            else:
                self._close(node)
        self._flush("paragraph")

    def _is_skipped(self, node: Any) -> bool:
        tag = node.tag
        if tag in _SKIPPED or "hidden" in node.attrib:
            return True
        if node.get("role") in ("navigation", "search") or node.get("aria-hidden") == "true":
            return True
        return self._has_main and tag in ("footer", "aside")

    def _open(self, node: Any) -> None:
        tag = node.tag
        if tag in _BLOCKS and not (self._cells and tag not in ("table", "tr", "td", "th")):
            if self._cells and tag == "table":
                self._text.append(" ")
            else:
                self._flush("list" if self._marker else "paragraph")
        elif tag in _BLOCKS:
            self._text.append(" ")
        if tag == "tr":
            self._cells.append([])
        elif tag == "table" and not self._cells:
            self._header = None
        elif tag == "pre":
            self._preformatted += 1
        elif tag == "li":
            self._marker = "- "
        elif tag == "br":
            self._text.append("\n" if not self._cells else " ")
        elif tag == "img":
            self._add(node.get("alt"))
        self._add(node.text)

    def _close(self, node: Any) -> None:
        tag = node.tag
        if tag in _HEADINGS and not self._cells:
            text, self._text = "".join(self._text), []
            self._collector.heading(text, _HEADINGS[tag])
        elif tag in ("td", "th") and self._cells:
            self._cells[-1].append(_SPACES.sub(" ", "".join(self._text)).strip())
            self._text = []
        elif tag == "tr" and self._cells:
            self._close_row(self._cells.pop())
        elif tag == "pre":
            self._preformatted -= 1
            self._flush("paragraph" if self._preformatted else "code")
        elif tag == "li" and not self._cells:
            self._flush("list")
            self._marker = ""
        elif tag in _BLOCKS:
            if self._cells:
                self._text.append(" ")
            else:
                self._flush("list" if self._marker else "paragraph")
        self._add(node.tail)

    def _close_row(self, cells: list[str]) -> None:
        row = " | ".join(cell for cell in cells if cell)
        self._text = []
        if self._cells:  # a row of a table within a cell is part of that cell's text
            self._text.append(row + " ")
        elif row and len(cells) > 1:
            self._collector.add(row, kind="table", header=self._header or None)
            if self._header is None:
                self._header = row[:MAX_TABLE_HEADER] if names_columns(cells) else ""
        elif row:
            self._collector.add(row)

    def _add(self, text: str | None) -> None:
        if text:
            self._text.append(text if self._preformatted else _SPACES.sub(" ", text))

    def _flush(self, kind: Kind) -> None:
        text, self._text = "".join(self._text), []
        if not text.strip():
            return
        if kind == "list":
            text = self._marker + text.strip()
            self._marker = "  " if self._marker else ""
        self._collector.add(text, kind=kind)


def _text_of(root: Any, path: str) -> str | None:
    node = root.find(path) if root is not None else None
    return _SPACES.sub(" ", "".join(node.itertext())).strip() or None if node is not None else None


def _meta(root: Any, name: str) -> str | None:
    if root is None:
        return None
    for node in root.iterfind(".//meta"):
        if (node.get("name") or node.get("property") or "").lower() == name:
            return (node.get("content") or "").strip() or None
    return None


def _language(root: Any) -> str | None:
    return (root.get("lang") or root.get("xml:lang") or None) if root is not None else None


def _described(root: Any) -> dict[str, str]:
    found = {name: _meta(root, name) for name in ("description", "keywords")}
    return {name: value for name, value in found.items() if value}

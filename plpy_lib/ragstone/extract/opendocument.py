"""Text documents and presentations in OpenDocument (ODT, ODP)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import Any

from lxml import etree

from ..errors import DocumentError
from .archive import open_archive
from .model import Collector, Extracted, Kind, Source
from .ooxml import part
from .options import Limits

_NS = "{urn:oasis:names:tc:opendocument:xmlns:%s:1.0}"
_TEXT, _TABLE, _DRAW, _OFFICE = (_NS % name for name in ("text", "table", "drawing", "office"))
_META, _PRESENTATION = _NS % "meta", _NS % "presentation"
_DC = "{http://purl.org/dc/elements/1.1/}"
_PROPERTIES = {
    "title": f".//{_DC}title",
    "author": f".//{_META}initial-creator",
    "editor": f".//{_DC}creator",
    "language": f".//{_DC}language",
    "created": f".//{_META}creation-date",
    "subject": f".//{_DC}subject",
    "description": f".//{_DC}description",
}
# Deleted text, the generated table of contents' source, and numbers that fields stand for.
_SKIPPED = frozenset(
    {
        _TEXT + "tracked-changes",
        _TEXT + "table-of-content-source",
        _TEXT + "sequence-decls",
        _OFFICE + "annotation-end",
        _OFFICE + "forms",
        _OFFICE + "scripts",
    }
)
_SPACERS = {_TEXT + "tab": "\t", _TEXT + "line-break": "\n"}
# Elements shown apart from the paragraph in which they are anchored.
_APART = frozenset(
    {_DRAW + "text-box", _TEXT + "note-body", _OFFICE + "annotation", _DRAW + "page"}
)
_MAX_REPEATS = 100


def extract(source: Source, limits: Limits) -> Extracted:
    """Text in document order under its headings; of a presentation, slides as pages, with notes.

    Raises DocumentError: damaged, encrypted, too_large, too_many_pages, too_much_text.
    """
    with open_archive(source.data, limits) as archive:
        _refuse_encrypted(archive)
        root = part(archive, "content.xml")
        known = properties(archive)
    body = root.find(_OFFICE + "body") if root is not None else None
    if body is None:
        raise DocumentError(
            "damaged", "the document is damaged", detail="It has no body in content.xml."
        )
    collector = Collector(limits)
    slides = list(body.iter(_DRAW + "page"))
    if len(slides) > limits.max_pages:
        raise DocumentError(
            "too_many_pages",
            "the document has more slides than the limit max_pages",
            detail=f"It has {len(slides):,} slides; the limit is {limits.max_pages:,}.",
            hint="Split the document, or raise the limit.",
        )
    for number, slide in enumerate(slides, start=1):
        collector.leave()
        walker = _Walker(collector, number)
        walker.title(slide)
        walker.walk(slide)
    if not slides:
        _Walker(collector, None).walk(body)
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=known.pop("title", None),
        author=known.pop("author", None) or known.get("editor"),
        language=known.pop("language", None),
        created=known.pop("created", None),
        metadata=known,
        pages=len(slides) or None,
    )


def _refuse_encrypted(archive: zipfile.ZipFile) -> None:
    try:
        manifest = archive.read("META-INF/manifest.xml")
    except (KeyError, zipfile.BadZipFile):
        return
    if b"encryption-data" in manifest:
        raise DocumentError(
            "encrypted",
            "the document is protected by a password",
            detail="Its parts are encrypted.",
        )


def properties(archive: zipfile.ZipFile) -> dict[str, str]:
    """Title, author, language, created and the like, those that are set."""
    try:
        root = part(archive, "meta.xml")
    except (etree.XMLSyntaxError, zipfile.BadZipFile):
        return {}  # not worth losing the text for
    if root is None:
        return {}
    found = {name: root.findtext(path) for name, path in _PROPERTIES.items()}
    return {name: value.strip() for name, value in found.items() if value and value.strip()}


class _Walker:
    def __init__(self, collector: Collector, page: int | None) -> None:
        self._collector = collector
        self._page = page
        self._heading: Any = None

    def title(self, slide: Any) -> None:
        """Open the section of a slide, named by the text in its title's place."""
        for frame in slide.iter(_DRAW + "frame", _DRAW + "custom-shape"):
            if frame.get(_PRESENTATION + "class") == "title":
                text = " ".join(_text(node) for node in frame.iter(_TEXT + "p"))
                self._collector.heading(text, 1, page=self._page)
                self._heading = frame
                return

    def walk(self, container: Any) -> None:
        """Headings, paragraphs, lists and tables, whatever sections and frames they are in."""
        pending: list[tuple[Any, bool]] = [(node, False) for node in reversed(container)]
        while pending:
            node, in_list = pending.pop()
            tag = node.tag
            if tag in _SKIPPED or not isinstance(tag, str) or node is self._heading:
                continue
            if tag == _TEXT + "h":
                level = node.get(_TEXT + "outline-level", "1")
                self._collector.heading(
                    _text(node), int(level) if level.isdigit() else 1, page=self._page
                )
                pending += [(apart, False) for apart in reversed(list(_apart(node)))]
            elif tag == _TEXT + "p":
                self._paragraph(node, in_list)
                pending += [(apart, False) for apart in reversed(list(_apart(node)))]
            elif tag == _TABLE + "table":
                self._collector.table(_rows(node), page=self._page)
            else:
                inside = in_list or tag == _TEXT + "list-item"
                pending += [(child, inside) for child in reversed(node)]

    def _paragraph(self, node: Any, in_list: bool) -> None:
        text = _text(node).strip()
        kind: Kind = "list" if in_list else "paragraph"
        self._collector.add(f"- {text}" if in_list and text else text, page=self._page, kind=kind)


def _rows(table: Any) -> Iterator[list[str]]:
    for row in table.iter(_TABLE + "table-row"):
        cells: list[str] = []
        for cell in row.iterfind(_TABLE + "table-cell"):
            text = " ".join(_text(node) for node in cell.iter(_TEXT + "p", _TEXT + "h"))
            repeats = cell.get(_TABLE + "number-columns-repeated", "1")
            count = int(repeats) if repeats.isdigit() and len(repeats) < 6 else 1
            cells += [text] * (min(count, _MAX_REPEATS) if text else 1)
        yield cells


def _text(paragraph: Any) -> str:
    """The paragraph's own text: boxes, notes and comments apart."""
    parts: list[str] = [paragraph.text or ""]
    pending = list(reversed(paragraph))
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            parts.append(node)
            continue
        pending.append(node.tail or "")
        tag = node.tag
        if tag == _TEXT + "s":
            parts.append(" ")
        elif tag in _SPACERS:
            parts.append(_SPACERS[tag])
        elif tag not in _SKIPPED and tag not in _APART and tag != _TEXT + "note-citation":
            parts.append(node.text or "")
            pending += reversed(node)
    return "".join(parts)


def _apart(paragraph: Any) -> Iterator[Any]:
    """Boxes, notes and comments anchored in a paragraph; those within them are found there."""
    for node in paragraph.iter(*_APART):
        parent = next(up for up in node.iterancestors() if up is paragraph or up.tag in _APART)
        if parent is paragraph:
            yield node

"""Word documents.

The parts are read with lxml directly: python-docx leaves out content controls, insertions under
review and text boxes, and inflates every picture of the archive into memory.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import DocumentError
from .archive import open_archive
from .model import Collector, Extracted, Source
from .ooxml import part, properties
from .options import Limits

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
# Documents saved as "strict" use another namespace for the same elements.
_STRICT = "{http://purl.oclc.org/ooxml/wordprocessingml/main}"
_MC_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_MATH_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_HEADING = re.compile(r"heading (\d)", re.IGNORECASE)
# Deleted text, field codes, and the second copy of text boxes.
_SKIPPED = frozenset(
    {_MC_FALLBACK, *(_W + name for name in ("del", "moveFrom", "instrText", "pPr", "rPr"))}
)
_SPACERS = {_W + "tab": "\t", _W + "br": "\n", _W + "cr": "\n", _W + "noBreakHyphen": "-"}


@dataclass(frozen=True)
class _Styles:
    """Heading level and list membership by style."""

    levels: dict[str, int]
    lists: frozenset[str]
    titles: frozenset[str]


def extract(source: Source, limits: Limits) -> Extracted:
    """Text in document order, then headers, footers, notes and comments; table rows as `a | b`.

    Raises DocumentError: damaged, encrypted, too_large, too_much_text.
    """
    with open_archive(source.data, limits) as archive:
        name = _main_part(archive)
        root = part(archive, name)
        body = root.find(_W + "body") if root is not None else None
        if body is None and root is not None and root.tag.startswith(_STRICT):
            body = _as_transitional(root).find(_W + "body")
        if body is None:
            raise DocumentError(
                "damaged", "the document is damaged", detail=f"It has no body in {name}."
            )
        folder = posixpath.dirname(name)
        walker = _Walker(Collector(limits), _styles(part(archive, f"{folder}/styles.xml")))
        walker.walk(body)
        walker.walk_margins(_margins(archive, folder))
        known = properties(archive)
    title = known.pop("title", None)
    return Extracted(
        blocks=tuple(walker.collector.blocks),
        mime_type=source.mime_type,
        title=title or walker.title,
        author=known.pop("author", None),
        language=known.pop("language", None),
        created=known.pop("created", None),
        metadata=known,
    )


def _main_part(archive: zipfile.ZipFile) -> str:
    relations = part(archive, "_rels/.rels")
    for relation in relations if relations is not None else ():
        if str(relation.get("Type", "")).endswith("/officeDocument"):
            return posixpath.normpath(str(relation.get("Target", ""))).lstrip("/")
    return "word/document.xml"


def _as_transitional(root: Any) -> Any:
    for node in root.iter(f"{_STRICT}*"):
        node.tag = _W + node.tag[len(_STRICT) :]
    return root


def _styles(root: Any | None) -> _Styles:
    levels: dict[str, int] = {}
    lists: set[str] = set()
    titles: set[str] = set()
    for style in root.iterfind(_W + "style") if root is not None else ():
        key, name = style.get(_W + "styleId", ""), _value(style, "name") or ""
        if match := _HEADING.fullmatch(name):
            levels[key] = int(match[1])
        elif outline := _value(style, f"pPr/{_W}outlineLvl"):
            levels[key] = int(outline) + 1 if outline.isdigit() and int(outline) < 9 else 0
        if name.lower() == "title":
            titles.add(key)
        if name.lower().startswith("list") or style.find(f"{_W}pPr/{_W}numPr") is not None:
            lists.add(key)
    return _Styles(
        {key: level for key, level in levels.items() if level}, frozenset(lists), frozenset(titles)
    )


def _value(node: Any, path: str) -> str | None:
    found = node.find(_W + path)
    return None if found is None else found.get(_W + "val")


def _margins(archive: zipfile.ZipFile, folder: str) -> Iterator[tuple[str, Any]]:
    """Headers, footers, notes and comments, each kind under its name."""
    pattern = re.compile(
        re.escape(folder) + r"/(header|footer|footnotes|endnotes|comments)\d*\.xml"
    )
    for name in sorted(archive.namelist()):
        if match := pattern.fullmatch(name):
            yield match[1], part(archive, name)


class _Walker:
    def __init__(self, collector: Collector, styles: _Styles) -> None:
        self.collector = collector
        self.title: str | None = None
        self._styles = styles

    def walk(self, container: Any) -> None:
        """Paragraphs and tables, whatever content controls or insertions they are wrapped in."""
        pending = list(reversed(container))
        while pending:
            node = pending.pop()
            if node.tag == _W + "p":
                self._paragraph(node)
            elif node.tag == _W + "tbl":
                self._table(node)
            elif node.tag not in _SKIPPED and node.tag != _W + "sectPr":
                pending += reversed(node)

    def walk_margins(self, margins: Iterator[tuple[str, Any]]) -> None:
        """Each distinct line once, after the text, so that a letterhead can be found too."""
        seen: set[str] = set()
        self.collector.section = None
        for _, root in margins:
            for paragraph in root.iter(_W + "p"):
                text = _text(paragraph).strip()
                if any(character.isalpha() for character in text) and text not in seen:
                    seen.add(text)
                    self.collector.add(text)

    def _paragraph(self, node: Any) -> None:
        text = _text(node)
        style = _value(node, f"pPr/{_W}pStyle") or ""
        level = self._styles.levels.get(style, 0)
        outline = _value(node, f"pPr/{_W}outlineLvl")
        if outline and outline.isdigit() and int(outline) < 9:
            level = int(outline) + 1
        if style in self._styles.titles and self.title is None:
            self.title = " ".join(text.split()) or None
        if level:
            self.collector.heading(text, level)
        elif text.strip() and (
            style in self._styles.lists or node.find(f"{_W}pPr/{_W}numPr") is not None
        ):
            self.collector.add("- " + text.strip(), kind="list")
        else:
            self.collector.add(text)
        for box in _boxes(node):
            self.walk(box)

    def _table(self, table: Any) -> None:
        self.collector.table(
            [_cell_text(cell) for cell in _children(row, "tc")] for row in _children(table, "tr")
        )


def _children(node: Any, name: str) -> Iterator[Any]:
    """The rows of a table or cells of a row, also those inside content controls."""
    pending = list(reversed(node))
    while pending:
        child = pending.pop()
        if child.tag == _W + name:
            yield child
        elif child.tag in (_W + "sdt", _W + "sdtContent", _W + "ins", _W + "customXml"):
            pending += reversed(child)


def _cell_text(cell: Any) -> str:
    """All paragraphs of a cell, tables within it included. Merged cells say it once: the rest
    of a vertical merge is empty in the file."""
    return " ".join(_text(paragraph) for paragraph in cell.iter(_W + "p"))


def _text(paragraph: Any) -> str:
    """The text of the paragraph without its text boxes."""
    parts: list[str] = []
    pending = list(reversed(paragraph))
    while pending:
        node = pending.pop()
        if node.tag in (_W + "t", _MATH_TEXT):
            parts.append(node.text or "")
        elif node.tag in _SPACERS:
            parts.append(_SPACERS[node.tag])
        elif node.tag not in _SKIPPED and node.tag != _W + "txbxContent":
            pending += reversed(node)
    return "".join(parts)


def _boxes(paragraph: Any) -> list[Any]:
    """Text boxes. The file has each twice; the copy for old programs is left out."""
    return [
        box
        for box in paragraph.iter(_W + "txbxContent")
        if not any(parent.tag == _MC_FALLBACK for parent in box.iterancestors())
        and next(box.iterancestors(_W + "p"), None) is paragraph
    ]

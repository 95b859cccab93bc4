"""XML of any vocabulary: feeds, DocBook, exports of other programs."""

from __future__ import annotations

import re
from typing import Any

from lxml import etree

from ..errors import DocumentError
from .model import Collector, Extracted, Source
from .ooxml import parse_xml
from .options import Limits

_TITLES = frozenset(("title", "head", "heading", "name"))
_MARKUP = re.compile(r"<(?:p|br|div|a|img|b|i|ul|li|span|strong|em|h[1-6])[\s/>]", re.IGNORECASE)
_MAX_VALUE = 200
_MAX_LABEL = 60
_MAX_FIELDS = 200
_AUTHORS = ("author", "creator", "managingEditor")
_DATES = ("created", "date", "published", "pubDate", "lastBuildDate")


def extract(source: Source, limits: Limits) -> Extracted:
    """Elements with text become paragraphs, records of short values become rows `name: value`.

    A title opens a section for what is in the same element. Entities of its own are never
    expanded. Raises DocumentError damaged.
    """
    try:
        root = parse_xml(source.data, allow_doctype=True)
    except etree.XMLSyntaxError as error:
        root, fault = _recovered(source.data), str(error)
        if root is None:
            raise DocumentError(
                "damaged", "the document is damaged", detail=f"It is not well-formed XML: {fault}"
            ) from None
    else:
        fault = ""
    collector = Collector(limits)
    _Walker(collector).walk(root)
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=_first(root, ("title",)),
        author=_first(root, _AUTHORS),
        language=root.get("{http://www.w3.org/XML/1998/namespace}lang")
        or _first(root, ("language",)),
        created=_first(root, _DATES),
        partial=f"it is not well-formed XML: {fault}"[:300] if fault else None,
    )


def _recovered(data: bytes) -> Any | None:
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, recover=True, remove_pis=True,
        remove_comments=True,
    )  # fmt: skip
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError:
        return None


class _Walker:
    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._sections: list[tuple[Any, str]] = []  # elements that have a title, outermost first

    def walk(self, root: Any) -> None:
        """In document order, without recursion; an element is closed once its children are."""
        skipped: Any = None
        for event, node in etree.iterwalk(root, events=("start", "end")):
            if not isinstance(node.tag, str):
                continue
            if event == "end":
                if node is skipped:
                    skipped = None
                elif skipped is None and self._sections and self._sections[-1][0] is node:
                    self._sections.pop()
                    self._set_section()
                continue
            if skipped is None and self._add(node):
                skipped = node

    def _add(self, node: Any) -> bool:
        """Add the text of an element. Return True if it has no more content."""
        title = next((child for child in node if _name(child) in _TITLES), None)
        text = _text(title) if title is not None and not _is_record(node) else ""
        if text:
            self._sections.append((node, text))
            self._set_section()
        if _has_own_text(node):
            self._paragraph(node)
            return True
        if _is_record(node):
            values = [f"{_label(child)}: {_text(child)}" for child in node if _text(child)]
            self._collector.add(" | ".join([*_attributes(node), *values]), kind="table")
            return True
        self._collector.add(" | ".join(_attributes(node)), kind="table")
        return False

    def _paragraph(self, node: Any) -> None:
        text = _text(node)
        parent, title = self._sections[-1] if self._sections else (None, "")
        if node.getparent() is parent and _name(node) in _TITLES and text == title:
            self._collector.add(text, kind="heading", level=min(len(self._sections), 6))
            return
        if len(node) == 0 and " " not in text:  # an address, a number: of little use unnamed
            text = f"{_label(node)}: {text}"
        self._collector.add(" | ".join([*_attributes(node), text]))

    def _set_section(self) -> None:
        self._collector.leave()
        for level, (_, title) in enumerate(self._sections[-6:], start=1):
            self._collector.enter(title, level)


def _name(node: Any) -> str:
    return etree.QName(node).localname if isinstance(node.tag, str) else ""


def _label(node: Any) -> str:
    return _name(node)[:_MAX_LABEL]


def _text(node: Any) -> str:
    """All text in an element, without the web markup that feeds have in it."""
    text = " ".join("".join(node.itertext()).split())
    if _MARKUP.search(text):
        from .html import parse_html

        root, _ = parse_html(text)
        text = " ".join(" ".join(root.itertext()).split()) if root is not None else text
    return text


def _has_own_text(node: Any) -> bool:
    """Whether an element has text of its own, not only in its children."""
    return bool(node.text and node.text.strip()) or any(
        child.tail and child.tail.strip() for child in node
    )


def _is_record(node: Any) -> bool:
    """Whether it is a record: several children of different names, each a short value."""
    return (
        1 < len(node) <= _MAX_FIELDS
        and all(len(child) == 0 and len(child.text or "") <= _MAX_VALUE for child in node)
        and len({child.tag for child in node}) == len(node)
    )


def _attributes(node: Any) -> list[str]:
    """Attributes with information: not namespaces, addresses and styles."""
    found = []
    for name, value in node.attrib.items():
        plain = name.rpartition("}")[2]
        if any(map(str.isalpha, value)) and " " in value.strip() and len(value) <= 2_000:
            found.append(f"{plain[:_MAX_LABEL]}: {' '.join(value.split())}")
    return found


def _first(root: Any, names: tuple[str, ...]) -> str | None:
    """The text of the first element of such a name near the root."""
    for node in (*root, *(grandchild for child in root for grandchild in child)):
        if _name(node) in names and (text := _text(node)):
            return text[:200]
    return None

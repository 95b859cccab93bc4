"""Presentations (PPTX).

The parts are read with lxml directly, as for DOCX: python-pptx inflates every picture of the
archive into memory and brings a library for images into the child.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import Any

from lxml import etree

from ..errors import DocumentError
from .archive import open_archive
from .model import Collector, Extracted, Source
from .ooxml import part, properties, relations
from .options import Limits

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_STRICT = {
    "http://purl.oclc.org/ooxml/drawingml/main": _A,
    "http://purl.oclc.org/ooxml/presentationml/main": _P,
}
_TITLES = ("title", "ctrTitle")
# Elements of every slide: its number, the date, the footer.
_MARGINS = ("sldNum", "dt", "ftr", "hdr")


def extract(source: Source, limits: Limits) -> Extracted:
    """Slides are pages, their titles sections; text boxes, tables, charts' words and notes.

    Raises DocumentError: damaged, encrypted, too_large, too_many_pages, too_much_text.
    """
    with open_archive(source.data, limits) as archive:
        names = _slides(archive)
        if len(names) > limits.max_pages:
            raise DocumentError(
                "too_many_pages",
                "the document has more slides than the limit max_pages",
                detail=f"It has {len(names):,} slides; the limit is {limits.max_pages:,}.",
                hint="Split the document, or raise the limit.",
            )
        collector = Collector(limits)
        failed = []
        for number, name in enumerate(names, start=1):
            try:
                _slide(archive, name, number, collector)
            except (etree.XMLSyntaxError, zipfile.BadZipFile):
                failed.append(number)
        known = properties(archive)
    if failed and len(failed) == len(names):
        raise DocumentError(
            "damaged", "the document is damaged", detail="None of its slides can be read."
        )
    title = known.pop("title", None)
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=title if title and title != "PowerPoint Presentation" else None,
        author=known.pop("author", None),
        language=known.pop("language", None),
        created=known.pop("created", None),
        metadata=known,
        pages=len(names),
        partial=f"slides {', '.join(map(str, failed[:10]))} could not be read" if failed else None,
    )


def _slides(archive: zipfile.ZipFile) -> list[str]:
    """The names of the slides' parts, in the order in which they are shown."""
    main = next(
        (
            target
            for kind, target in relations(archive, "").values()
            if kind.endswith("/officeDocument")
        ),
        "ppt/presentation.xml",
    )
    root = part(archive, main)
    if root is None:
        raise DocumentError("damaged", "the document is damaged", detail=f"It has no {main}.")
    targets = relations(archive, main)
    ids = [
        value
        for node in root.iter("{*}sldId")
        for name, value in node.attrib.items()
        if name.startswith("{") and name.endswith("}id")
    ]
    return [targets[key][1] for key in ids if key in targets]


def _slide(archive: zipfile.ZipFile, name: str, number: int, collector: Collector) -> None:
    root = part(archive, name)
    if root is None:
        return
    _as_transitional(root)
    collector.leave()
    shapes = list(root.iter(_P + "sp", _P + "graphicFrame", _P + "pic"))  # groups included
    title = next((shape for shape in shapes if _placeholder(shape) in _TITLES), None)
    if title is not None:
        collector.heading(" ".join(_paragraphs(title)), 1, page=number)
    for shape in shapes:
        if shape is not title and _placeholder(shape) not in _MARGINS:
            _shape(shape, number, collector)
    for kind, target in relations(archive, name).values():
        if kind.endswith("/notesSlide"):
            _notes(archive, target, number, collector)
        elif kind.endswith(("/chart", "/diagramData")):
            _words(archive, target, number, collector)


def _shape(shape: Any, number: int, collector: Collector) -> None:
    if shape.tag == _P + "pic":
        described = shape.find(f"{_P}nvPicPr/{_P}cNvPr")
        text = (described.get("descr") or "") if described is not None else ""
        if " " in text.strip():  # a file's name describes nothing
            collector.add(text, page=number)
        return
    for table in shape.iter(_A + "tbl"):
        rows = table.iterfind(_A + "tr")
        collector.table(
            ([" ".join(_paragraphs(cell)) for cell in row.iterfind(_A + "tc")] for row in rows),
            page=number,
        )
    if shape.tag == _P + "sp":
        lines = list(_paragraphs(shape))
        for line in lines:
            collector.add(line, page=number, kind="list" if len(lines) > 1 else "paragraph")


def _placeholder(shape: Any) -> str:
    found = shape.find(f"{_P}nvSpPr/{_P}nvPr/{_P}ph")
    return "" if found is None else found.get("type", "body")


def _paragraphs(node: Any) -> Iterator[str]:
    for paragraph in node.iter(_A + "p"):
        parts = []
        for piece in paragraph.iter(_A + "t", _A + "br", _A + "tab"):
            parts.append(piece.text or "" if piece.tag == _A + "t" else " ")
        if text := "".join(parts).strip():
            yield text


def _notes(archive: zipfile.ZipFile, name: str, number: int, collector: Collector) -> None:
    root = part(archive, name)
    if root is None:
        return
    _as_transitional(root)
    for shape in root.iter(_P + "sp"):
        if _placeholder(shape) == "body":
            for text in _paragraphs(shape):
                collector.add(text, page=number)


def _words(archive: zipfile.ZipFile, name: str, number: int, collector: Collector) -> None:
    """Titles and categories of a chart, texts of a diagram. Numbers are left out."""
    root = part(archive, name)
    if root is None:
        return
    texts = [node.text.strip() for node in root.iter(_A + "t", "{*}v") if (node.text or "").strip()]
    words = [text for text in dict.fromkeys(texts) if any(map(str.isalpha, text))]
    collector.add(" | ".join(words), page=number, kind="table")


def _as_transitional(root: Any) -> None:
    """Files saved as "strict" use other namespaces for the same elements."""
    for node in root.iter():
        if isinstance(node.tag, str) and node.tag.startswith("{http://purl.oclc.org/"):
            space, _, name = node.tag[1:].partition("}")
            node.tag = _STRICT.get(space, "{" + space + "}") + name

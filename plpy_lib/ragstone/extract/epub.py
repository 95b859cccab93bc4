"""Electronic books (EPUB)."""

from __future__ import annotations

import posixpath
import zipfile
from typing import Any
from urllib.parse import unquote

from lxml import etree

from ..errors import DocumentError
from . import html
from .archive import open_archive
from .model import Collector, Extracted, Source
from .ooxml import parse_xml
from .options import Limits

_DC = "{http://purl.org/dc/elements/1.1/}"


def extract(source: Source, limits: Limits) -> Extracted:
    """Chapters in reading order, each read as a web page. A book has no pages of its own.

    Raises DocumentError: damaged, encrypted, too_large, too_much_text.
    """
    with open_archive(source.data, limits) as archive:
        name = _package_name(archive)
        package = _xml(archive, name)
        if package is None:
            raise _damaged(f"It has no {name}.")
        if _has_member(archive, "META-INF/rights.xml"):
            raise DocumentError(
                "encrypted",
                "the document is protected against copying",
                detail="It carries the rights management of a shop.",
                hint="Store a copy without protection.",
            )
        collector = Collector(limits)
        missing = []
        for chapter in _chapters(package, posixpath.dirname(name)):
            try:
                root, _ = html.parse_html(html.decode_page(archive.read(chapter)))
            except (KeyError, zipfile.BadZipFile, etree.XMLSyntaxError):
                missing.append(chapter)
                continue
            collector.leave()
            html.add(root, collector)
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=_first(package, "title"),
        author=", ".join(_all(package, "creator")) or None,
        language=_first(package, "language"),
        created=_first(package, "date"),
        metadata={
            key: value
            for key in ("publisher", "description", "identifier")
            if (value := _first(package, key))
        },
        partial=f"{len(missing)} chapters could not be read" if missing else None,
    )


def _package_name(archive: zipfile.ZipFile) -> str:
    container = _xml(archive, "META-INF/container.xml")
    for node in container.iter("{*}rootfile") if container is not None else ():
        if path := node.get("full-path"):
            return str(path)
    raise _damaged("It does not say where its contents are.")


def _chapters(package: Any, folder: str) -> list[str]:
    """The members that the spine names, in its order; the table of contents is not text."""
    items = {
        node.get("id"): node
        for node in package.iter("{*}item")
        if "nav" not in (node.get("properties") or "").split()
    }
    wanted = [items.get(node.get("idref")) for node in package.iter("{*}itemref")]
    names = [
        posixpath.normpath(posixpath.join(folder, unquote(node.get("href", ""))))
        for node in wanted
        if node is not None and "html" in (node.get("media-type") or "html")
    ]
    return list(dict.fromkeys(names))


def _xml(archive: zipfile.ZipFile, name: str) -> Any | None:
    try:
        return parse_xml(archive.read(name), allow_doctype=True)
    except KeyError:
        return None
    except etree.XMLSyntaxError as error:
        raise _damaged(f"{name} cannot be read: {error}") from None


def _has_member(archive: zipfile.ZipFile, name: str) -> bool:
    return name in archive.NameToInfo


def _first(package: Any, name: str) -> str | None:
    return next(iter(_all(package, name)), None)


def _all(package: Any, name: str) -> list[str]:
    texts = (" ".join("".join(node.itertext()).split()) for node in package.iter(_DC + name))
    return [text[:500] for text in texts if text]


def _damaged(detail: str) -> DocumentError:
    return DocumentError("damaged", "the document is damaged", detail=detail)

"""Common parts of the Office formats: XML parts in an archive, and core properties."""

from __future__ import annotations

import posixpath
import zipfile
from typing import Any

from lxml import etree

from ..errors import DocumentError

_PROPERTIES = {
    "title": "{http://purl.org/dc/elements/1.1/}title",
    "author": "{http://purl.org/dc/elements/1.1/}creator",
    "language": "{http://purl.org/dc/elements/1.1/}language",
    "created": "{http://purl.org/dc/terms/}created",
    "modified": "{http://purl.org/dc/terms/}modified",
    "subject": "{http://purl.org/dc/elements/1.1/}subject",
    "keywords": "{http://schemas.openxmlformats.org/package/2006/metadata/core-properties}keywords",
}


def parse_xml(data: bytes, *, allow_doctype: bool = False) -> Any:
    """The root element. No DTD is loaded, no entity expanded, nothing fetched.

    Raises DocumentError damaged for a part that declares a DTD, which no Office program writes,
    unless that is allowed, and etree.XMLSyntaxError for what is no XML.
    """
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False,
        remove_comments=True, remove_pis=True,
    )  # fmt: skip
    root = etree.fromstring(data, parser)
    if root.getroottree().docinfo.doctype and not allow_doctype:
        raise DocumentError(
            "damaged",
            "the document is not one that an Office program wrote",
            detail="A part of it declares a DTD.",
        )
    return root


def part(archive: zipfile.ZipFile, name: str) -> Any | None:
    """The root element of a part; None if the archive has no such part."""
    try:
        data = archive.read(name)
    except KeyError:
        return None
    return parse_xml(data)


def properties(archive: zipfile.ZipFile) -> dict[str, str]:
    """Title, author, language, created and the like, those that are set."""
    try:
        root = part(archive, "docProps/core.xml")
    except (etree.XMLSyntaxError, zipfile.BadZipFile):
        return {}  # not worth losing the text for
    if root is None:
        return {}
    found = {name: root.findtext(tag) for name, tag in _PROPERTIES.items()}
    return {name: value.strip() for name, value in found.items() if value and value.strip()}


def relations(archive: zipfile.ZipFile, name: str) -> dict[str, tuple[str, str]]:
    """The parts to which a part refers, by id: kind and name. "" is the package itself."""
    folder, _, file = name.rpartition("/")
    root = part(archive, f"{folder}/_rels/{file}.rels" if folder else f"_rels/{file}.rels")
    found: dict[str, tuple[str, str]] = {}
    for node in root if root is not None else ():
        target = str(node.get("Target", ""))
        if node.get("TargetMode") == "External" or not target:
            continue
        path = target if target.startswith("/") else posixpath.join("/", folder, target)
        found[str(node.get("Id", ""))] = (
            str(node.get("Type", "")),
            posixpath.normpath(path).lstrip("/"),
        )
    return found

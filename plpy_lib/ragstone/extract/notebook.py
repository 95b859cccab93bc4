"""Jupyter notebooks."""

from __future__ import annotations

import json
from typing import Any

from ..errors import DocumentError
from . import markdown
from .cleaning import clean_text
from .encoding import decode
from .model import Collector, Extracted, Source
from .options import Limits

# Longer results are data or progress bars.
_MAX_OUTPUT = 2_000


def extract(source: Source, limits: Limits) -> Extracted:
    """Cells in order: Markdown by its structure, code as code, results that are text.

    Raises DocumentError damaged.
    """
    try:
        notebook = json.loads(decode(source.data)[0])
    except (ValueError, RecursionError) as error:
        raise _damaged(str(error)) from None
    cells = _cells(notebook)
    if cells is None:
        raise _damaged("It has no list of cells.")
    collector = Collector(limits)
    for cell in cells:
        if isinstance(cell, dict):
            _add_cell(cell, collector)
    first = next((block for block in collector.blocks if block.kind == "heading"), None)
    metadata = _dict(notebook.get("metadata"))
    authors = metadata.get("authors")
    author = _dict(authors[0]).get("name") if isinstance(authors, list) and authors else None
    title = metadata.get("title") or (first.text if first and first.level == 1 else None)
    language = _dict(metadata.get("kernelspec")).get("language") or _dict(
        metadata.get("language_info")
    ).get("name")
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=title if isinstance(title, str) else None,
        author=author if isinstance(author, str) else None,
        metadata={"programming_language": language} if isinstance(language, str) else {},
    )


def _cells(notebook: Any) -> list[Any] | None:
    """The list of cells, in version 4 and in the worksheets of version 3."""
    notebook = _dict(notebook)
    if isinstance(cells := notebook.get("cells"), list):
        return cells
    sheets = notebook.get("worksheets")
    if not isinstance(sheets, list):
        return None
    return [cell for sheet in sheets for cell in _dict(sheet).get("cells") or ()]


def _add_cell(cell: dict[str, Any], collector: Collector) -> None:
    text = _text(cell.get("source", cell.get("input")))
    match cell.get("cell_type"):
        case "markdown":
            markdown.add(text, collector)
        case "heading":
            level = cell.get("level")
            collector.heading(text, level if isinstance(level, int) else 1)
        case "code":
            collector.add(text, kind="code")
            for output in cell.get("outputs") or ():
                result = _result(_dict(output))
                if 0 < len(result) <= _MAX_OUTPUT:
                    collector.add(result, kind="code")
        case _:
            collector.add(text)


def _result(output: dict[str, Any]) -> str:
    if output.get("output_type") == "stream":
        return _text(output.get("text"))
    return _text(_dict(output.get("data")).get("text/plain", output.get("text")))


def _text(value: Any) -> str:
    """A string, or a list of lines."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(line for line in value if isinstance(line, str))
    return ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _damaged(detail: str) -> DocumentError:
    return DocumentError(
        "damaged", "the document is damaged", detail=f"It is not a notebook: {clean_text(detail)}"
    )

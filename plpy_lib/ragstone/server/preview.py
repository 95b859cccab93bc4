"""What a document would become, without storing it: the worker's path up to the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ragstone.db.calls import Database
from ragstone.errors import DocumentError
from ragstone.extract import tesseract
from ragstone.reading.passages import Extraction
from ragstone.reading.read import limits, read_file
from ragstone.sandbox.parent import Sandbox
from ragstone.sandbox.protocol import ExtractRequest
from ragstone.server import functions
from ragstone.stores.files import Snapshot, snapshot

_Row = tuple[int, int | None, str | None, int, int, str]


def preview_chunks(
    plpy: Any, content: str | None, file_path: str | None, pipeline: str, file_name: str | None
) -> Iterator[_Row]:
    """Rows of rag.chunk_preview.

    Raises SQLSTATE 22023 for arguments that make no sense, 42704 for an unknown pipeline, 22000
    for a document that cannot be read, with its reason.
    """
    db = Database(plpy)
    if (content is None) == (file_path is None):
        db.error(
            "a preview is of either content or file_path",
            sqlstate="22023",
            hint="Type: select * from rag.preview_chunks('some text');"
            " or: select * from rag.preview_chunks(file_path => 'report.pdf');",
        )
    chosen = db.pipeline_named(pipeline)
    if chosen is None:
        db.error(
            f'there is no pipeline "{pipeline}"',
            sqlstate="42704",
            hint="Pipelines are listed by: select name, state from rag.pipelines;",
        )
    settings = db.settings(None)
    allowed = limits(settings)
    name = file_name or file_path or ""
    request = ExtractRequest(
        name,
        functions.tokenizer_path(chosen.model),
        allowed,
        chosen.chunk_spec,
        ocr=tesseract.ocr(chosen.ocr),
    )
    try:
        source = _read(db, content, file_path, settings["document_root"], allowed.max_file_bytes)
        with source, Sandbox[Extraction]() as sandbox:
            sandbox.submit(request, source.fd)
            chunks = sandbox.result(db.check).chunks
    except DocumentError as error:
        fields = {"detail": error.detail, "hint": error.hint}
        db.error(
            error.message, sqlstate="22000", **{name: text for name, text in fields.items() if text}
        )
    for index, chunk in enumerate(chunks):
        yield (
            index,
            chunk.page_number,
            chunk.section,
            chunk.char_count,
            chunk.token_count,
            chunk.content,
        )


def _read(
    db: Database, content: str | None, file_path: str | None, root: str | None, max_bytes: int
) -> Snapshot:
    if content is not None:
        return snapshot(content.encode(), max_bytes, db.check)
    return read_file(root, file_path, max_bytes, db.check)

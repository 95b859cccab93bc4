"""What a document would become, without storing it: the worker's path up to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ragstone.db.catalog import Catalog
from ragstone.db.connection import Connection
from ragstone.db.rows import Pipeline
from ragstone.errors import DocumentError
from ragstone.extract import tesseract
from ragstone.extract.options import Limits
from ragstone.reading.chunk import Chunk
from ragstone.reading.passages import Extraction
from ragstone.reading.read import limits
from ragstone.sandbox.parent import Sandbox
from ragstone.sandbox.protocol import ExtractRequest
from ragstone.stores.places import open_document
from ragstone.stores.port import Snapshot

_Row = tuple[int, int | None, str | None, int, int, str]


def preview_chunks(
    connection: Connection,
    content: str | None,
    file_path: str | None,
    pipeline: str | None,
    file_name: str | None,
) -> Iterator[_Row]:
    """Rows of rag.chunk_preview.

    Raises SQLSTATE 22023 for arguments that make no sense, 42704 for an unknown pipeline, 22000
    for a document that cannot be read, with its reason.
    """
    if (content is None) == (file_path is None):
        connection.error(
            "a preview is of either content or file_path",
            sqlstate="22023",
            hint="Type: select * from rag.preview_chunks('some text');"
            " or: select * from rag.preview_chunks(file_path => 'report.pdf');",
        )
    catalog = Catalog(connection)
    chosen = _pipeline(connection, catalog, pipeline)
    settings = catalog.settings(None)
    allowed = limits(settings)
    check = connection.check
    try:
        document = open_document(
            file_path,
            root=settings["document_root"],
            content=None if content is None else content.encode,
        )
        with document:
            source = document.snapshot(allowed.max_file_bytes, check)
        chunks = _chunks(source, _request(file_name or file_path or "", chosen, allowed), check)
    except DocumentError as error:
        connection.error(error.message, sqlstate="22000", detail=error.detail, hint=error.hint)
    for index, chunk in enumerate(chunks):
        yield (
            index,
            chunk.page_number,
            chunk.section,
            chunk.char_count,
            chunk.token_count,
            chunk.content,
        )


def _pipeline(connection: Connection, catalog: Catalog, name: str | None) -> Pipeline:
    hint = "Pipelines are listed by: select name, state from rag.pipelines;"
    if name is None:
        connection.error("the name of the pipeline is null", sqlstate="22023", hint=hint)
    chosen = catalog.pipeline_named(name)
    if chosen is None:
        connection.error(f'there is no pipeline "{name}"', sqlstate="42704", hint=hint)
    return chosen


def _request(name: str, pipeline: Pipeline, allowed: Limits) -> ExtractRequest:
    return ExtractRequest(
        name,
        pipeline.model,
        allowed,
        pipeline.chunk_spec,
        ocr=tesseract.ocr(pipeline.ocr),
    )


def _chunks(
    source: Snapshot, request: ExtractRequest, check: Callable[[], None]
) -> Sequence[Chunk]:
    with source, Sandbox[Extraction]() as sandbox:
        sandbox.submit(request, source.fd, check)
        return sandbox.result(check).chunks

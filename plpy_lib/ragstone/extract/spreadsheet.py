"""Spreadsheets: XLSX row by row, the older and the free formats by calamine."""

from __future__ import annotations

import datetime
import io
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import DocumentError
from . import ooxml, opendocument
from .archive import open_archive
from .cleaning import clean_text
from .encoding import decode
from .model import Collector, Extracted, Source, names_columns, row_text
from .options import Limits

# If values are further apart than this, the cells in between are skipped.
_MAX_EMPTY_ROWS = 100_000


def extract(source: Source, limits: Limits) -> Extracted:
    """Sheets are pages and sections; rows as `a | b`, the names of the columns known to each row.

    Raises DocumentError: damaged, encrypted, too_large, too_many_pages, too_much_text.
    """
    collector = Collector(limits)
    known: dict[str, str] = {}
    if source.data.startswith(b"PK"):
        with open_archive(source.data, limits) as archive:
            known = ooxml.properties(archive) or opendocument.properties(archive)
    else:
        known = _old_properties(source.data)
    sheets = _sheets_of_xlsx(source) or _sheets_by_calamine(source.data)
    if len(sheets) > limits.max_pages:
        raise DocumentError(
            "too_many_pages",
            "the document has more sheets than the limit max_pages",
            detail=f"It has {len(sheets):,} sheets; the limit is {limits.max_pages:,}.",
            hint="Split the document, or raise the limit.",
        )
    partial: list[str] = []
    for number, (name, rows) in enumerate(sheets, start=1):
        collector.leave()
        collector.enter(clean_text(name) or str(number), 1)
        if not _add_sheet(rows, number, collector):
            partial.append(f"sheet {number} from a stretch of {_MAX_EMPTY_ROWS:,} empty rows on")
    title = known.pop("title", None)
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=title,
        author=known.pop("author", None),
        language=known.pop("language", None),
        created=known.pop("created", None),
        metadata=known,
        pages=len(sheets),
        partial="not read: " + ", ".join(partial[:10]) if partial else None,
    )


def _old_properties(data: bytes) -> dict[str, str]:
    import olefile

    try:
        with olefile.OleFileIO(io.BytesIO(data)) as container:
            found = container.get_metadata()
    except Exception:
        return {}  # not worth losing the text for
    known = {"title": found.title, "author": found.author}
    texts = {name: decode(value)[0] for name, value in known.items() if value}
    if isinstance(found.create_time, datetime.datetime):
        texts["created"] = found.create_time.isoformat()
    return {name: text for name, value in texts.items() if (text := clean_text(value))}


_Rows = Iterable[Iterable[Any]]


def _add_sheet(rows: _Rows, number: int, collector: Collector) -> bool:
    """Return False if the rest was left out."""
    header: str | None = None
    empty, first = 0, True
    for row in rows:
        cells = [_shown(cell) for cell in row]
        text = row_text(cells)
        if not text:
            empty += 1
            if empty > _MAX_EMPTY_ROWS:
                return False
            if empty > 1:
                header, first = None, True  # what follows is another table
            continue
        empty = 0
        collector.add(text, page=number, kind="table", header=header)
        if first and names_columns(cells):
            header = text[:300]
        first = False
    return True


def _shown(cell: Any) -> str:
    """A value as it is shown, as far as that is known without its format."""
    match cell:
        case None | "":
            return ""
        case bool():
            return "TRUE" if cell else "FALSE"
        case float():
            return str(int(cell)) if cell.is_integer() and abs(cell) < 1e15 else f"{cell:.12g}"
        case datetime.datetime():
            midnight = cell.time() == datetime.time()
            return cell.date().isoformat() if midnight else cell.isoformat(" ", "minutes")
    return str(cell)


def _sheets_of_xlsx(source: Source) -> list[tuple[str, _Rows]]:
    """With openpyxl, which reads row by row however far apart the cells are; [] if it cannot."""
    if not source.mime_type.endswith("spreadsheetml.sheet"):
        return []
    import openpyxl

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            book = openpyxl.load_workbook(
                io.BytesIO(source.data), read_only=True, data_only=True, keep_links=False
            )
        except MemoryError:
            raise
        except Exception:
            return []  # it is strict about styles and names that are no use here
    return [(sheet.title, _values(sheet)) for sheet in book.worksheets]


def _values(sheet: Any) -> Iterator[Iterable[Any]]:
    # The declared dimension can be wrong, and openpyxl would pad each row to it.
    sheet.reset_dimensions()
    yield from sheet.iter_rows(values_only=True)


def _sheets_by_calamine(data: bytes) -> list[tuple[str, _Rows]]:
    import python_calamine

    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        return [(name, book.get_sheet_by_name(name).iter_rows()) for name in book.sheet_names]
    except python_calamine.PasswordError:
        raise DocumentError(
            "encrypted", "the document is protected by a password", detail="It is a spreadsheet."
        ) from None
    except (python_calamine.CalamineError, OSError, zipfile.BadZipFile) as error:
        raise DocumentError(
            "damaged", "the document is damaged", detail=f"It is no readable spreadsheet: {error}"
        ) from None
    except BaseException as error:
        # A panic in Rust is not an Exception, but the child continues.
        if type(error).__name__ != "PanicException":
            raise
        raise DocumentError(
            "damaged", "the document is damaged", detail="Its reader gave up on it."
        ) from None

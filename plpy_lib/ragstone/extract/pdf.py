"""PDF documents, page by page."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from ..errors import DocumentError
from .cleaning import clean_text
from .layout import Bookmark, Composer, drop_repeated_margins
from .model import Collector, Extracted, Source
from .ocr import DPI, MAX_PIXELS, Engine, Recogniser, no_text, some
from .options import Limits
from .page import Line, Page

_PRINTED_LINE = re.compile("[^\r\n\ufffe\x02]+[\ufffe\x02]?")
_LEADERS = re.compile(r"(?: ?[.·_]){5,} ?| ?…{2,} ?")
# Only pages with one of these are examined letter by letter.
_MATHEMATICS = re.compile("[∈→⇒⇔⊆∩∪≤≥∞∀∃∼∅◦∗−]")
# Up to three letters in a row, and the spaces after such: a formula has no more.
_NO_WORD = re.compile(
    r"(?<![^\W\d_])[^\W\d_]{1,3}(?![^\W\d_])(?:[\d_]+(?:[^\W\d_]{1,3}(?![^\W\d_]))?)* ?|\d+"
)
_TEX_SYMBOLS = {"0": "′", "k": "‖", "h": "⟨", "i": "⟩"}
_SYMBOL_FONT, _ITALIC_FONT = (b"CMSY", b"CMBSY"), b"CMMI"
_SLANT = 0.1
_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?")
_INFO = {"Subject": "subject", "Keywords": "keywords", "Creator": "creator", "Producer": "producer"}
# Placeholders that programs write if nobody gave a title or a name.
_PLACEHOLDERS = {"", "untitled", "unspecified", "anonymous", "unknown", "none"}


def extract(source: Source, limits: Limits) -> Extracted:
    """Paragraphs with their page, under the headings of the outline or, without one, of size.

    Raises DocumentError: encrypted, damaged, no_text, too_many_pages, too_much_text.
    """
    document = _open(source.data)
    try:
        count = len(document)
        if count > limits.max_pages:
            raise DocumentError(
                "too_many_pages",
                "the document has more pages than the limit max_pages",
                detail=f"It has {count:,} pages; the limit is {limits.max_pages:,}.",
                hint="Split the document, or raise the limit.",
            )
        pages, failed = _read_pages(document, limits)
        without = [page.number for page in pages if not page.lines]
        if source.ocr and without:
            pages = _recognise(document, pages, source.ocr)
        outline = _outline(document, limits)
        info = _info(document)
        language = _language(document)
    finally:
        document.close()
    if not any(page.lines for page in pages):
        raise _no_text(count, failed, source.ocr)
    if without:
        still = [page.number for page in pages if not page.lines]
        info |= {"pages_without_text": some(still)} if still else {}
        if source.ocr and source.ocr.recognised:
            info["pages_recognised"] = some(source.ocr.recognised)
    drop_repeated_margins(pages)
    collector = Collector(limits)
    Composer(pages, outline, collector).compose()
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=info.pop("title", None),
        author=info.pop("author", None),
        language=language,
        created=info.pop("created", None),
        metadata=info,
        pages=count,
        partial=_partial(failed, count, source.ocr),
    )


def _open(data: bytes) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        code = getattr(error, "err_code", None)
        if code in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
            raise DocumentError(
                "encrypted",
                "the document is protected by a password",
                detail="The PDF cannot be opened without one.",
            ) from None
        raise DocumentError(
            "damaged", "the document is damaged", detail=f"It is not a readable PDF: {error}"
        ) from None


def _read_pages(document: pypdfium2.PdfDocument, limits: Limits) -> tuple[list[Page], list[int]]:
    pages: list[Page] = []
    failed: list[int] = []
    left = limits.max_text_characters
    for index in range(len(document)):
        try:
            page = _read_page(document, index)
        except pypdfium2.PdfiumError:
            failed.append(index + 1)
            continue
        left -= sum(len(line.text) for line in page.lines)
        if left < 0:
            raise DocumentError(
                "too_much_text",
                "the document holds more text than the limit max_text_characters",
                detail=f"The limit, {limits.max_text_characters:,}, was passed on page"
                f" {index + 1}.",
                hint="Split the document, or raise the limit.",
            )
        pages.append(page)
    return pages, failed


def _read_page(document: pypdfium2.PdfDocument, index: int) -> Page:
    page = document[index]
    try:
        text_page = page.get_textpage()
        try:
            text = text_page.get_text_range()
            lines = list(_lines(text_page, text))
        finally:
            text_page.close()
        return Page(index + 1, page.get_height(), _rejoin(lines))
    finally:
        page.close()


def _lines(text_page: Any, text: str) -> Iterator[Line]:
    """Each printed line, with the boxes of its first and last character.

    PDFium puts a mark for the hyphen at a line's end and no line break after it.
    """
    raw = text_page.raw
    is_mathematics = _MATHEMATICS.search(text) is not None
    for match in _PRINTED_LINE.finditer(text):
        part = match[0].rstrip(" \t")
        lead = len(part) - len(part.lstrip(" \t"))
        if not part[lead:]:
            continue
        first = pdfium.FPDFText_GetCharIndexFromTextIndex(raw, match.start() + lead)
        last = pdfium.FPDFText_GetCharIndexFromTextIndex(raw, match.start() + len(part) - 1)
        if first >= 0:
            shown = part[lead:]
            if is_mathematics:
                shown = _set_right(text_page, shown, match.start() + lead)
            shown = _LEADERS.sub(" … ", shown)
            yield _line(text_page, shown, first, last if last >= 0 else first)


def _set_right(text_page: Any, text: str, start: int) -> str:
    """The text of a formula as it is printed; `start` is its place in the text of the page.

    TeX's font of symbols has primes, norms and angle brackets where others have "0", "k", "h" and
    "i", under names that PDFium does not know. Letters in italics are taken for two words where
    the slant leaves a gap.
    """
    raw = text_page.raw
    letters = list(text)
    for token in _NO_WORD.finditer(text):
        for place in range(token.start(), token.end()):
            letter = text[place]
            if letter not in _TEX_SYMBOLS and letter != " ":
                continue
            index = pdfium.FPDFText_GetCharIndexFromTextIndex(raw, start + place)
            if letter == " ":
                letters[place] = "" if _is_slant(text_page, index) else " "
            elif _font(raw, index).startswith(_SYMBOL_FONT):
                letters[place] = _TEX_SYMBOLS[letter]
    return "".join(letters)


def _is_slant(text_page: Any, index: int) -> bool:
    """Whether a space between two letters of TeX's italics is an artefact."""
    raw = text_page.raw
    if not pdfium.FPDFText_IsGenerated(raw, index) or index < 1:
        return False
    if not all(_font(raw, near).startswith(_ITALIC_FONT) for near in (index - 1, index + 1)):
        return False
    gap = text_page.get_charbox(index + 1, loose=True)[0]
    gap -= text_page.get_charbox(index - 1, loose=True)[2]
    return bool(gap < _SLANT * pdfium.FPDFText_GetFontSize(raw, index - 1))


def _font(raw: Any, index: int) -> bytes:
    """The name of a letter's font, without the mark of a subset."""
    buffer, flags = ctypes.create_string_buffer(64), ctypes.c_int()
    pdfium.FPDFText_GetFontInfo(raw, index, buffer, len(buffer), flags)
    name = buffer.value
    return name[7:] if name[6:7] == b"+" else name


def _line(text_page: Any, text: str, first: int, last: int) -> Line:
    # The loose box is the height of the font: the same for "x" and for "(".
    left, bottom, right, top = text_page.get_charbox(first, loose=True)
    _, _, last_right, _ = text_page.get_charbox(last, loose=True)
    height = top - bottom
    size = pdfium.FPDFText_GetFontSize(text_page.raw, first)
    if not 0.5 * height <= size <= 2 * height:  # scaled elsewhere in the page
        size = height or 1.0
    return Line(text, size, left, max(right, last_right), bottom, top)


def _rejoin(lines: list[Line]) -> list[Line]:
    """Join the pieces of a printed line: superscripts and the text after them."""
    joined: list[Line] = []
    for line in lines:
        before = joined[-1] if joined else None
        if before and _beside(before, line):
            gap = line.left - before.right
            before.text += ("" if gap < 0.15 * before.size else " ") + line.text
            before.right = max(before.right, line.right)
            if line.size > before.size * 1.2 and len(before.text) < 4:
                before.size, before.bottom, before.top = line.size, line.bottom, line.top
            continue
        joined.append(line)
    return joined


def _beside(before: Line, line: Line) -> bool:
    overlap = min(before.top, line.top) - max(before.bottom, line.bottom)
    gap = line.left - before.right
    if gap < -0.5 * before.size:
        return False
    # The cells of a row can be far apart, but they are on exactly the same line.
    is_row = abs(before.bottom - line.bottom) < 0.1 * line.size
    return is_row or (gap <= 3 * before.size and overlap > 0.3 * min(before.size, line.size))


# --- outline and metadata ----------------------------------------------------------------------


def _outline(document: pypdfium2.PdfDocument, limits: Limits) -> dict[int, list[Bookmark]]:
    """Bookmarks by page number. A cyclic or endless tree is cut at a limit."""
    found: dict[int, list[Bookmark]] = {}
    try:
        for count, item in enumerate(document.get_toc(max_depth=6)):
            if count >= 5 * limits.max_pages:
                break
            target = item.get_dest()
            title = " ".join(clean_text(item.get_title() or "").split())
            index = target.get_index() if target else None
            if title and target is not None and index is not None:
                found.setdefault(index + 1, []).append(
                    Bookmark(title, item.level + 1, _view_top(target))
                )
    except (pypdfium2.PdfiumError, ValueError):
        pass  # the text does not depend on it
    return found


def _view_top(target: Any) -> float | None:
    mode, position = target.get_view()
    if mode == pdfium.PDFDEST_VIEW_XYZ and len(position) > 1:
        return float(position[1]) or None
    return float(position[0]) if mode == pdfium.PDFDEST_VIEW_FITH and position else None


def _info(document: pypdfium2.PdfDocument) -> dict[str, str]:
    raw = {key: clean_text(value) for key, value in document.get_metadata_dict().items() if value}
    found = {name: raw[key] for key, name in _INFO.items() if raw.get(key)}
    for key, name in (("Title", "title"), ("Author", "author")):
        if raw.get(key, "").strip("()").lower() not in _PLACEHOLDERS:
            found[name] = raw[key]
    if match := _DATE.match(raw.get("CreationDate", "")):
        year, month, day, hour, minute, second = (part or "" for part in match.groups())
        found["created"] = f"{year}-{month or '01'}-{day or '01'}"
        if hour:
            found["created"] += f"T{hour}:{minute or '00'}:{second or '00'}"
    return found


def _language(document: pypdfium2.PdfDocument) -> str | None:
    function: Callable[..., int] | None = getattr(pdfium, "FPDFCatalog_GetLanguage", None)
    if function is None:
        return None
    size = function(document.raw, None, 0)
    if not 2 < size < 200:
        return None
    buffer = ctypes.create_string_buffer(size)
    function(document.raw, ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort)), size)
    return buffer.raw[:size].decode("utf-16-le", "ignore").strip("\0 ") or None


def _recognise(document: pypdfium2.PdfDocument, pages: list[Page], ocr: Recogniser) -> list[Page]:
    """The pages, with those that have no text recognised."""
    try:
        return [
            page if page.lines else ocr.page(page.number, partial(_show, document, page.number - 1))
            for page in pages
        ]
    finally:
        ocr.close()


def _show(
    document: pypdfium2.PdfDocument, index: int, engine: Engine
) -> tuple[float, float] | None:
    """The page as a picture; None if it has neither a picture nor a drawing."""
    page = document[index]
    try:
        if pdfium.FPDFPage_CountObjects(page.raw) < 1:
            return None
        width, height = page.get_size()
        scale = min(DPI / 72, (MAX_PIXELS / max(1.0, width * height)) ** 0.5)
        bitmap = page.render(scale=scale, grayscale=True)
        try:
            size = (bitmap.width, bitmap.height, bitmap.stride)
            engine.show_grey(bitmap.buffer, *size, 72 * scale)
        finally:
            bitmap.close()
        return scale, height
    except pypdfium2.PdfiumError:
        return None
    finally:
        page.close()


def _no_text(count: int, failed: list[int], ocr: Recogniser | None) -> DocumentError:
    if failed and len(failed) == count:
        return DocumentError(
            "damaged", "the document is damaged", detail=f"None of its {count} pages can be read."
        )
    if count == 0:
        return DocumentError("no_text", "the document holds no text", detail="It has no page.")
    pages = "Its only page holds" if count == 1 else f"Its {count} pages hold"
    return no_text(f"{pages} only pictures or drawings", ocr)


def _partial(failed: list[int], count: int, ocr: Recogniser | None) -> str | None:
    reasons = []
    if failed:
        reasons.append(f"{len(failed)} of {count} pages could not be read: {_some(failed)}")
    if ocr and (missing := ocr.partial()):
        reasons.append(missing)
    return "; ".join(reasons) or None


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown + (", …" if len(numbers) > 10 else "")

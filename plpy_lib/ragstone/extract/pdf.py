"""PDF documents, page by page."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from ..errors import DocumentError
from .cleaning import clean_text, is_blank
from .model import MAX_HEADING, Collector, Extracted, Limits, Source

# A line this much larger than the body is a heading, if it is short.
_HEADING_RATIO = 1.15
_MAX_HEADING_LEVELS = 3
# Headers and footers stand within this share of the page's height from its edge.
_MARGIN = 0.15
_NUMBER_MARGIN = 0.2
_MAX_HEADER = 120
# A line in the margin on fewer pages may be text that happens to recur.
_MIN_REPEATS = 3
_BULLET = re.compile(r"^(?:[•▪■●◦‣⁃∙*–—-]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,5})[.)]|\[\d{1,3}\])\s+\S")
_PRINTED_LINE = re.compile("[^\r\n\ufffe\x02]+[\ufffe\x02]?")
_LEADERS = re.compile(r"(?: ?[.·_]){5,} ?| ?…{2,} ?")
_COMPOUND = re.compile(r"[^\W\d_]+-[^\W\d_]+")
_PAGE_WORDS = frozenset(("page", "seite", "pagina", "página", "p", "s", "strana", "sida"))
_HYPHENS = ("\ufffe", "\x02", "\u00ad")
_END = (".", "!", "?", ":", ";", "。", "！", "？", "…", ".”", ".“", ".)", '."')
_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?")
_INFO = {"Subject": "subject", "Keywords": "keywords", "Creator": "creator", "Producer": "producer"}
# A line is no part of running text if it ends this share of the width before the longest.
_RAGGED = 0.15
_MAX_ORNAMENT = 4
# What programs write where nobody gave a title or a name.
_PLACEHOLDERS = {"", "untitled", "unspecified", "anonymous", "unknown", "none"}


@dataclass(slots=True, eq=False)
class _Line:
    """A line of text with its box, in points from the page's lower left corner."""

    text: str
    size: float
    left: float
    right: float
    bottom: float
    top: float


@dataclass(frozen=True)
class _Page:
    number: int
    height: float
    lines: list[_Line]


@dataclass(frozen=True)
class _Bookmark:
    title: str
    level: int
    top: float | None


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
        outline = _outline(document, limits)
        info = _info(document)
        language = _language(document)
    finally:
        document.close()
    if not any(page.lines for page in pages):
        raise _no_text(count, failed)
    _drop_repeated_margins(pages)
    collector = Collector(limits)
    _Composer(pages, outline, collector).compose()
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=info.pop("title", None),
        author=info.pop("author", None),
        language=language,
        created=info.pop("created", None),
        metadata=info,
        pages=count,
        partial=_partial(failed, count),
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


def _read_pages(document: pypdfium2.PdfDocument, limits: Limits) -> tuple[list[_Page], list[int]]:
    pages: list[_Page] = []
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


def _read_page(document: pypdfium2.PdfDocument, index: int) -> _Page:
    page = document[index]
    try:
        text_page = page.get_textpage()
        try:
            text = text_page.get_text_range()
            lines = list(_lines(text_page, text))
        finally:
            text_page.close()
        return _Page(index + 1, page.get_height(), _rejoin(lines))
    finally:
        page.close()


def _lines(text_page: Any, text: str) -> Iterator[_Line]:
    """Each printed line, with the boxes of its first and last character.

    PDFium puts a mark for the hyphen at a line's end and no line break after it.
    """
    raw = text_page.raw
    for match in _PRINTED_LINE.finditer(text):
        part = match[0].rstrip(" \t")
        lead = len(part) - len(part.lstrip(" \t"))
        if not part[lead:]:
            continue
        first = pdfium.FPDFText_GetCharIndexFromTextIndex(raw, match.start() + lead)
        last = pdfium.FPDFText_GetCharIndexFromTextIndex(raw, match.start() + len(part) - 1)
        if first >= 0:
            shown = _LEADERS.sub(" … ", part[lead:])
            yield _line(text_page, shown, first, last if last >= 0 else first)


def _line(text_page: Any, text: str, first: int, last: int) -> _Line:
    # The loose box is the height of the font: the same for "x" and for "(".
    left, bottom, right, top = text_page.get_charbox(first, loose=True)
    _, _, last_right, _ = text_page.get_charbox(last, loose=True)
    height = top - bottom
    size = pdfium.FPDFText_GetFontSize(text_page.raw, first)
    if not 0.5 * height <= size <= 2 * height:  # scaled elsewhere in the page
        size = height or 1.0
    return _Line(text, size, left, max(right, last_right), bottom, top)


def _rejoin(lines: list[_Line]) -> list[_Line]:
    """Put pieces of one printed line together again: superscripts and what follows them."""
    joined: list[_Line] = []
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


def _beside(before: _Line, line: _Line) -> bool:
    overlap = min(before.top, line.top) - max(before.bottom, line.bottom)
    gap = line.left - before.right
    if gap < -0.5 * before.size:
        return False
    # The cells of a row can stand far apart, but on the very same line.
    is_row = abs(before.bottom - line.bottom) < 0.1 * line.size
    return is_row or (gap <= 3 * before.size and overlap > 0.3 * min(before.size, line.size))


# --- headers and footers -----------------------------------------------------------------------


def _drop_repeated_margins(pages: list[_Page]) -> None:
    """Remove lines that recur in the margins of pages, and those that bear the page's number.

    One by one from the edge inwards, so that a line of text is reached only past a header. The
    first of lines alike stays: a letterhead is searched for, too.
    """
    seen: Counter[str] = Counter()
    for page in pages:
        seen.update({_key(line) for line in page.lines if _in_margin(page, line)})
    shift, body = _number_shift(pages), _body_size(pages)
    met: set[str] = set()
    for page in pages:
        for from_top in (True, False):
            for line in sorted(page.lines, key=lambda line: line.top, reverse=from_top):
                is_repeated = seen[_key(line)] >= _MIN_REPEATS and _in_margin(page, line)
                if is_repeated and _key(line) not in met:
                    met.add(_key(line))
                elif is_repeated or _bears_number(line, page, shift, body):
                    page.lines.remove(line)
                else:
                    break


def _number_shift(pages: list[_Page]) -> int | None:
    """What to add to a page's position to have the number printed on it, None if unknown."""
    shifts: Counter[int] = Counter()
    for page in pages:
        edges = [line for line in (_edge(page.lines, True), _edge(page.lines, False)) if line]
        numbers = {number for line in edges for number in _outer_numbers(line)}
        shifts.update(number - page.number for number in numbers)
    if not shifts:
        return None
    shift, count = shifts.most_common(1)[0]
    return shift if count >= max(_MIN_REPEATS, 0.4 * len(pages)) else None


def _bears_number(line: _Line, page: _Page, shift: int | None, body: float) -> bool:
    """Whether it is a page number, alone or in a running title: apart, and in no large type."""
    if shift is None or page.number + shift not in _outer_numbers(line):
        return False
    if not _in_margin(page, line) or len(line.text) > _MAX_HEADER:
        return False
    others = [each for each in page.lines if each is not line]
    space = min((_distance(line, each) for each in others), default=page.height)
    return line.size <= 1.1 * body and space > 0.4 * line.size


def _distance(one: _Line, other: _Line) -> float:
    """How far apart two lines are vertically, 0 where they are side by side."""
    return max(0.0, one.bottom - other.top, other.bottom - one.top)


def _outer_numbers(line: _Line) -> list[int]:
    """The line's first and last word, or the one after "page", where they are numbers."""
    words = line.text.strip("-–— ").split()
    outer = [*words[:1], *words[-1:]]
    if len(words) > 1 and words[0].lower().strip(".") in _PAGE_WORDS:
        outer = [words[1]]
    return [int(word) for word in outer if word.isascii() and word.isdigit() and len(word) < 6]


def _edge(lines: list[_Line], from_top: bool) -> _Line | None:
    if from_top:
        return max(lines, key=lambda line: line.top, default=None)
    return min(lines, key=lambda line: line.bottom, default=None)


def _in_margin(page: _Page, line: _Line) -> bool:
    share = _NUMBER_MARGIN if line.text.strip(" -–—").isdigit() else _MARGIN
    edge = share * page.height
    return line.bottom > page.height - edge or line.top < edge


def _key(line: _Line) -> str:
    return " ".join(line.text.lower().split())


# --- outline and metadata ----------------------------------------------------------------------


def _outline(document: pypdfium2.PdfDocument, limits: Limits) -> dict[int, list[_Bookmark]]:
    """Bookmarks by page number. A cyclic or endless tree is cut at a bound, not followed."""
    found: dict[int, list[_Bookmark]] = {}
    try:
        for count, item in enumerate(document.get_toc(max_depth=6)):
            if count >= 5 * limits.max_pages:
                break
            target = item.get_dest()
            title = " ".join(clean_text(item.get_title() or "").split())
            index = target.get_index() if target else None
            if title and target is not None and index is not None:
                found.setdefault(index + 1, []).append(
                    _Bookmark(title, item.level + 1, _view_top(target))
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


# --- paragraphs --------------------------------------------------------------------------------


class _Composer:
    """Makes paragraphs and headings of lines."""

    def __init__(
        self, pages: list[_Page], outline: dict[int, list[_Bookmark]], collector: Collector
    ) -> None:
        self._pages = pages
        self._outline = outline
        self._collector = collector
        self._body = _body_size(pages)
        self._compounds = {
            compound.lower()
            for page in pages
            for line in page.lines
            for compound in _COMPOUND.findall(line.text)
        }
        self._heading_sizes = [] if outline else _heading_sizes(pages, self._body)

    def compose(self) -> None:
        for page in self._pages:
            self._page(page)

    def _page(self, page: _Page) -> None:
        places = _places(page, self._outline.get(page.number, []))
        spacing = _spacing(page.lines)
        paragraph: list[_Line] = []
        for index, line in enumerate(page.lines):
            marks = places.get(index, [])
            if marks or (paragraph and _starts_paragraph(paragraph, line, spacing)):
                self._close(paragraph, page)
                paragraph = []
            for mark in marks:
                self._collector.enter(mark.title, mark.level)
            paragraph.append(line)
        self._close(paragraph, page)
        for mark in places.get(-1, []):
            self._collector.enter(mark.title, mark.level)

    def _close(self, lines: list[_Line], page: _Page) -> None:
        if not lines:
            return
        text = _join(lines, self._compounds)
        if len(text) > _MAX_ORNAMENT and is_blank(text):
            return  # a rule drawn with characters
        if level := self._heading_level(lines, text):
            self._collector.heading(text, level, page=page.number)
            return
        if self._outline and _is_large(lines, self._body) and len(text) <= MAX_HEADING:
            self._collector.add(text, page=page.number, kind="heading")
            return
        bullet = _BULLET.match(text) is not None
        self._collector.add(
            text,
            page=page.number,
            kind="list" if bullet else "paragraph",
            continues=not bullet and self._carries_on(text, page),
        )

    def _heading_level(self, lines: list[_Line], text: str) -> int:
        if not self._heading_sizes or not _is_large(lines, self._body) or len(text) > MAX_HEADING:
            return 0
        if not any(character.isalpha() for character in text):
            return 0
        size = round(lines[0].size)
        larger = sum(other > size for other in self._heading_sizes)
        return min(larger, _MAX_HEADING_LEVELS - 1) + 1

    def _carries_on(self, text: str, page: _Page) -> bool:
        """Whether a sentence goes on from the page before."""
        before = self._collector.blocks[-1] if self._collector.blocks else None
        return (
            before is not None
            and before.page == page.number - 1
            and before.kind == "paragraph"
            and not before.text.endswith(_END)
            and text[:1].islower()
        )


def _body_size(pages: list[_Page]) -> float:
    sizes: Counter[int] = Counter()
    for page in pages:
        for line in page.lines:
            sizes[round(line.size)] += len(line.text)
    return float(sizes.most_common(1)[0][0]) if sizes else 0.0


def _heading_sizes(pages: list[_Page], body: float) -> list[int]:
    sizes = {
        round(line.size)
        for page in pages
        for line in page.lines
        if _is_large([line], body) and len(line.text) <= MAX_HEADING
    }
    return sorted(sizes, reverse=True)


def _is_large(lines: list[_Line], body: float) -> bool:
    return len(lines) <= 4 and all(line.size >= _HEADING_RATIO * body for line in lines)


def _places(page: _Page, marks: list[_Bookmark]) -> dict[int, list[_Bookmark]]:
    """At which line each bookmark's section begins: where its title stands, else where it points.

    -1 stands for after the last line.
    """
    places: dict[int, list[_Bookmark]] = {}
    first = 0
    for mark in marks:
        place = _titled(page, mark, first)
        if place is None:
            place = _below(page, mark, first)
        places.setdefault(place, []).append(mark)
        first = max(first, place)
    return places


def _titled(page: _Page, mark: _Bookmark, first: int) -> int | None:
    wanted = _letters(mark.title)
    for index in range(first, len(page.lines)):
        line = _letters(page.lines[index].text)
        if (
            wanted
            and line
            and (
                line == wanted
                or line.endswith(wanted)
                or (len(line) > 8 and wanted.startswith(line))
            )
        ):
            is_short = len(line) <= len(wanted) + 12
            if is_short:
                return index
    return None


def _below(page: _Page, mark: _Bookmark, first: int) -> int:
    if mark.top is None:
        return first if first < len(page.lines) else -1
    for index in range(first, len(page.lines)):
        if page.lines[index].bottom < mark.top:
            return index
    return -1


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalpha())


def _spacing(lines: list[_Line]) -> float:
    """The usual distance from one line to the next, as a multiple of the size."""
    steps = Counter(
        round((before.bottom - line.bottom) / line.size, 1)
        for before, line in pairwise(lines)
        if line.size and 0.7 < (before.bottom - line.bottom) / line.size < 2.5
    )
    return max(steps.items(), key=lambda item: (item[1], -item[0]))[0] if steps else 1.2


def _starts_paragraph(paragraph: list[_Line], line: _Line, spacing: float) -> bool:
    before = paragraph[-1]
    step = (before.bottom - line.bottom) / max(line.size, 1.0)
    if before.text.endswith(_HYPHENS):
        return False
    if abs(line.size - before.size) > 0.12 * before.size:
        return True
    if step < -1.5 and not before.text.endswith(_END) and line.text[:1].islower():
        return False  # the next column
    if step > spacing * 1.3 + 0.1 or step < -0.5:
        return True
    if _BULLET.match(line.text) and not before.text.endswith(","):
        return True
    width = max(each.right for each in paragraph) - min(each.left for each in paragraph)
    indent = line.left - min(each.left for each in paragraph[-3:])
    is_indented = indent > 0.9 * line.size and len(paragraph) > 1
    ends_early = before.right < max(each.right for each in [*paragraph, line]) - 0.25 * width
    is_end = before.text.endswith(_END)
    return is_end and (is_indented or ends_early)


def _join(lines: list[_Line], compounds: set[str]) -> str:
    """The lines as running text, with words parted at line ends put together.

    Where a line ends well before the others, as in a table or an address, and the next does not
    go on in lower case, the line break stays; where half of the lines do, all breaks stay. In the
    `compounds` that this document writes with a hyphen within a line, the hyphen stays, too.
    """
    left, right = min(line.left for line in lines), max(line.right for line in lines)
    reach = right - _RAGGED * (right - left)
    is_tabular = len(lines) > 2 and 2 * sum(line.right < reach for line in lines) >= len(lines)
    parts: list[str] = []
    before: _Line | None = None
    for line in lines:
        piece = line.text.strip()
        if before is None:
            parts.append(piece)
        elif parts[-1].endswith(_HYPHENS) or _is_parted(parts[-1], piece):
            parts[-1] = _without_hyphen(parts[-1], piece, compounds)
            parts.append(piece)
        else:
            is_end = is_tabular or before.right < reach or "…" in before.text
            keeps = is_end and not piece[:1].islower()
            if keeps:
                parts.append("\n")
            elif not (_is_wide(parts[-1][-1:]) and _is_wide(piece[:1])):
                parts.append(" ")
            parts.append(piece)
        before = line
    return "".join(parts).rstrip("".join(_HYPHENS))


def _is_parted(before: str, after: str) -> bool:
    return before.endswith("-") and before[-2:-1].isalpha() and after[:1].islower()


def _without_hyphen(before: str, after: str, compounds: set[str]) -> str:
    stem = before.rstrip("-" + "".join(_HYPHENS))
    head, tail = _last_word(stem), _first_word(after)
    keeps = after[:1].isupper() or after[:1].isdigit() or f"{head}-{tail}".lower() in compounds
    return stem + "-" if keeps else stem


def _last_word(text: str) -> str:
    words = re.findall(r"[^\W\d_]+", text[-60:])
    return words[-1] if words else ""


def _first_word(text: str) -> str:
    words = re.match(r"[^\W\d_]+", text)
    return words[0] if words else ""


def _is_wide(character: str) -> bool:
    """Chinese and Japanese are written without spaces."""
    return "\u3040" <= character <= "\u9fff" or "\uff00" <= character <= "\uff60"


def _no_text(count: int, failed: list[int]) -> DocumentError:
    if failed and len(failed) == count:
        return DocumentError(
            "damaged", "the document is damaged", detail=f"None of its {count} pages can be read."
        )
    return DocumentError(
        "no_text",
        "the document holds no text",
        detail=f"Its {count} pages hold only pictures or drawings." if count else "It has no page.",
        hint="Run OCR on it, e.g. with ocrmypdf, and replace the file.",
    )


def _partial(failed: list[int], count: int) -> str | None:
    reasons = []
    if failed:
        reasons.append(f"{len(failed)} of {count} pages could not be read: {_some(failed)}")
    return "; ".join(reasons) or None


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown + (", …" if len(numbers) > 10 else "")

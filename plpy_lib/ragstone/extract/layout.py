"""Make headings and paragraphs in reading order of printed lines with their boxes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from .cleaning import is_blank
from .model import MAX_HEADING, Collector
from .page import Line, Page

# A line this much larger than the body is a heading, if it is short.
_HEADING_RATIO = 1.15
_MAX_HEADING_LEVELS = 3
# Headers and footers stand within this share of the page's height from its edge.
_MARGIN = 0.15
_NUMBER_MARGIN = 0.2
_MAX_HEADER = 120
# A line in the margins of fewer pages may be text that recurs by chance.
_MIN_REPEATS = 3
_BULLET = re.compile(r"^(?:[•▪■●◦‣⁃∙*–—-]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,5})[.)]|\[\d{1,3}\])\s+\S")
_COMPOUND = re.compile(r"[^\W\d_]+-[^\W\d_]+")
_PAGE_WORDS = frozenset(("page", "seite", "pagina", "página", "p", "s", "strana", "sida"))
_HYPHENS = ("\ufffe", "\x02", "\u00ad")
_END = (".", "!", "?", ":", ";", "。", "！", "？", "…", ".”", ".“", ".)", '."')
# A line is no part of running text if it ends this share of the width before the longest.
_RAGGED = 0.15
_MAX_ORNAMENT = 4


@dataclass(frozen=True)
class Bookmark:
    title: str
    level: int
    top: float | None


# --- headers and footers -----------------------------------------------------------------------


def drop_repeated_margins(pages: list[Page]) -> None:
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


def _number_shift(pages: list[Page]) -> int | None:
    """The difference between printed page numbers and positions; None if unknown."""
    shifts: Counter[int] = Counter()
    for page in pages:
        edges = [line for line in (_edge(page.lines, True), _edge(page.lines, False)) if line]
        numbers = {number for line in edges for number in _outer_numbers(line)}
        shifts.update(number - page.number for number in numbers)
    if not shifts:
        return None
    shift, count = shifts.most_common(1)[0]
    return shift if count >= max(_MIN_REPEATS, 0.4 * len(pages)) else None


def _bears_number(line: Line, page: Page, shift: int | None, body: float) -> bool:
    """Whether it is a page number, alone or in a running title, apart and in small type."""
    if shift is None or page.number + shift not in _outer_numbers(line):
        return False
    if not _in_margin(page, line) or len(line.text) > _MAX_HEADER:
        return False
    others = [each for each in page.lines if each is not line]
    space = min((_distance(line, each) for each in others), default=page.height)
    return line.size <= 1.1 * body and space > 0.4 * line.size


def _distance(one: Line, other: Line) -> float:
    """The vertical distance of two lines; 0 if they are side by side."""
    return max(0.0, one.bottom - other.top, other.bottom - one.top)


def _outer_numbers(line: Line) -> list[int]:
    """The numbers among the first and last word of the line, and the one after "page"."""
    words = line.text.strip("-–— ").split()
    outer = [*words[:1], *words[-1:]]
    if len(words) > 1 and words[0].lower().strip(".") in _PAGE_WORDS:
        outer = [words[1]]
    return [int(word) for word in outer if word.isascii() and word.isdigit() and len(word) < 6]


def _edge(lines: list[Line], from_top: bool) -> Line | None:
    if from_top:
        return max(lines, key=lambda line: line.top, default=None)
    return min(lines, key=lambda line: line.bottom, default=None)


def _in_margin(page: Page, line: Line) -> bool:
    share = _NUMBER_MARGIN if line.text.strip(" -–—").isdigit() else _MARGIN
    edge = share * page.height
    return line.bottom > page.height - edge or line.top < edge


def _key(line: Line) -> str:
    return " ".join(line.text.lower().split())


# --- paragraphs --------------------------------------------------------------------------------


class Composer:
    """Makes paragraphs and headings of lines."""

    def __init__(
        self, pages: list[Page], outline: dict[int, list[Bookmark]], collector: Collector
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

    def _page(self, page: Page) -> None:
        places = _places(page, self._outline.get(page.number, []))
        spacing = _spacing(page.lines)
        paragraph: list[Line] = []
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

    def _close(self, lines: list[Line], page: Page) -> None:
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

    def _heading_level(self, lines: list[Line], text: str) -> int:
        if not self._heading_sizes or not _is_large(lines, self._body) or len(text) > MAX_HEADING:
            return 0
        if not any(character.isalpha() for character in text):
            return 0
        size = round(lines[0].size)
        larger = sum(other > size for other in self._heading_sizes)
        return min(larger, _MAX_HEADING_LEVELS - 1) + 1

    def _carries_on(self, text: str, page: Page) -> bool:
        """Whether a sentence continues from the previous page."""
        before = self._collector.blocks[-1] if self._collector.blocks else None
        return (
            before is not None
            and before.page == page.number - 1
            and before.kind == "paragraph"
            and not before.text.endswith(_END)
            and text[:1].islower()
        )


def _body_size(pages: list[Page]) -> float:
    sizes: Counter[int] = Counter()
    for page in pages:
        for line in page.lines:
            sizes[round(line.size)] += len(line.text)
    return float(sizes.most_common(1)[0][0]) if sizes else 0.0


def _heading_sizes(pages: list[Page], body: float) -> list[int]:
    sizes = {
        round(line.size)
        for page in pages
        for line in page.lines
        if _is_large([line], body) and len(line.text) <= MAX_HEADING
    }
    return sorted(sizes, reverse=True)


def _is_large(lines: list[Line], body: float) -> bool:
    return len(lines) <= 4 and all(line.size >= _HEADING_RATIO * body for line in lines)


def _places(page: Page, marks: list[Bookmark]) -> dict[int, list[Bookmark]]:
    """At which line each bookmark's section begins: where its title stands, else where it points.

    -1 stands for after the last line.
    """
    places: dict[int, list[Bookmark]] = {}
    first = 0
    for mark in marks:
        place = _titled(page, mark, first)
        if place is None:
            place = _below(page, mark, first)
        places.setdefault(place, []).append(mark)
        first = max(first, place)
    return places


def _titled(page: Page, mark: Bookmark, first: int) -> int | None:
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


def _below(page: Page, mark: Bookmark, first: int) -> int:
    if mark.top is None:
        return first if first < len(page.lines) else -1
    for index in range(first, len(page.lines)):
        if page.lines[index].bottom < mark.top:
            return index
    return -1


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalpha())


def _spacing(lines: list[Line]) -> float:
    """The usual distance from one line to the next, as a multiple of the size."""
    steps = Counter(
        round((before.bottom - line.bottom) / line.size, 1)
        for before, line in pairwise(lines)
        if line.size and 0.7 < (before.bottom - line.bottom) / line.size < 2.5
    )
    return max(steps.items(), key=lambda item: (item[1], -item[0]))[0] if steps else 1.2


def _starts_paragraph(paragraph: list[Line], line: Line, spacing: float) -> bool:
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


def _join(lines: list[Line], compounds: set[str]) -> str:
    """The lines as running text. Words that were divided at line ends are joined.

    Where a line ends well before the others, as in a table or an address, and the next does not
    go on in lower case, the line break stays; where half of the lines do, all breaks stay. In the
    `compounds` that this document writes with a hyphen within a line, the hyphen stays, too.
    """
    left, right = min(line.left for line in lines), max(line.right for line in lines)
    reach = right - _RAGGED * (right - left)
    is_tabular = len(lines) > 2 and 2 * sum(line.right < reach for line in lines) >= len(lines)
    parts: list[str] = []
    before: Line | None = None
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
    """Whether a text is written without spaces, as Chinese and Japanese are."""
    return "\u3040" <= character <= "\u9fff" or "\uff00" <= character <= "\uff60"

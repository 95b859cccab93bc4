"""reStructuredText, read for its structure. Directives are not run, nothing is included."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .encoding import decode
from .model import Collector, Extracted, Kind, Source
from .options import Limits

_RULE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}[ \t]*$")
_DIRECTIVE = re.compile(r"\.\. (?:\|[^|\n]{1,80}\| )?([\w:+.-]{1,60})::[ \t]*(.*)")
_TARGET = re.compile(r"\.\. (?:_[^\n]{1,300}:|\[[^\]\n]{1,60}\])")
_OPTION = re.compile(r"[ \t]*:([\w -]{1,40}):(?:[ \t]+(.*))?$")
_BULLET = re.compile(r"(?:[-*+•]|\(?(?:\d{1,3}|#|[a-zA-Z])[.)])[ \t]+")
_GRID = re.compile(r"\+(?:[-=]{2,}\+)+[ \t]*$")
_SIMPLE_RULE = re.compile(r"={2,}(?:[ \t]+={2,})+[ \t]*$")
_ROLE = re.compile(r":[\w:+.-]{1,40}:`([^`\n]{1,500})`")
_LINK = re.compile(r"`([^`<\n]{1,500}?)[ \t]*<[^>`\n]{1,500}>`__?")
_MARKS = re.compile(
    r"``([^`\n]{1,500})``|`([^`\n]{1,500})`_{0,2}|\*\*([^*\n]{1,500})\*\*|\*([^*\n]{1,500})\*"
)
_CODE = {"code", "code-block", "sourcecode", "literalinclude", "parsed-literal", "highlight"}
_SILENT = {
    "image",
    "figure",
    "include",
    "raw",
    "toctree",
    "contents",
    "index",
    "math",
    "target-notes",
}
_FIELDS = {"author": "author", "authors": "author", "date": "created", "language": "language"}


def extract(source: Source, limits: Limits) -> Extracted:
    """Underlined titles are sections, in the order in which their signs appear."""
    text = decode(source.data)[0].replace("\r\n", "\n").replace("\r", "\n").expandtabs(8)
    reader = _Reader(text.split("\n"), Collector(limits))
    reader.read()
    first = next((block for block in reader.collector.blocks if block.kind == "heading"), None)
    return Extracted(
        blocks=tuple(reader.collector.blocks),
        mime_type=source.mime_type,
        title=first.text if first and first.level == 1 else None,
        author=reader.fields.get("author"),
        language=reader.fields.get("language"),
        created=reader.fields.get("created"),
    )


class _Reader:
    def __init__(self, lines: list[str], collector: Collector) -> None:
        self.collector = collector
        self.fields: dict[str, str] = {}
        self._lines = lines
        self._signs: list[str] = []
        self._at = 0

    def read(self) -> None:
        while self._at < len(self._lines):
            if not self._lines[self._at].strip():
                self._at += 1
            elif not (self._title() or self._directive() or self._table()):
                self._paragraph()

    def _line(self, ahead: int) -> str:
        place = self._at + ahead
        return self._lines[place] if place < len(self._lines) else ""

    def _title(self) -> bool:
        over = _RULE.match(self._line(0)) and self._line(0).rstrip() == self._line(2).rstrip()
        text, rule = (self._line(1), self._line(2)) if over else (self._line(0), self._line(1))
        match = _RULE.match(rule)
        if not match or not text.strip() or len(rule.rstrip()) < min(len(text.strip()), 3):
            return False
        if not over and (text[:1].isspace() or _RULE.match(text)):
            return False
        sign = match[1] * (2 if over else 1)
        if sign not in self._signs:
            self._signs.append(sign)
        self.collector.heading(_inline(text), self._signs.index(sign) + 1)
        self._at += 3 if over else 2
        return True

    def _directive(self) -> bool:
        line = self._line(0)
        if not line.startswith(".."):
            return False
        match = _DIRECTIVE.match(line)
        self._at += 1
        body = list(self._indented())
        if not match:
            return True  # a comment, a target, a footnote's mark
        name, argument = match[1], match[2]
        options = 0
        while options < len(body) and (found := _OPTION.match(body[options])):
            if found[1] == "alt" and found[2]:
                self.collector.add(_inline(found[2]))
            options += 1
        body = body[options:]
        if name in _CODE:
            self.collector.add("\n".join(body), kind="code")
        elif name not in _SILENT:
            self.collector.add(_inline(argument))
            self._inner(body)
        elif name == "figure":
            self._inner(body)
        return True

    def _inner(self, body: list[str]) -> None:
        """The content of a note or a figure as paragraphs. It has no titles."""
        for paragraph in re.split(r"\n\s*\n", "\n".join(body)):
            self.collector.add(_inline(" ".join(paragraph.split())))

    def _indented(self) -> Iterator[str]:
        """The lines that are indented further, without their common indentation."""
        start = self._at
        while self._at < len(self._lines) and (
            not self._line(0).strip() or self._line(0)[:1].isspace()
        ):
            self._at += 1
        lines = self._lines[start : self._at]
        depth = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        yield from (line[depth:] for line in lines)

    def _table(self) -> bool:
        if _GRID.match(self._line(0)):
            self._grid()
            return True
        if not _SIMPLE_RULE.match(self._line(0)):
            return False
        starts = [match.start() for match in re.finditer(r"=+", self._line(0))]
        self._at += 1
        rows: list[list[str]] = []
        while self._line(0).strip() or _SIMPLE_RULE.match(self._line(1)):
            line = self._line(0)
            self._at += 1
            if not _SIMPLE_RULE.match(line) and line.strip():
                ends = [*starts[1:], len(line)]
                rows.append([_inline(line[a:b]) for a, b in zip(starts, ends, strict=True)])
        self.collector.table(rows)
        return True

    def _grid(self) -> None:
        rows: list[list[str]] = []
        row: list[str] = []
        while self._line(0).startswith(("+", "|")):
            line = self._line(0).rstrip()
            self._at += 1
            if line.startswith("+"):
                rows.append(row)
                row = []
                continue
            cells = line.strip("|").split("|")
            row = row + [""] * (len(cells) - len(row))
            row = [
                f"{before} {cell.strip()}"
                for before, cell in zip(row, cells + [""] * (len(row) - len(cells)), strict=True)
            ]
        self.collector.table([_inline(cell) for cell in row] for row in [*rows, row] if row)

    def _paragraph(self) -> None:
        """Lines up to a blank one; a listing if the paragraph before ended with `::`."""
        gathered = [self._line(0).strip()]
        self._at += 1
        while self._line(0).strip() and not _BULLET.match(self._line(0).lstrip()):
            gathered.append(self._line(0).strip())
            self._at += 1
        text = " ".join(gathered)
        if found := _OPTION.match(gathered[0]):
            name = _FIELDS.get(found[1].lower())
            if name and found[2]:
                self.fields.setdefault(name, found[2].strip())
        kind: Kind = "list" if _BULLET.match(text) else "paragraph"
        literal = text.endswith("::")
        self.collector.add(_inline(text.removesuffix(":") if literal else text), kind=kind)
        if literal:
            while self._at < len(self._lines) and not self._line(0).strip():
                self._at += 1
            self.collector.add("\n".join(self._indented()), kind="code")


def _inline(text: str) -> str:
    """The words without the marks around them."""
    text = _LINK.sub(r"\1", _ROLE.sub(r"\1", text))
    return _MARKS.sub(lambda match: next(filter(None, match.groups()), ""), text).strip()

"""Tables as text: CSV and TSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator

from .encoding import decode
from .model import Collector, Extracted, Source
from .options import Limits

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_LINES = 50


def extract(source: Source, limits: Limits) -> Extracted:
    """Rows as `a | b`. Each passage of rows repeats the names of the first row."""
    text, encoding = decode(source.data)
    csv.field_size_limit(limits.max_text_characters)
    collector = Collector(limits)
    delimiter = _delimiter(text)
    if delimiter is None:  # one column: a list
        for line in text.splitlines():
            collector.add(line, kind="table")
    else:
        collector.table(_rows(text, delimiter))
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        metadata={"encoding": encoding},
    )


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    # A NUL would end reading. A quote that is never closed makes the rest one field.
    reader = csv.reader(io.StringIO(text.replace("\x00", ""), newline=""), delimiter=delimiter)
    yield from reader


def _delimiter(text: str) -> str | None:
    """The separator: the character that most lines have equally often outside quotes."""
    lines = [line for line in text[:200_000].splitlines() if line.strip()][:_SAMPLE_LINES]
    best: tuple[float, str] | None = None
    for delimiter in _DELIMITERS:
        counts = Counter(
            len(row) for row in csv.reader([line[:10_000] for line in lines], delimiter=delimiter)
        )
        width, lines_alike = counts.most_common(1)[0] if counts else (1, 0)
        if width > 1 and (best is None or lines_alike > best[0]):
            best = (lines_alike, delimiter)
    return best[1] if best else None

"""Plain text in any known encoding."""

from __future__ import annotations

import re

from .encoding import decode
from .model import Collector, Extracted, Source
from .options import Limits

_PARAGRAPH = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def extract(source: Source, limits: Limits) -> Extracted:
    """Blank lines separate paragraphs; a form feed begins a page.

    Raises DocumentError unsupported for binary rubbish.
    """
    text, encoding = decode(source.data)
    pages = text.split("\f")
    collector = Collector(limits)
    for number, page in enumerate(pages, start=1):
        lines = page.replace("\r\n", "\n").replace("\r", "\n")
        for paragraph in _PARAGRAPH.split(lines):
            collector.add(paragraph, page=number if len(pages) > 1 else None)
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        metadata={"encoding": encoding},
        pages=len(pages) if len(pages) > 1 else None,
    )

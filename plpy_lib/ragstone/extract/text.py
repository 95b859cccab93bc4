"""Plain text in whatever encoding it comes."""

from __future__ import annotations

import codecs
import re

from ..errors import DocumentError
from .model import Collector, Extracted, Limits, Source

_MARKS = (  # UTF-32 before UTF-16, whose little-endian mark it begins with
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Enough letters to tell encodings apart; guessing over megabytes takes seconds.
_SAMPLE_BYTES = 32_768
# No text has more control characters than this share; executables and data do.
_MAX_CONTROLS = 0.02
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_PARAGRAPH = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def extract(source: Source, limits: Limits) -> Extracted:
    """Paragraphs are what blank lines part; a form feed begins a page.

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


def decode(data: bytes) -> tuple[str, str]:
    """The text and the encoding it was in. Raises DocumentError unsupported for what is no text."""
    text, encoding = _decode(data)
    sample = text[:100_000]
    rubbish = len(_CONTROLS.findall(sample)) + sample.count("\ufffd")
    if rubbish > max(4, _MAX_CONTROLS * len(sample)):
        raise DocumentError(
            "unsupported",
            "no text can be extracted from a binary file of no known kind",
            detail=f"{rubbish:,} of its first {len(sample):,} characters are not text.",
        )
    return text, encoding


def _decode(data: bytes) -> tuple[str, str]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace"), encoding
    if wide := _wide_without_mark(data):
        return data.decode(wide, "replace"), wide
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        # One broken byte in a long text is damage, not another encoding.
        if _mostly_utf8(data, error):
            return data.decode("utf-8", "replace"), "utf-8"
    encoding = _guess(data)
    return data.decode(encoding, "replace"), encoding


def _wide_without_mark(data: bytes) -> str | None:
    """UTF-16 without its mark: most text has its zero bytes all on one side."""
    head = data[:2_000]
    even, odd = head[0::2].count(0), head[1::2].count(0)
    half = max(1, len(head) // 2)
    if odd > 0.4 * half and even < 0.02 * half:
        return "utf-16-le"
    if even > 0.4 * half and odd < 0.02 * half:
        return "utf-16-be"
    return None


def _mostly_utf8(data: bytes, error: UnicodeDecodeError) -> bool:
    sample = data[: max(_SAMPLE_BYTES, error.start + 4_096)]
    broken = sample.decode("utf-8", "replace").count("\ufffd")
    wide = sum(byte >= 0xC2 for byte in sample)
    return broken * 20 < wide


def _guess(data: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(_interesting(data)).best()
    if best is None:
        return "windows-1252"
    return {"cp1250": "windows-1250", "ascii": "windows-1252"}.get(best.encoding, best.encoding)


def _interesting(data: bytes) -> bytes:
    """A sample of whole lines, from where the first byte beyond ASCII stands."""
    first = next((place for place, byte in enumerate(data) if byte >= 0x80), 0)
    start = data.rfind(b"\n", 0, first) + 1
    return data[start if first - start < 2_000 else first : first + _SAMPLE_BYTES]

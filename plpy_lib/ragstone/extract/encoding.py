"""Decode bytes in any known encoding."""

from __future__ import annotations

import codecs
import re
from collections import Counter

from ..errors import DocumentError
from .language import LETTERS, rank_languages

MARKS = (  # UTF-32 before UTF-16, whose little-endian mark it begins with
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
_JAPANESE_ESCAPE = re.compile(rb"\x1b\$[@B]")
# The likelier first, which decides ties.
_LATIN = (
    "windows-1252", "windows-1250", "iso8859-2", "windows-1254", "windows-1257", "iso8859-15",
    "iso8859-13", "iso8859-4", "iso8859-16", "iso8859-3", "windows-1258", "cp850", "cp852",
    "mac-roman", "cp437",
)  # fmt: skip
# Characters of any language: quotation marks, dashes, signs. Not the box drawings of DOS.
_COMMON_SIGNS = frozenset("„“”‚‘’«»‹›–—…•·§°©®™€£²³µ×½¼¾¿¡\xa0±")
_HINT_WORDS = 3.0


def decode(data: bytes) -> tuple[str, str]:
    """The text and its encoding. Raises DocumentError unsupported if it is not text."""
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


def wide_without_mark(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without its mark, None if it is neither.

    The high bytes of a text are few: a script has its letters within a few hundred codes.
    """
    head = data[:4_000]
    head = head[: len(head) // 4 * 4]
    if len(head) < 16:
        return None
    columns = [head[place::4] for place in range(4)]
    size = len(columns[0])
    if columns[3].count(0) == size and columns[2].count(0) > 0.95 * size:
        return _if_text(data, "utf-32-le")
    if columns[0].count(0) == size and columns[1].count(0) > 0.95 * size:
        return _if_text(data, "utf-32-be")
    even, odd = head[0::2], head[1::2]
    for high, low, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        is_text = high.count(0) > 0 and low.count(0) < 0.02 * len(low)
        if (
            is_text
            and _top_share(high) > max(0.8, _top_share(low) + 0.1)
            and _if_text(data, encoding)
        ):
            return encoding
    return None


def _top_share(high: bytes) -> float:
    """The share of the three most frequent bytes."""
    return sum(count for _, count in Counter(high).most_common(3)) / len(high)


def _if_text(data: bytes, encoding: str) -> str | None:
    text = data[: _SAMPLE_BYTES // 4 * 4].decode(encoding, "replace")
    fine = sum(character.isprintable() or character.isspace() for character in text)
    return encoding if fine > 0.95 * len(text) and text.count("\ufffd") <= 2 else None


def _decode(data: bytes) -> tuple[str, str]:
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace"), encoding
    if wide := wide_without_mark(data):
        return data.decode(wide, "replace"), wide
    if _JAPANESE_ESCAPE.search(data[:_SAMPLE_BYTES]) and data[:_SAMPLE_BYTES].isascii():
        return data.decode("iso2022-jp", "replace"), "iso2022-jp"
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        # One invalid byte in a long text means damage, not another encoding.
        if _mostly_utf8(data, error):
            return data.decode("utf-8", "replace"), "utf-8"
    encoding = _guess(_interesting(data))
    return data.decode(encoding, "replace"), encoding


def _mostly_utf8(data: bytes, error: UnicodeDecodeError) -> bool:
    sample = data[: max(_SAMPLE_BYTES, error.start + 4_096)]
    broken = sample.decode("utf-8", "replace").count("\ufffd")
    wide = sum(byte >= 0xC2 for byte in sample)
    return broken * 20 < wide


def _guess(sample: bytes) -> str:
    if latin := _latin(sample):
        return latin
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    if best is None:
        return "windows-1252"
    return {"cp1250": "windows-1250", "ascii": "windows-1252"}.get(best.encoding, best.encoding)


def _latin(sample: bytes) -> str | None:
    """The encoding in which a Latin text has the letters of its language; None for other scripts.

    Statistics over bytes confuse these encodings on a page of text; its ASCII words do not.
    """
    ascii_letters = sum(65 <= byte <= 90 or 97 <= byte <= 122 for byte in sample)
    high = sum(byte >= 0x80 for byte in sample)
    if high > 0.4 * ascii_letters:
        return None
    hits = dict(rank_languages(sample.decode("latin-1")))
    most = max(_HINT_WORDS, *hits.values()) if hits else _HINT_WORDS
    best: tuple[float, str] | None = None
    for encoding in _LATIN:
        try:
            text = sample.decode(encoding)
        except UnicodeDecodeError:
            continue
        beyond = [character for character in text if character >= "\x80"]
        for language, letters in LETTERS.items():
            fits = sum(c in letters or 0.8 * (c in _COMMON_SIGNS) for c in beyond)
            score = fits / len(beyond) * (0.8 + 0.2 * hits.get(language, 0.0) / most)
            if best is None or score > best[0] + 1e-9:
                best = (score, encoding)
    return best[1] if best and best[0] > 0.6 else None


def _interesting(data: bytes) -> bytes:
    """A sample of whole lines, from the first byte that is not ASCII on."""
    first = next((place for place, byte in enumerate(data) if byte >= 0x80), 0)
    start = data.rfind(b"\n", 0, first) + 1
    return data[start if first - start < 2_000 else first : first + _SAMPLE_BYTES]

"""The one place where extracted text is cleaned."""

from __future__ import annotations

import re
import unicodedata

# PostgreSQL refuses NULs and lone surrogates; other controls, byte-order marks, zero-width spaces
# and soft hyphens are invisible and would split words in the text index. Zero-width joiners stay:
# Persian and Indic spelling needs them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\u202a-\u202e\u2066-\u2069]+"
)
_NEWLINES = re.compile("\r\n?|\u2028|\u0085|\x0b|\x0c")
_SPACES = re.compile("[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_TRAILING = re.compile(r"[ \t]+\n")
_BLANK_LINES = re.compile(r"\n{3,}")


def clean_text(text: str, *, keep_indent: bool = False) -> str:
    """Text that PostgreSQL stores and a reader sees: NFC, no invisible characters, tidy space.

    With `keep_indent`, as for source code, spaces inside lines are left as they are.
    """
    if text.isascii() and text.isprintable():  # the common case: one line of plain text
        return text.rstrip() if keep_indent else _SPACES.sub(" ", text).strip()
    text = text.replace("\u2029", "\n\n")
    text = _INVISIBLE.sub("", _NEWLINES.sub("\n", text))
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if keep_indent:
        return _BLANK_LINES.sub("\n\n", _TRAILING.sub("\n", text)).strip("\n").rstrip()
    text = _SPACES.sub(" ", text).replace(" \n", "\n").replace("\n ", "\n")
    return _BLANK_LINES.sub("\n\n", text).strip()


def is_blank(text: str) -> bool:
    """Whether a text has no letter and no digit, so that nothing in it can be found."""
    return not any(character.isalnum() for character in text)

"""Make clean text in reading order of a file's bytes. Runs in the confined child."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..errors import DocumentError
from .cleaning import clean_text, is_blank
from .formats import FORMATS, Format, recognise
from .language import guess_language
from .model import Block, Collector, Extracted, Source
from .options import Limits

if TYPE_CHECKING:
    from .ocr import Recogniser

__all__ = [
    "FORMATS",
    "Block",
    "Collector",
    "Extracted",
    "Format",
    "Limits",
    "Source",
    "clean_text",
    "extract",
    "recognise",
]

_MAX_LABEL = 1_000
_MAX_VALUE = 4_000
_MAX_METADATA = 50_000


def extract(data: bytes, name: str, limits: Limits, ocr: Recogniser | None = None) -> Extracted:
    """Recognise `data` by its content, then by its name, and extract its text.

    Pictures of pages are given to `ocr`; None leaves them.

    Raises DocumentError: empty, unsupported, type_not_allowed, damaged, encrypted, no_text,
    too_large, too_many_pages, too_much_text. A parser's own exceptions pass through; the child
    turns them into `damaged`.
    """
    if len(data) > limits.max_file_bytes:
        raise DocumentError(
            "too_large",
            "the document is larger than the limit max_file_bytes",
            detail=f"It has {len(data):,} bytes; the limit is {limits.max_file_bytes:,}.",
            hint="Split the document, or raise the limit.",
        )
    if not data.strip():
        raise DocumentError(
            "empty",
            "the document is empty",
            detail=f"It has {len(data)} bytes, none of them text.",
            hint="Replace the file by one with content.",
        )
    form = recognise(data, name)
    _check_allowed(form, limits)
    # Only the parser that this document needs is loaded, because loading takes most of the start.
    module = importlib.import_module(f"{__name__}.{form.module}")
    found: Extracted = module.extract(Source(name, data, form.mime_type, ocr), limits)
    if all(is_blank(block.text) for block in found.blocks):
        raise DocumentError(
            "no_text",
            "the document holds no text",
            detail=f"It is without a single word. It was read as: {form.label}."
            + (f" Some of it could not be read: {found.partial}." if found.partial else ""),
            hint="If its pages are pictures, run OCR on it and replace the file. An empty form or"
            " template can be left as it is.",
        )
    language = found.language
    if language is None and form.module != "code":
        language = guess_language(_sample(found.blocks))
    return replace(
        found,
        title=_label(found.title),
        author=_label(found.author),
        language=_label(language),
        created=_label(found.created),
        metadata=_described(found.metadata),
        partial=_label(found.partial),
    )


def _label(text: str | None) -> str | None:
    """A property that a file states, on one line and of bounded length."""
    return " ".join(clean_text(text).split())[:_MAX_LABEL] or None if text else None


def _described(metadata: Mapping[str, str]) -> dict[str, str]:
    """What else it says, from the first on: no more than anybody reads."""
    kept: dict[str, str] = {}
    room = _MAX_METADATA
    for name, value in metadata.items():
        name, value = clean_text(name)[:_MAX_LABEL], clean_text(value)[:_MAX_VALUE]
        room -= len(name) + len(value)
        if room < 0:
            break
        kept[name] = value
    return kept


def _check_allowed(form: Format, limits: Limits) -> None:
    if not any(fnmatchcase(form.mime_type, pattern) for pattern in limits.allowed_types):
        raise DocumentError(
            "type_not_allowed",
            "documents of this type are not allowed by the limit allowed_types",
            detail=f"It is of type {form.mime_type} ({form.label}); allowed are"
            f" {','.join(limits.allowed_types)}.",
            hint="Convert the document to an allowed type, or allow this one.",
        )


def _sample(blocks: Sequence[Block]) -> str:
    """Text from the start and the middle, because title pages do not show the language."""
    prose = [block.text for block in blocks if block.kind != "code"]
    middle = prose[len(prose) // 2 :]
    return "\n".join(prose[:100])[:10_000] + "\n" + "\n".join(middle[:100])[:10_000]

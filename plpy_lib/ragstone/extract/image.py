"""Scanned pages that are picture files, if OCR is on."""

from __future__ import annotations

from functools import partial

from ..errors import DocumentError
from .formats import FORMATS, extension
from .layout import Composer, drop_repeated_margins
from .model import Collector, Extracted, Source
from .ocr import Picture, Unavailable, no_text, some
from .options import Limits
from .page import Page


def extract(source: Source, limits: Limits) -> Extracted:
    """The lines of each page as paragraphs; several pages only in TIFF.

    Raises DocumentError: no_text, damaged, too_large, too_many_pages, too_much_text.
    """
    what, recogniser = _what(source), source.ocr
    if recogniser is None:
        raise no_text(what, None)
    pages: list[Page] = []
    try:
        picture = Picture(
            source.data,
            is_tiff=source.mime_type == "image/tiff",
            languages=recogniser.languages,
        )
        while picture.has_page(len(pages)):
            if len(pages) >= limits.max_pages:
                raise DocumentError(
                    "too_many_pages",
                    "the document has more pages than the limit max_pages",
                    detail=f"The limit is {limits.max_pages:,}.",
                    hint="Split the document, or raise the limit.",
                )
            index = len(pages)
            pages.append(recogniser.page(index + 1, partial(picture.show, index)))
    except Unavailable as reason:
        recogniser.unavailable = reason
        raise no_text(what, recogniser) from None
    finally:
        recogniser.close()
    if not recogniser.recognised and not recogniser.given_up:
        raise DocumentError(
            "damaged",
            "the document is damaged",
            detail=f"{what}, but cannot be decoded within the memory allowed.",
        )
    if not any(page.lines for page in pages):
        raise no_text(what, recogniser)
    without = [page.number for page in pages if not page.lines]
    drop_repeated_margins(pages)
    collector = Collector(limits)
    Composer(pages, {}, collector).compose()
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        metadata={"pages_recognised": some(recogniser.recognised)}
        | ({"pages_without_text": some(without)} if without else {}),
        pages=len(pages),
        partial=recogniser.partial(),
    )


def _what(source: Source) -> str:
    suffix = extension(source.name)
    kind = source.mime_type.removeprefix("image/")
    is_other = suffix and not any(
        suffix in form.extensions for form in FORMATS if form.mime_type == source.mime_type
    )
    named = f", though its name ends in .{suffix}" if is_other else ""
    return f"It is a picture ({kind.upper()}){named}"

"""The limits for a document, and whether text in its pictures is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits for one document. The child enforces these; memory, CPU and time the kernel too.

    Byte and page caps are those measured as sensible for a document management system; 30 s of
    CPU is about a hundred times what a 1,000-page book takes, and wall time is twice that so that
    a busy machine is not taken for a hostile file. `allowed_types` are MIME types, in
    which `*` stands for anything: a type not among them is refused before its parser is loaded.
    Pages that are recognised have a time of their own, each and all together.
    """

    max_file_bytes: int = 50_000_000
    max_pages: int = 2_000
    max_inflated_bytes: int = 200_000_000
    max_members: int = 2_000
    max_ratio: int = 100
    max_text_characters: int = 10_000_000
    memory_bytes: int = 512 * 1024 * 1024
    cpu_seconds: int = 30
    wall_seconds: int = 60
    max_chunks: int = 50_000
    ocr_page_seconds: int = 20
    ocr_seconds: int = 1_800
    allowed_types: Sequence[str] = ("*",)


@dataclass(frozen=True)
class Ocr:
    """Recognise pictures of pages: Tesseract's names of languages, such as `eng+deu`, and the
    folder of their data, None where there is none.
    """

    languages: str
    data_folder: str | None

"""Pictures that were made to harm: the child says why, or dies alone."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from fake_models import onnx_model
from PIL import Image
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from ragstone.errors import DocumentError
from ragstone.extract import tesseract
from ragstone.extract.options import Limits
from ragstone.sandbox.parent import Sandbox
from ragstone.sandbox.protocol import ExtractRequest

MODEL = Path(__file__).resolve().parents[2] / "build" / "model"
needs_tesseract = pytest.mark.skipif(
    "eng" not in tesseract.installed(tesseract.data_folder()), reason="there is no tesseract-ocr"
)


def png(width: int, height: int, rows: bytes, color: int = 0) -> bytes:
    def part(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", head)
        + part(b"IDAT", zlib.compress(rows, 9))
        + part(b"IEND", b"")
    )


def cyclic_tiff() -> bytes:
    """Its only directory is followed by itself."""
    target = BytesIO()
    Image.new("L", (100, 100), 255).save(target, "TIFF")
    data = bytearray(target.getvalue())
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * entries, start)
    return bytes(data)


def poster() -> bytes:
    """A page of five by five metres."""
    target = BytesIO()
    canvas = Canvas(target, pagesize=(14_400, 14_400))
    canvas.drawImage(ImageReader(Image.new("L", (50, 50), 255)), 0, 0, 14_400, 14_400)
    canvas.save()
    return target.getvalue()


def strip() -> bytes:
    target = BytesIO()
    canvas = Canvas(target, pagesize=(1, 14_400))
    canvas.drawImage(ImageReader(Image.new("L", (50, 50), 0)), 0, 0, 1, 14_400)
    canvas.save()
    return target.getvalue()


def truncated(form: str) -> bytes:
    target = BytesIO()
    Image.effect_noise((400, 400), 80).convert("RGB").save(target, form)
    return target.getvalue()[: len(target.getvalue()) // 2]


HOSTILE: dict[str, tuple[str, Callable[[], bytes], set[str]]] = {
    "a header of 3.6 gigapixels": ("a.png", lambda: png(60_000, 60_000, b""), {"too_large"}),
    "a bomb of 38 megapixels in color": (
        "a.png",
        lambda: png(7_000, 5_500, bytes(5_500 * 28_001), 6),
        {"no_text", "damaged", "out_of_memory"},
    ),
    "less data than the header says": (
        "a.png",
        lambda: png(3_000, 3_000, b"\0"),
        {"damaged", "no_text"},
    ),
    "only a signature": ("a.png", lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), {"damaged"}),
    "a TIFF whose directory follows itself": ("a.tif", cyclic_tiff, {"no_text", "too_many_pages"}),
    "a page of 25 square metres": ("a.pdf", poster, {"no_text"}),
    "a page as thin as a hair": ("a.pdf", strip, {"no_text"}),
    "half a JPEG": ("a.jpg", lambda: truncated("JPEG"), {"text", "no_text", "damaged"}),
    "half a TIFF": ("a.tif", lambda: truncated("TIFF"), {"text", "no_text", "damaged"}),
    "half a WebP": ("a.webp", lambda: truncated("WEBP"), {"text", "no_text", "damaged"}),
    "half a GIF": ("a.gif", lambda: truncated("GIF"), {"text", "no_text", "damaged"}),
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def read(sandbox: Sandbox, name: str, data: bytes) -> str:
    """`text`, or the code of what was raised."""
    limits = Limits(max_pages=20, ocr_page_seconds=10)
    request = ExtractRequest(name, onnx_model(MODEL), limits, ocr=tesseract.ocr("eng"))
    fd = os.memfd_create("document")
    try:
        os.write(fd, data)
        sandbox.submit(request, fd, lambda: None)
        sandbox.result(lambda: None)
    except DocumentError as error:
        assert error.hint or error.detail
        return error.code
    finally:
        os.close(fd)
    return "text"


@needs_tesseract
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_picture_has_its_reason_and_the_next_document_is_read(
    sandbox: Sandbox, what: str
) -> None:
    name, make, expected = HOSTILE[what]
    assert read(sandbox, name, make()) in expected
    assert read(sandbox, "a.txt", b"Some words.") == "text"


def test_the_newest_data_is_found_and_what_is_no_language_is_not_one(tmp_path: Path) -> None:
    assert tesseract.data_folder(tmp_path) is None
    for version, names in (("4.00", ["fra"]), ("5", ["eng", "osd", "deu"])):
        folder = tmp_path / "usr/share/tesseract-ocr" / version / "tessdata"
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.traineddata").touch()
    found = tesseract.data_folder(tmp_path)
    assert tesseract.installed(found) == ["deu", "eng"]
    assert tesseract.problem("eng+deu", found) is None
    problem = tesseract.problem("deu+chi_sim", found)
    assert problem is not None and problem[1].endswith("apt-get install tesseract-ocr-chi-sim")
    nothing = tesseract.problem("deu", None)
    assert nothing is not None
    assert nothing[1].endswith("apt-get install tesseract-ocr tesseract-ocr-deu")

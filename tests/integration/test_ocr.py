"""Scanned pages: recognised where that is asked for, and else a reason that says how to ask."""

from __future__ import annotations

import os
from io import BytesIO

import psycopg
import pytest
from helpers import rows, value
from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from ragstone.extract.tesseract import data_folder, installed

pytestmark = pytest.mark.skipif(
    "eng" not in installed(data_folder()), reason="there is no tesseract-ocr"
)

STORM = "The keeper of the light walked down to the harbour before the winter storm."
LAMP = "Copper lamps are cleaned with vinegar and a soft brush every second Monday."


def scan(text: str, width: int = 1240, height: int = 1754) -> Image.Image:
    """A page at 150 dpi, somewhat grey and uneven as scans are."""
    page = Image.new("L", (width, height), 245)
    draw = ImageDraw.Draw(page)
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 45:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    for number, line in enumerate(lines):
        draw.text((150, 200 + 45 * number), line, font=ImageFont.load_default(30), fill=20)
    return page.rotate(0.3, fillcolor=245)


def crowded() -> Image.Image:
    """A page of 155 lines in the smallest print: most of a minute's work for Tesseract."""
    page = Image.new("L", (2480, 3508), 245)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    for row in range(155):
        draw.text((60, 60 + 22 * row), f"{STORM} " * 4, font=font, fill=20)
    return page


def mixed_pdf(*pages: str | Image.Image) -> bytes:
    """Pages of text and pages that are pictures."""
    target = BytesIO()
    canvas = Canvas(target, pagesize=(595, 842))
    for page in pages:
        if isinstance(page, str):
            canvas.drawString(72, 700, page)
        else:
            canvas.drawImage(ImageReader(page), 0, 0, 595, 842)
        canvas.showPage()
    canvas.save()
    return target.getvalue()


def picture(form: str, *pages: Image.Image) -> bytes:
    target = BytesIO()
    more = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    pages[0].save(target, form, dpi=(150, 150), **more)
    return target.getvalue()


@pytest.fixture
def store(db, document_root, table):
    """Puts a file below the document root and inserts its row."""

    def store(number: int, name: str, data: bytes) -> None:
        (document_root / name).write_bytes(data)
        os.chmod(document_root / name, 0o644)
        db.execute(f"insert into {table} values (%s, %s)", [number, name])

    return store


def document(db, number):
    return rows(
        db,
        "select status, error_code, last_error, error_hint, extracted from rag.documents where document_id = %s",
        number,
    )[0]


def chunks(db, number):
    return rows(
        db,
        "select page_number, content from rag.document_chunks where document_id = %s order by chunk_index",
        number,
    )


def test_a_scan_says_how_to_have_it_read_and_is_read_once_that_is_typed(db, store, drain):
    store(1, "scan.pdf", mixed_pdf(scan(STORM)))
    store(2, "page.png", picture("PNG", scan(LAMP)))
    store(3, "plain.txt", b"Nothing to recognise here.")
    drain()
    for number in (1, 2):
        status, code, _, hint, _ = document(db, number)
        assert (status, code) == ("failed", "no_text")
        assert "select rag.set_ocr('eng');" in hint
    assert value(db, "select rag.set_ocr('eng')") == 2
    drain()
    assert chunks(db, 1) == [(1, STORM)]
    assert chunks(db, 2) == [(1, LAMP)]
    best = rows(
        db, "select document_id from rag.search_documents('vinegar for lamps', match_count => 1)"
    )
    assert best == [(2,)]


def test_of_a_mixed_document_only_the_scanned_page_is_recognised(db, store, drain):
    store(1, "mixed.pdf", mixed_pdf("Printed words of page one.", scan(STORM), "And page three."))
    drain()
    assert [page for page, _ in chunks(db, 1)] == [1, 3]
    assert document(db, 1)[4]["pages_without_text"] == "page 2"
    before = rows(db, "select chunk_id, page_number from rag.document_chunks order by 1")
    assert value(db, "select rag.set_ocr('eng')") == 1
    drain()
    assert chunks(db, 1) == [
        (1, "Printed words of page one."),
        (2, STORM),
        (3, "And page three."),
    ]
    assert document(db, 1)[4]["pages_recognised"] == "page 2"
    assert "pages_without_text" not in document(db, 1)[4]
    assert before
    # Once it is as asked for, there is nothing more to do.
    assert value(db, "select rag.set_ocr('eng')") == 0


def test_a_second_pipeline_reads_pictures_anew_and_the_rest_not(db, store, drain):
    store(1, "mixed.pdf", mixed_pdf("Printed words of page one.", scan(STORM)))
    drain()
    db.execute("select rag.create_pipeline('seeing', ocr => 'eng')")
    drain()
    db.execute("select rag.activate_pipeline('seeing')")
    assert STORM in [content for _, content in chunks(db, 1)]


@pytest.mark.parametrize(
    ("form", "name"), [("JPEG", "a.jpg"), ("TIFF", "a.tif"), ("WEBP", "a.webp"), ("BMP", "a.bmp")]
)
def test_pictures_of_several_formats_are_read(db, store, drain, form, name):
    db.execute("select rag.set_ocr('eng')")
    pages = [scan(STORM), scan(LAMP)] if form == "TIFF" else [scan(STORM)]
    store(1, name, picture(form, *pages))
    drain()
    assert chunks(db, 1) == [(n + 1, text) for n, text in enumerate((STORM, LAMP)[: len(pages)])]


def test_a_preview_shows_what_would_be_recognised(db, document_root, drain):
    (document_root / "scan.pdf").write_bytes(mixed_pdf(scan(STORM)))
    db.execute("select rag.set_ocr('eng')")
    found = rows(db, "select page_number, content from rag.preview_chunks(file_path => 'scan.pdf')")
    assert found == [(1, STORM)]


@pytest.mark.parametrize(
    ("call", "sqlstate", "said"),
    [
        ("rag.set_ocr('xxx')", "42704", "tesseract-ocr-xxx"),
        ("rag.set_ocr('eng+chi_sim')", "42704", "tesseract-ocr-chi-sim"),
        ("rag.create_pipeline('v2', ocr => 'xxx')", "42704", "tesseract-ocr-xxx"),
        ("rag.set_ocr('../etc')", "22023", "set_ocr('off')"),
        ("rag.set_ocr('')", "22023", "set_ocr('off')"),
        ("rag.set_ocr(null)", "22023", "set_ocr('off')"),
        ("rag.set_ocr('eng', pipeline => 'none')", "42704", "rag.pipelines"),
    ],
)
def test_a_language_that_is_not_there_is_refused_with_its_package(db, call, sqlstate, said):
    with pytest.raises(psycopg.Error) as caught:
        db.execute(f"select {call}")
    assert caught.value.sqlstate == sqlstate
    assert said in caught.value.diag.message_hint


def test_a_language_that_is_gone_since_is_the_document_s_reason(db, store, drain):
    db.execute("update rag.pipelines set ocr = 'xxx'")
    store(1, "scan.pdf", mixed_pdf(scan(STORM)))
    store(2, "mixed.pdf", mixed_pdf("Printed words.", scan(STORM)))
    drain()
    status, code, error, hint, _ = document(db, 1)
    assert (status, code) == ("failed", "no_text")
    assert "xxx" in error and "apt-get install tesseract-ocr tesseract-ocr-xxx" in hint
    status, *_, extracted = document(db, 2)
    assert status == "completed" and "xxx" in extracted["partial"]
    ((ok, detail, hint),) = rows(
        db, """select ok, detail, hint from rag.check() where "check" = 'ocr'"""
    )
    assert not ok and "xxx" in detail and "tesseract-ocr-xxx" in hint


def test_a_page_over_its_time_is_left_out_and_named(db, store, drain):
    db.execute("select rag.set_ocr('eng')")
    db.execute("select rag.set('ocr_page_s', '1')")
    store(1, "slow.pdf", mixed_pdf("Printed words.", crowded()))
    drain()
    status, *_, extracted = document(db, 1)
    assert status == "completed"
    assert "page 2 took longer to recognise" in extracted["partial"]
    assert "ocr_page_s (1 s)" in extracted["partial"]


def test_the_check_tells_whether_and_in_which_languages(db, drain):
    ((ok, detail, _),) = rows(
        db, """select ok, detail, hint from rag.check() where "check" = 'ocr'"""
    )
    assert ok is None and "eng" in detail
    db.execute("select rag.set_ocr('eng')")
    ((ok, detail, _),) = rows(
        db, """select ok, detail, hint from rag.check() where "check" = 'ocr'"""
    )
    assert ok and "on for eng" in detail

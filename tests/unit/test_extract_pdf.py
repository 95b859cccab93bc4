"""PDF: page and section of every passage, and a reason where there is no text."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import pytest
from PIL import Image
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject as Array
from pypdf.generic import DecodedStreamObject as Stream
from pypdf.generic import DictionaryObject as Dictionary
from pypdf.generic import NameObject as Name
from pypdf.generic import NumberObject as Number
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph

from ragstone.errors import DocumentError
from ragstone.extract import Extracted, Limits, extract

STYLE = ParagraphStyle("body", fontName="Helvetica", fontSize=10, leading=12, alignment=4)
LOREM = "The keeper of the light walked down to the harbour before the winter storm came in. "


def pdf(draw: Callable[[Canvas], None]) -> bytes:
    target = BytesIO()
    canvas = Canvas(target, pagesize=A4)
    canvas.setTitle("Light and Harbour")
    canvas.setAuthor("A. Keeper")
    draw(canvas)
    canvas.save()
    return target.getvalue()


def read(data: bytes, limits: Limits = Limits()) -> Extracted:
    return extract(data, "a.pdf", limits)


def failure(data: bytes, limits: Limits = Limits()) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        read(data, limits)
    assert caught.value.hint
    return caught.value


def paragraph(canvas: Canvas, text: str, top: float) -> float:
    flow = Paragraph(text, STYLE)
    _, height = flow.wrap(400, 800)
    flow.drawOn(canvas, 80, top - height)
    return top - height - 14


def report(canvas: Canvas) -> None:
    """Six pages with a letterhead, page numbers, an outline and two paragraphs each."""
    for page in range(1, 7):
        canvas.setFont("Helvetica", 8)
        canvas.drawString(80, 810, "ACME Lighthouse Company, Harbour Street 1")
        canvas.drawCentredString(300, 30, f"Page {page} of 6")
        canvas.setFont("Helvetica-Bold", 16)
        canvas.bookmarkPage(f"p{page}", fit="XYZ", left=80, top=770)
        canvas.addOutlineEntry(f"{page} Chapter", f"p{page}", 0)
        canvas.drawString(80, 750, f"{page} Chapter")
        top = paragraph(canvas, f"First on page {page}. " + LOREM * 5, 730)
        paragraph(canvas, f"Second on page {page}. " + LOREM * 5, top)
        canvas.showPage()


def test_paragraphs_come_whole_with_their_page_and_section() -> None:
    found = read(pdf(report))
    assert (found.title, found.author, found.pages) == ("Light and Harbour", "A. Keeper", 6)
    bodies = [block for block in found.blocks if block.text.startswith(("First", "Second"))]
    assert len(bodies) == 12
    for block in bodies:
        assert f"on page {block.page}." in block.text
        assert block.section == f"{block.page} Chapter"
        assert block.text.count("keeper of the light walked down") == 5
        assert "\n" not in block.text


def test_a_letterhead_is_found_once_and_page_numbers_not_at_all() -> None:
    text = "\n".join(block.text for block in read(pdf(report)).blocks)
    assert text.count("ACME Lighthouse") == 1
    assert "of 6" not in text


def test_without_an_outline_large_type_makes_the_sections() -> None:
    def draw(canvas: Canvas) -> None:
        for number in (1, 2):
            canvas.setFont("Helvetica-Bold", 18)
            canvas.drawString(80, 760, f"Part {number}")
            top = paragraph(canvas, LOREM * 4, 740)
            canvas.setFont("Helvetica-Bold", 14)
            canvas.drawString(80, top - 10, "Scope")
            paragraph(canvas, f"Body {number}. " + LOREM * 4, top - 24)
            canvas.showPage()

    sections = {b.section for b in read(pdf(draw)).blocks if b.text.startswith("Body")}
    assert sections == {"Part 1 > Scope", "Part 2 > Scope"}


def test_words_parted_at_line_ends_are_whole_and_compounds_keep_their_hyphen() -> None:
    def draw(canvas: Canvas) -> None:
        lines = (
            "Of well-known lamps this is the most remark-",
            "able one, and it was a well-",
            "known fact in the Nordsee-",
            "Region at that time.",
        )
        for place, line in enumerate(lines):
            canvas.drawString(80, 700 - 14 * place, line)

    text = read(pdf(draw)).blocks[0].text
    assert "remarkable one" in text
    assert "a well-known fact" in text
    assert "Nordsee-Region" in text


def test_rows_of_a_table_do_not_run_together() -> None:
    def draw(canvas: Canvas) -> None:
        for place, row in enumerate((("Lamp", "12", "ok"), ("Lens", "7"), ("Rope of hemp", "3"))):
            for column, cell in enumerate(row):
                canvas.drawString(80 + 120 * column, 700 - 14 * place, cell)

    text = "\n".join(block.text for block in read(pdf(draw)).blocks)
    assert text.splitlines() == ["Lamp 12 ok", "Lens 7", "Rope of hemp 3"]


def test_a_sentence_carried_over_the_page_goes_on() -> None:
    def draw(canvas: Canvas) -> None:
        paragraph(canvas, LOREM * 3 + "and then the boat", 300)
        canvas.showPage()
        paragraph(canvas, "sailed out to sea. " + LOREM * 3, 700)

    blocks = read(pdf(draw)).blocks
    assert [block.continues for block in blocks] == [False, True]


def test_a_password_is_asked_for_in_the_reason() -> None:
    writer = PdfWriter(clone_from=PdfReader(BytesIO(pdf(report))))
    writer.encrypt("secret", algorithm="RC4-128")
    target = BytesIO()
    writer.write(target)
    assert failure(target.getvalue()).code == "encrypted"


def test_an_owner_password_alone_does_not_keep_the_text() -> None:
    writer = PdfWriter(clone_from=PdfReader(BytesIO(pdf(report))))
    writer.encrypt("", "owner", algorithm="RC4-128")
    target = BytesIO()
    writer.write(target)
    assert read(target.getvalue()).pages == 6


def test_a_scan_is_told_to_be_ocred() -> None:
    image = ImageReader(Image.new("RGB", (50, 50), "red"))
    error = failure(pdf(lambda canvas: canvas.drawImage(image, 0, 0)))
    assert error.code == "no_text"
    assert "select rag.set_ocr('eng');" in error.hint


def test_a_jpeg_named_pdf_is_called_both() -> None:
    target = BytesIO()
    Image.new("RGB", (50, 50), "red").save(target, "JPEG")
    error = failure(target.getvalue())
    assert error.code == "no_text"
    assert "JPEG" in error.detail
    assert ".pdf" in error.detail


@pytest.mark.parametrize("data", [b"just text", b"%PDF-1.7\n", b"%PDF-1.7\n" + bytes(5_000)])
def test_what_only_claims_to_be_a_pdf_is_damaged(data: bytes) -> None:
    assert failure(data).code == "damaged"


def test_a_cut_pdf_gives_text_or_a_reason_never_a_crash() -> None:
    whole = pdf(report)
    for share in range(1, 20):
        try:
            read(whole[: len(whole) * share // 20])
        except DocumentError as error:
            assert error.code in ("damaged", "no_text")


def test_too_many_pages_and_too_much_text_name_the_limit() -> None:
    data = pdf(report)
    assert "max_pages" in failure(data, Limits(max_pages=5)).message
    error = failure(data, Limits(max_text_characters=500))
    assert error.code == "too_much_text"
    assert "max_text_characters" in error.message


def formula() -> bytes:
    """A line with TeX's font of symbols in it: prime, arrow and norm at 0, ! and k."""
    writer = PdfWriter()
    page = writer.add_blank_page(595, 842)
    glyphs = [(33, "/arrowright"), (48, "/prime"), (107, "/bardbl")]
    differences = [part(each) for g in glyphs for part, each in zip((Number, Name), g, strict=True)]
    fonts = {"/F1": Dictionary(), "/F2": Dictionary()}
    for font, name in zip(fonts.values(), ("/Helvetica", "/ABCDEF+CMSY10"), strict=True):
        font[Name("/Type")], font[Name("/Subtype")] = Name("/Font"), Name("/Type1")
        font[Name("/BaseFont")] = Name(name)
    encoding = Dictionary({Name("/Differences"): Array(differences)})
    fonts["/F2"][Name("/Encoding")] = encoding
    resources = Dictionary({Name(name): font for name, font in fonts.items()})
    page[Name("/Resources")] = Dictionary({Name("/Font"): resources})
    content = Stream()
    content.set_data(
        b"BT /F1 10 Tf 100 700 Td (Weight 10: C) Tj /F2 10 Tf (0!k) Tj"
        b" /F1 10 Tf (x in 100 kg) Tj ET"
    )
    page[Name("/Contents")] = writer._add_object(content)
    target = BytesIO()
    writer.write(target)
    return target.getvalue()


def test_primes_and_norms_of_tex_are_neither_zeros_nor_letters() -> None:
    assert read(formula()).blocks[0].text == "Weight 10: C′→‖x in 100 kg"

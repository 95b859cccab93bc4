"""DOCX: everything a reader of the document sees, in its order."""

from __future__ import annotations

import datetime
import zipfile
from io import BytesIO
from typing import Any

import docx
import pytest
from docx.oxml import parse_xml

from ragstone.errors import DocumentError
from ragstone.extract import Extracted, Limits, extract

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def saved(document: Any) -> bytes:
    target = BytesIO()
    document.save(target)
    return target.getvalue()


def read(data: bytes, name: str = "a.docx") -> Extracted:
    return extract(data, name, Limits())


@pytest.fixture
def report() -> Any:
    document = docx.Document()
    document.core_properties.title = "Harbour Report"
    document.core_properties.author = "A. Keeper"
    document.core_properties.created = datetime.datetime(2024, 5, 6, 7, 8, 9)
    document.add_heading("1 Intro", 1)
    document.add_paragraph("Opening words.")
    document.add_heading("1.1 Scope", 2)
    document.add_paragraph("First item", style="List Bullet")
    table = document.add_table(2, 3)
    for row, line in zip(table.rows, ("Lamp 12 ok", "Lens 7 broken"), strict=True):
        for cell, text in zip(row.cells, line.split(), strict=True):
            cell.text = text
    document.add_heading("2 End", 1)
    document.add_paragraph("Closing words.")
    return document


def test_text_headings_lists_and_tables_come_in_document_order(report: Any) -> None:
    found = read(saved(report))
    assert [(block.text, block.kind, block.section) for block in found.blocks] == [
        ("1 Intro", "heading", "1 Intro"),
        ("Opening words.", "paragraph", "1 Intro"),
        ("1.1 Scope", "heading", "1 Intro > 1.1 Scope"),
        ("- First item", "list", "1 Intro > 1.1 Scope"),
        ("Lamp | 12 | ok", "table", "1 Intro > 1.1 Scope"),
        ("Lens | 7 | broken", "table", "1 Intro > 1.1 Scope"),
        ("2 End", "heading", "2 End"),
        ("Closing words.", "paragraph", "2 End"),
    ]
    assert (found.title, found.author) == ("Harbour Report", "A. Keeper")
    assert found.created == "2024-05-06T07:08:09Z"


@pytest.mark.parametrize(
    "xml",
    [
        f"<w:p {W}><w:ins w:id='1'><w:r><w:t>needle</w:t></w:r></w:ins></w:p>",
        f"<w:sdt {W}><w:sdtContent><w:p><w:r><w:t>needle</w:t></w:r></w:p></w:sdtContent></w:sdt>",
        f"<w:p {W}><w:hyperlink><w:r><w:t>needle</w:t></w:r></w:hyperlink></w:p>",
        f"<w:p {W}><w:r><w:pict><w:txbxContent><w:p><w:r><w:t>needle</w:t></w:r></w:p>"
        "</w:txbxContent></w:pict></w:r></w:p>",
    ],
    ids=["insertion", "content control", "link", "text box"],
)
def test_text_in_wrappings_is_found_once(report: Any, xml: str) -> None:
    report.element.body.insert(0, parse_xml(xml))
    text = "\n".join(block.text for block in read(saved(report)).blocks)
    assert text.count("needle") == 1


def test_deleted_text_is_not_found(report: Any) -> None:
    xml = f"<w:p {W}><w:del w:id='1'><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>"
    report.element.body.insert(0, parse_xml(xml))
    assert "gone" not in "".join(block.text for block in read(saved(report)).blocks)


def test_a_letterhead_is_found_once(report: Any) -> None:
    report.sections[0].header.paragraphs[0].text = "ACME Lighthouse Company"
    report.sections[0].footer.paragraphs[0].text = "ACME Lighthouse Company"
    text = "\n".join(block.text for block in read(saved(report)).blocks)
    assert text.count("ACME") == 1


def test_a_docx_is_known_by_content_whatever_its_name(report: Any) -> None:
    assert len(read(saved(report), "scan.pdf").blocks) == 8


def test_a_damaged_docx_is_damaged(report: Any) -> None:
    data = bytearray(saved(report))
    for broken in (bytes(data[:-200]), bytes(data[: len(data) // 2])):
        with pytest.raises(DocumentError) as caught:
            read(broken)
        assert caught.value.code == "damaged"
    with pytest.raises(DocumentError) as caught:
        read(b"no archive at all")
    assert caught.value.code == "damaged"


def test_an_empty_docx_has_no_text() -> None:
    with pytest.raises(DocumentError) as caught:
        read(saved(docx.Document()))
    assert caught.value.code == "no_text"


def test_an_encrypted_office_file_asks_for_a_copy_without_password() -> None:
    data = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500) + "EncryptedPackage".encode("utf-16-le")
    with pytest.raises(DocumentError) as caught:
        read(data)
    assert caught.value.code == "encrypted"


@pytest.mark.parametrize(
    ("limit", "value"), [("max_members", 3), ("max_inflated_bytes", 5_000), ("max_ratio", 2)]
)
def test_an_archive_over_a_limit_names_it(report: Any, limit: str, value: int) -> None:
    data = BytesIO(saved(report))
    with zipfile.ZipFile(data, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/media/blank.bmp", bytes(2_000_000))
    with pytest.raises(DocumentError) as caught:
        extract(data.getvalue(), "a.docx", Limits(**{limit: value}))
    assert caught.value.code == "too_large"
    assert limit in caught.value.message


def test_a_reviewers_comment_is_found(report: Any) -> None:
    report.add_comment(report.paragraphs[1].runs, text="needle of a comment")
    assert any("needle of a comment" in block.text for block in read(saved(report)).blocks)

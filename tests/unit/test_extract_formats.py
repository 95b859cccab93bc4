"""Every format: the same words come out of it, with what it knows of page, section and author."""

from __future__ import annotations

import zipfile
from io import BytesIO

import openpyxl
import pytest
from documents import (
    AUTHOR,
    HEADING,
    ROWS,
    SENTENCE,
    TITLE,
    VALID,
    a_docx,
    a_pptx,
    an_eml,
    an_epub,
    an_odt,
    an_xlsx,
    compound_file,
    open_document,
    saved,
    zipped,
)

from ragstone.errors import DocumentError
from ragstone.extract import FORMATS, Extracted, Limits, extract, recognise


def read(data: bytes, name: str = "", limits: Limits = Limits()) -> Extracted:
    return extract(data, name, limits)


def failure(data: bytes, name: str = "", limits: Limits = Limits()) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        read(data, name, limits)
    assert caught.value.hint
    return caught.value


def texts(found: Extracted) -> list[str]:
    return [block.text for block in found.blocks]


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALID)
def test_the_words_of_every_format_are_found(name: str) -> None:
    words = " ".join(texts(read(VALID[name](), name)))
    assert SENTENCE in words
    assert HEADING in words or name in ("a.csv", "a.xls", "a.xlsx", "a.ods", "a.py")


@pytest.mark.parametrize("name", [n for n in VALID if n not in ("a.rtf", "a.csv", "a.txt", "a.py",
                                                                "a.jsonl")])  # fmt: skip
def test_a_passage_knows_the_section_it_is_in(name: str) -> None:
    found = read(VALID[name](), name)
    section = next(block.section for block in found.blocks if SENTENCE in block.text)
    expected = TITLE if name in ("a.eml", "a.msg") else HEADING
    assert section
    assert section.endswith(expected)


@pytest.mark.parametrize(
    "name", ["a.pdf", "a.docx", "a.pptx", "a.xlsx", "a.odt", "a.ods", "a.odp", "a.epub", "a.rtf",
             "a.html", "a.md", "a.rst", "a.xml", "a.ipynb"]
)  # fmt: skip
def test_title_and_author_are_kept(name: str) -> None:
    found = read(VALID[name](), name)
    assert (found.title, found.author) == (TITLE, AUTHOR)


@pytest.mark.parametrize(
    "name", ["a.docx", "a.pptx", "a.xlsx", "a.xls", "a.odt", "a.ods", "a.rtf", "a.html", "a.md",
             "a.rst", "a.csv"]
)  # fmt: skip
def test_rows_of_tables_are_readable(name: str) -> None:
    found = read(VALID[name](), name)
    rows = [block.text for block in found.blocks if block.kind == "table"]
    for row in ROWS:
        assert " | ".join(row) in rows


@pytest.mark.parametrize("name", [n for n in VALID if n not in ("a.csv", "a.rst", "a.py", "a.md")])
def test_a_document_is_known_by_content_whatever_its_name(name: str) -> None:
    data = VALID[name]()
    expected = read(data, name).mime_type
    assert read(data, "").mime_type == expected or name == "a.txt"
    if expected.startswith("application/vnd") or name in ("a.pdf", "a.rtf", "a.epub"):
        for lie in ("a.txt", "a.pdf", "a.docx", "a.bin"):
            assert read(data, lie).mime_type == expected


def test_the_language_of_a_text_is_told_where_it_does_not_say() -> None:
    assert read(VALID["a.txt"](), "a.txt").language == "en"
    indonesian = "Kebijakan ini berlaku untuk semua pegawai yang bekerja di museum dan tidak"
    assert read((indonesian + " dapat diubah oleh siapa pun dari luar.").encode()).language == "id"


def test_a_type_that_is_not_allowed_is_refused_by_name_of_the_limit() -> None:
    limits = Limits(allowed_types=("application/pdf", "text/*"))
    assert read(VALID["a.txt"](), "a.txt", limits).blocks
    error = failure(a_docx(), "a.docx", limits)
    assert error.code == "type_not_allowed"
    assert "allowed_types" in error.message
    assert "text/*" in error.detail


def test_the_table_of_formats_has_no_extension_twice() -> None:
    extensions = [extension for form in FORMATS for extension in form.extensions]
    assert len(extensions) == len(set(extensions))


# --- slides and sheets -------------------------------------------------------------------------


def test_slides_are_pages_with_their_notes() -> None:
    found = read(a_pptx(), "a.pptx")
    assert found.pages == 2
    assert [(b.page, b.text) for b in found.blocks][2:4] == [
        (1, "Say this slowly."),
        (2, "The lamps"),
    ]


def test_a_row_knows_the_names_of_its_columns() -> None:
    found = read(an_xlsx(), "a.xlsx")
    assert [block.header for block in found.blocks[:3]] == [None, *[" | ".join(ROWS[0])] * 2]


def test_a_sheet_shows_dates_and_truth_values_as_readers_see_them() -> None:
    assert texts(read(an_xlsx(), "a.xlsx"))[-1] == f"{SENTENCE} | 2024-05-06 | TRUE"


def test_a_value_in_the_last_cell_of_a_sheet_costs_only_itself() -> None:
    book = openpyxl.Workbook()
    book.active["A1"] = "first words"
    book.active["XFD1048576"] = "last words"
    found = read(saved(book), "a.xlsx")
    assert texts(found) == ["first words"]
    assert "empty rows" in (found.partial or "")


def test_more_slides_or_sheets_than_pages_allowed_are_refused() -> None:
    error = failure(a_pptx(), "a.pptx", Limits(max_pages=1))
    assert error.code == "too_many_pages"
    assert "max_pages" in error.message
    assert failure(an_xlsx(), "a.xlsx", Limits(max_pages=1)).code == "too_many_pages"


@pytest.mark.parametrize("name", ["export.xls", "export.doc"])
def test_text_under_an_old_office_name_is_read_as_text(name: str) -> None:
    assert "lamp" in " ".join(texts(read(b"lamp\tcount\ncopper\t12\n", name)))


# --- open documents, books ---------------------------------------------------------------------


def test_deleted_text_and_note_marks_are_not_found() -> None:
    words = " ".join(texts(read(an_odt(), "a.odt")))
    assert "deleted" not in words
    assert "A note." in words
    assert SENTENCE + "1" not in words


def test_an_encrypted_open_document_asks_for_a_copy_without_password() -> None:
    plain = an_odt()
    with zipfile.ZipFile(BytesIO(plain)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["META-INF/manifest.xml"] = b"<m><encryption-data/></m>"
    assert failure(zipped(members), "a.odt").code == "encrypted"


def test_a_book_is_read_in_the_order_of_its_spine_without_its_contents_page() -> None:
    found = texts(read(an_epub(), "a.epub"))
    assert found[0] == "First in the spine."
    assert "table of contents" not in found


# --- mail --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.eml", "a.msg"])
def test_mail_keeps_sender_date_and_names_of_attachments(name: str) -> None:
    found = read(VALID[name](), name)
    assert found.title == TITLE
    assert found.author == f"{AUTHOR} <keeper@example.org>"
    assert (found.created or "").startswith("2024-05-06T07:08:09")
    assert "Attachment: bericht über öl.pdf" in texts(found)
    assert found.metadata["attachments"] == "bericht über öl.pdf"


def test_the_text_of_a_mail_is_not_said_twice_as_web_page() -> None:
    assert " ".join(texts(read(an_eml()))).count(SENTENCE) == 1


def test_a_mail_attached_to_a_mail_is_read_under_its_own_subject() -> None:
    outer = (
        b"From: a@example.org\nSubject: Outer\nMIME-Version: 1.0\n"
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/plain\n\nsee below\n"
        b"--x\nContent-Type: message/rfc822\n\nFrom: b@example.org\nSubject: Inner\n\ninner words\n"
        b"--x--\n"
    )
    where = {block.text: block.section for block in read(outer).blocks}
    assert where["see below"] == "Outer"
    assert where["inner words"] == "Inner"


def test_mail_in_an_old_charset_is_legible() -> None:
    mail = (
        "From: a@example.org\nDate: Mon, 06 May 2024 07:08:09 +0000\n"
        "Subject: =?koi8-r?B?8NLJ18XU?=\nContent-Type: text/plain; charset=koi8-r\n"
        "Content-Transfer-Encoding: 8bit\n\nПривет из гавани\n"
    ).encode("koi8-r")
    found = read(mail, "a.eml")
    assert found.title == "Привет"
    assert "Привет из гавани" in texts(found)


# --- text formats ------------------------------------------------------------------------------


def test_rst_includes_nothing_and_keeps_its_structure() -> None:
    found = read(VALID["a.rst"](), "a.rst")
    assert not any("root:" in text for text in texts(found))
    kinds = {block.text: block.kind for block in found.blocks}
    assert kinds["literal = 1"] == "code"
    assert kinds["- another"] == "list"
    assert "Mind the step." in kinds
    assert f"{SENTENCE} With marks, code and a link:" in kinds


def test_a_record_in_json_is_a_row_under_its_path() -> None:
    found = read(VALID["a.json"](), "a.json")
    rows = {block.text: block.section for block in found.blocks}
    assert rows["lamp: copper | count: 12 | state: broken"] == f"{HEADING} > lamps"


def test_broken_json_is_still_text_and_says_so() -> None:
    found = read(b'{"a": "some words", ', "a.json")
    assert "some words" in texts(found)[0]
    assert "not valid JSON" in (found.partial or "")


def test_a_feed_is_read_without_the_markup_inside_it() -> None:
    feed = (
        "<?xml version='1.0'?><rss><channel><title>News</title><item><title>Storm</title>"
        "<link>http://example.org/1</link>"
        "<description>&lt;p&gt;Waves &lt;b&gt;rise&lt;/b&gt;&lt;/p&gt;</description></item>"
        "</channel></rss>"
    )
    found = read(feed.encode(), "feed.xml")
    assert any("Waves rise" in text for text in texts(found))
    assert found.title == "News"


def test_broken_xml_gives_what_can_be_read_and_says_so() -> None:
    found = read(b"<a><p>some words here</p><p>more</b></a>", "a.xml")
    assert "some words here" in texts(found)
    assert "well-formed" in (found.partial or "")


def test_a_text_that_mentions_pdf_is_no_pdf() -> None:
    assert (
        read(b"A PDF file begins with %PDF-1.7 and so on.", "about.txt").mime_type == "text/plain"
    )


# --- what is not read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "label", "advice"),
    [("WordDocument", "DOC", "docx"), ("PowerPoint Document", "PPT", "pptx")],
)
def test_legacy_office_files_say_how_to_convert_them(stream: str, label: str, advice: str) -> None:
    error = failure(compound_file({stream: b"x"}), "old")
    assert error.code == "unsupported"
    assert label in error.message
    assert advice in error.hint


def test_an_archive_asks_for_its_files_one_by_one() -> None:
    error = failure(zipped({"a.txt": "words"}), "a.zip")
    assert error.code == "unsupported"
    assert "one by one" in error.hint


def test_an_open_document_without_a_body_is_damaged() -> None:
    whole = open_document("text", "")
    with zipfile.ZipFile(BytesIO(whole)) as archive:
        members = {n: archive.read(n) for n in archive.namelist() if n != "content.xml"}
    assert failure(zipped(members), "a.odt").code == "damaged"


@pytest.mark.parametrize("name", [n for n in VALID if recognise(VALID[n](), n).binary])
def test_half_a_document_has_a_reason(name: str) -> None:
    data = VALID[name]()
    try:
        found = read(data[: len(data) // 2], name)
    except DocumentError as error:
        assert error.code in ("damaged", "no_text", "unsupported")
    else:
        assert name == "a.rtf" or found.blocks


def test_what_a_file_says_of_itself_is_cleaned_like_its_text() -> None:
    """Found by fuzzing: a NUL in a subject made the whole answer one that the server refuses."""
    found = read(b"From: a\x00b@example.org\nSubject: one\x00 two\n\nwords\n", "a.eml")
    assert found.title == "one two"
    assert "\x00" not in f"{found.author}{found.metadata}"

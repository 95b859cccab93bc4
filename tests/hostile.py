"""Makes documents that mean harm, or that chance made look so. Each is small and quick to make."""

from __future__ import annotations

import base64
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO

from documents import (
    VALID,
    a_docx,
    a_pdf,
    a_pptx,
    an_epub,
    an_html,
    an_msg,
    an_odt,
    an_xlsx,
    compound_file,
    open_document,
    zipped,
)

SECRET = "/etc/passwd"
_SPREADSHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def with_members(data: bytes, members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    return zipped(kept | members)


# --- PDF ---------------------------------------------------------------------------------------


def pdf(objects: list[bytes]) -> bytes:
    """A PDF of these objects; the first is the catalogue."""
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        start,
    )
    return bytes(out)


def stream(data: bytes, extra: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), extra, data)


def one_page(content: bytes, resources: bytes = b"<< >>", more: list[bytes] | None = None) -> bytes:
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources %s >>"
            % resources,
            content,
            *(more or []),
        ]
    )


_FONT = b"<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"


def flate_bomb() -> bytes:
    packed = zlib.compress(bytes(400_000_000), 9)
    return one_page(stream(packed, b"/Filter /FlateDecode"))


def nested_flate_bomb() -> bytes:
    packed = zlib.compress(zlib.compress(bytes(400_000_000), 9), 9)
    return one_page(stream(packed, b"/Filter [/FlateDecode /FlateDecode]"))


def endless_text_in_a_pdf() -> bytes:
    shows = b"BT /F1 9 Tf " + b"(words of a line) Tj 0 1 Td " * 200_000 + b"ET"
    return one_page(stream(zlib.compress(shows), b"/Filter /FlateDecode"), _FONT)


def cyclic_page_tree() -> bytes:
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 100000000 >>",
            b"<< /Type /Pages /Parent 2 0 R /Kids [2 0 R 3 0 R] /Count 50000000 >>",
        ]
    )


def lying_page_count() -> bytes:
    return a_pdf().replace(b"/Count 1 ", b"/Count 2000000000 ")


def form_that_draws_itself() -> bytes:
    form = stream(
        b"/X Do /X Do /X Do",
        b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 5 0 R >> >>",
    )
    return one_page(stream(b"/X Do"), b"<< /XObject << /X 5 0 R >> >>", [form])


def forms_that_double() -> bytes:
    """Thirty forms, each drawing the next one twice: a billion draws."""
    forms = [
        stream(
            b"/X Do /X Do",
            b"/Type /XObject /Subtype /Form /BBox [0 0 9 9]"
            b" /Resources << /XObject << /X %d 0 R >> >>" % (6 + number),
        )
        for number in range(30)
    ]
    last = stream(b"0 0 m", b"/Type /XObject /Subtype /Form /BBox [0 0 9 9]")
    return one_page(stream(b"/X Do"), b"<< /XObject << /X 5 0 R >> >>", [*forms, last])


def cyclic_outline() -> bytes:
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R /Outlines 5 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources %s >>"
            % _FONT,
            stream(b"BT /F1 12 Tf 72 700 Td (some words) Tj ET"),
            b"<< /First 6 0 R /Last 6 0 R /Count 1 >>",
            b"<< /Title (a) /Parent 5 0 R /Next 6 0 R /First 6 0 R /Dest [3 0 R /Fit] >>",
        ]
    )


def deep_pdf_array() -> bytes:
    return one_page(b"[" * 200_000 + b"]" * 200_000)


# --- archives ----------------------------------------------------------------------------------


def zip_bomb() -> bytes:
    return with_members(a_docx(), {"word/document.xml": b"<w>" + bytes(300_000_000)})


def repetitive_document() -> bytes:
    """Within the limits of the archive, far beyond that of the text."""
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = b"<w:p><w:r><w:t>some words again and again</w:t></w:r></w:p>" * 1_000_000
    xml = f"<w:document {space}><w:body>".encode() + body + b"</w:body></w:document>"
    return with_members(a_docx(), {"word/document.xml": xml})


def zip_in_zip_in_zip() -> bytes:
    data = a_docx()
    for _ in range(30):
        data = zipped({"word/inner.docx": data, "[Content_Types].xml": b"<a/>"})
    return data


def lying_member_size() -> bytes:
    """Declares 100 bytes where there are megabytes."""
    data = bytearray(with_members(a_docx(), {"word/document.xml": bytes(5_000_000)}))
    for signature, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        start = 0
        while (start := data.find(signature, start)) >= 0:
            struct.pack_into("<I", data, start + place, 100)
            start += 4
    return bytes(data)


def overlapping_members() -> bytes:
    """Many names for one member: what David Fifield's bombs are made of."""
    data = zipped({"word/document.xml": bytes(50_000_000), "[Content_Types].xml": b"<a/>"})
    end = data.rfind(b"PK\x05\x06")
    directory = data.find(b"PK\x01\x02")
    entries = data[directory:end] * 500
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1000, 1000, len(entries), directory, 0)
    return data[:directory] + entries + tail


def names_that_climb_out() -> bytes:
    names = [
        "../../../../tmp/ragstone-was-here",
        "/tmp/ragstone-was-here",
        "..\\..\\evil",
        "\n'\"; --",
    ]
    return with_members(an_odt(), dict.fromkeys(names, b"x"))


def too_many_members() -> bytes:
    return with_members(a_docx(), {f"word/{number}.xml": b"" for number in range(5_000)})


# --- XML ---------------------------------------------------------------------------------------

_LAUGHS = "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12)
) + "]>"  # fmt: skip
_EXTERNAL = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{SECRET}">]>'
_REMOTE = '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">'


def billion_laughs() -> bytes:
    return f"<?xml version='1.0'?>{_LAUGHS}<x>words &a11;</x>".encode()


def external_entity() -> bytes:
    return f"<?xml version='1.0'?>{_EXTERNAL}<x>words &e;</x>".encode()


def remote_dtd() -> bytes:
    return f"<?xml version='1.0'?>{_REMOTE}<x>words</x>".encode()


def billion_laughs_in_a_document() -> bytes:
    return with_members(a_docx(), {"word/document.xml": billion_laughs()})


def billion_laughs_in_a_sheet() -> bytes:
    with zipfile.ZipFile(BytesIO(an_xlsx())) as archive:
        sheet = archive.read("xl/worksheets/sheet1.xml").decode()
    return with_members(
        an_xlsx(), {"xl/worksheets/sheet1.xml": (_LAUGHS + sheet.replace("12", "&a11;")).encode()}
    )


def external_entity_in_a_book() -> bytes:
    package = f"{_EXTERNAL}<package><metadata>&e;</metadata></package>".encode()
    return with_members(an_epub(), {"OEBPS/c.opf": package})


def book_of_the_servers_files() -> bytes:
    with zipfile.ZipFile(BytesIO(an_epub())) as archive:
        package = archive.read("OEBPS/c.opf").replace(
            b"two.xhtml", b"../../../.." + SECRET.encode()
        )
    return with_members(an_epub(), {"OEBPS/c.opf": package})


def deep_xml() -> bytes:
    return b"<?xml version='1.0'?>" + b"<a>" * 100_000 + b"words" + b"</a>" * 100_000


def million_attributes() -> bytes:
    names = " ".join(f'a{number}="b c"' for number in range(10_000))
    return f"<?xml version='1.0'?><x {names}>words</x>".encode()


def deep_document() -> bytes:
    return open_document("text", "<text:section>" * 50_000 + "</text:section>" * 50_000)


# --- tables ------------------------------------------------------------------------------------


def sheet_with(rows: str, dimension: str = "A1") -> bytes:
    xml = f'<worksheet xmlns="{_SPREADSHEET}"><dimension ref="{dimension}"/><sheetData>{rows}</sheetData></worksheet>'
    return with_members(an_xlsx(), {"xl/worksheets/sheet1.xml": xml.encode()})


def lying_dimension() -> bytes:
    return sheet_with('<row r="1"><c r="A1"><v>7</v></c></row>', "A1:XFD1048576")


def last_cell() -> bytes:
    cell = '<row r="1048576"><c r="XFD1048576" t="inlineStr"><is><t>words</t></is></c></row>'
    return sheet_with('<row r="1"><c r="A1"><v>7</v></c></row>' + cell)


def wide_rows() -> bytes:
    """Each row's only value in the last column: a billion empty cells."""
    rows = (f'<row r="{n}"><c r="XFD{n}"><v>{n}</v></c></row>' for n in range(1, 60_000))
    return sheet_with("".join(rows))


def absurd_cell_names() -> bytes:
    names = ("ZZZZZZZ99999999999", "A0", "-1", "", "A" * 10_000)
    cells = "".join(f'<c r="{name}"><v>1</v></c>' for name in names)
    return sheet_with(f'<row r="99999999999999999999">{cells}</row>')


def repeated_cells() -> bytes:
    row = (
        '<table:table-row table:number-rows-repeated="1048576"><table:table-cell'
        ' table:number-columns-repeated="16384" office:value-type="string"><text:p>words</text:p>'
        "</table:table-cell></table:table-row>"
    )
    return open_document(
        "spreadsheet", f"<office:spreadsheet><table:table>{row}</table:table></office:spreadsheet>"
    )


def repeated_cells_in_a_text() -> bytes:
    cell = '<table:table-cell table:number-columns-repeated="99999"><text:p>words</text:p></table:table-cell>'
    return open_document(
        "text",
        f"<office:text><table:table><table:table-row>{cell * 1_000}</table:table-row>"
        "</table:table></office:text>",
    )


def slides_of_slides() -> bytes:
    """One slide, shown a million times."""
    with zipfile.ZipFile(BytesIO(a_pptx())) as archive:
        xml = archive.read("ppt/presentation.xml").decode()
    start = xml.index("<p:sldId ")
    item = xml[start : xml.index("/>", start) + 2]
    return with_members(
        a_pptx(), {"ppt/presentation.xml": xml.replace(item, item * 500_000).encode()}
    )


# --- mail --------------------------------------------------------------------------------------

_MAIL = b"From: a@example.org\nDate: x\nMIME-Version: 1.0\n"


def deep_mail() -> bytes:
    parts = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(5_000)
    )
    return _MAIL + parts + b"\nwords\n"


def mail_in_mail() -> bytes:
    return _MAIL + b"Content-Type: message/rfc822\n\n" * 20_000 + b"\nwords\n"


def million_recipients() -> bytes:
    return (
        _MAIL
        + b"To: "
        + b'"a (b" <c@d>, ' * 300_000
        + b"\nSubject: "
        + b"(" * 500_000
        + b"\n\nwords\n"
    )


def encoded_words() -> bytes:
    word = b"=?utf-8?Q?" + b"=C3=BC" * 10 + b"?="
    return _MAIL + b"Subject: " + b"\n ".join([word] * 50_000) + b"\n\nwords\n"


def mail_with_many_parts() -> bytes:
    part = b"--b\nContent-Type: text/plain\n\nwords\n"
    return _MAIL + b"Content-Type: multipart/mixed; boundary=b\n\n" + part * 20_000 + b"--b--\n"


def base64_without_end() -> bytes:
    data = base64.b64encode(b"words " * 1_000_000)
    return _MAIL + b"Content-Transfer-Encoding: base64\n\n" + data[:-1] + b"=" * 100_000


def cyclic_container() -> bytes:
    data = bytearray(
        compound_file({"__properties_version1.0": b"", "__substg1.0_1000001F": b"x" * 9_000})
    )
    # Every sector points to the first one.
    place = data.find(struct.pack("<I", 1), 512)
    while place > 0:
        struct.pack_into("<I", data, place, 0)
        place = data.find(struct.pack("<I", 1), place + 4)
    return bytes(data)


def container_of_itself() -> bytes:
    """A directory whose entries are one another's children."""
    data = bytearray(an_msg())
    place = data.find("Root Entry".encode("utf-16-le"))
    for entry in range(6):
        struct.pack_into("<III", data, place + 128 * entry + 68, 1, 2, 1)
    return bytes(data)


# --- text --------------------------------------------------------------------------------------


def megabytes(unit: str, count: int = 1_000_000) -> Callable[[], bytes]:
    return lambda: (unit * (count // len(unit))).encode()


def deep_json() -> bytes:
    return b"[" * 1_000_000 + b"]" * 1_000_000


def wide_json() -> bytes:
    return b'{"a":' * 900 + b'"words"' + b"}" * 900


def empty_lists_in_json() -> bytes:
    return b"[" + b"[]," * 500_000 + b"[]]"


def huge_number_in_json() -> bytes:
    return b'{"words": ' + b"9" * 1_000_000 + b"}"


def repeated_keys() -> bytes:
    return b"{" + b",".join(b'"k%d": {"a": "b"}' % n for n in range(20_000)) + b"}"


def deep_notebook() -> bytes:
    return b'{"nbformat": 4, "cells": ' + b"[" * 500_000 + b"]" * 500_000 + b"}"


def deep_html() -> bytes:
    return b"<html><body>" + b"<div>" * 200_000 + b"words"


def tables_in_tables() -> bytes:
    return b"<html><body>words" + b"<table><tr><td>x" * 20_000


def deep_rtf() -> bytes:
    return b"{\\rtf1 " + b"{" * 1_000_000 + b"words" + b"}" * 1_000_000


def rtf_of_pictures() -> bytes:
    return b"{\\rtf1 words " + b"\\bin999999999 " * 100_000 + b"}"


def unclosed_quote() -> bytes:
    return b"a;b;c\n1;2;3\n" * 100 + b'"' + b"words; and\n" * 400_000


def million_columns() -> bytes:
    return b",".join([b"a"] * 1_000_000) + b"\n" + b",".join([b"1"] * 1_000_000)


def invalid_unicode() -> bytes:
    return b"words \xed\xa0\x80\xed\xb0\x80 \xf4\x90\x80\x80 \xc0\x80 \xff\xfe " * 2_000


def surrogates_in_json() -> bytes:
    return b'{"words": "a \\ud800 b \\u0000 c", "\\udfff": "\\ud83d"}'


def pdf_and_zip() -> bytes:
    return a_pdf() + an_odt()


def zip_after_rubbish() -> bytes:
    return b"MZ" + bytes(range(256)) * 20 + a_docx()


def html_and_pdf() -> bytes:
    return b"<!doctype html><html><body>words<!-- " + a_pdf() + b" -->"


def picture_named_document() -> bytes:
    return b"GIF89a/*" + an_html()


def header_only(name: str) -> Callable[[], bytes]:
    return lambda: VALID[name]()[:64]


def rubbish_after_header(name: str) -> Callable[[], bytes]:
    return lambda: VALID[name]()[:64] + bytes(range(1, 256)) * 4_000


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    make.__name__: (name, make)
    for name, makers in {
        "a.pdf": [flate_bomb, nested_flate_bomb, endless_text_in_a_pdf, cyclic_page_tree,
                  lying_page_count, form_that_draws_itself, forms_that_double, cyclic_outline,
                  deep_pdf_array, pdf_and_zip, picture_named_document],
        "a.docx": [zip_bomb, repetitive_document, zip_in_zip_in_zip, lying_member_size,
                   overlapping_members, too_many_members, billion_laughs_in_a_document,
                   zip_after_rubbish],
        "a.odt": [names_that_climb_out, deep_document, repeated_cells_in_a_text],
        "a.epub": [external_entity_in_a_book, book_of_the_servers_files],
        "a.xml": [billion_laughs, external_entity, remote_dtd, deep_xml, million_attributes],
        "a.xlsx": [billion_laughs_in_a_sheet, lying_dimension, last_cell, wide_rows,
                   absurd_cell_names],
        "a.ods": [repeated_cells],
        "a.pptx": [slides_of_slides],
        "a.eml": [deep_mail, mail_in_mail, million_recipients, encoded_words, mail_with_many_parts,
                  base64_without_end],
        "a.msg": [cyclic_container, container_of_itself],
        "a.json": [deep_json, wide_json, empty_lists_in_json, huge_number_in_json, repeated_keys,
                   surrogates_in_json],
        "a.ipynb": [deep_notebook],
        "a.html": [deep_html, tables_in_tables, html_and_pdf],
        "a.rtf": [deep_rtf, rtf_of_pictures],
        "a.csv": [unclosed_quote, million_columns],
        "a.txt": [invalid_unicode],
    }.items()
    for make in makers
}  # fmt: skip
_UNITS = {
    "a.txt": ("a", " ", "\n", "\u6f22", "a b", "\u0301", "\x00a"),
    "a.md": (
        "[",
        "(",
        "`",
        "*",
        "_",
        ">",
        "> ",
        "- ",
        "![",
        "<",
        "|",
        "#",
        "\\",
        "[a](",
        "<!--",
        "a | b\n",
    ),
    "a.rst": ("`", "*", ":", "=", ".. ", "::\n", "`<", "|", "+--+\n", ":a:`"),
    "a.html": ("<", "&", "<p>", "<a ", "<!--", "<table>", "&amp;", "</", "<li>", "<pre>"),
    "a.rtf": ("\\", "{\\", "\\u-1 ", "\\'ff", "\\cell ", "\\bin1 "),
    "a.xml": ("<", "<a>", "&lt;", "<![CDATA["),
    "a.csv": ('"', ",", '",', "\n", "a,"),
    "a.json": ('"', '{"a":', "[1,", "\\"),
    "a.eml": ("From: ", "\n", "=?", "Subject: a\n", ": "),
    "a.py": ("def a", "(", " ", "class a:\n", "\t", "@a\n", "pub "),
    "a.c": ("a ", "a*", "int f("),
    "a.sql": ("create ", "table "),
}
HOSTILE |= {
    f"megabyte of {unit.strip() or repr(unit)} in {name}": (name, megabytes(unit))
    for name, units in _UNITS.items()
    for unit in units
}
HOSTILE |= {f"head of {name}": (name, header_only(name)) for name in VALID}
HOSTILE |= {
    f"rubbish after the head of {name}": (name, rubbish_after_header(name)) for name in VALID
}

NAMES = (
    "'; drop table x; --.txt", 'a"b\'c.txt', "line\nbreak.txt", "tab\t.txt", "\u202etxt.exe",
    "-rf", "$(touch x).txt", "a" * 255, "..", ".", "\udce9\udcff.txt", "a\\b\\c.txt", "%00.txt",
    "", " ", "\U0001f600.txt", "CON", "a.txt\x01",
)  # fmt: skip

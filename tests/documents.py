"""Makes a valid document of each format, all with the same words in them."""

from __future__ import annotations

import datetime
import email.message
import itertools
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO

import docx
import openpyxl
import pptx
import xlwt
from reportlab.pdfgen.canvas import Canvas

TITLE = "Harbour Notes"
AUTHOR = "A. Keeper"
HEADING = "Winter Storm"
SENTENCE = "The keeper of the light walked down to the harbour before the storm came in."
ROWS = (("lamp", "count", "state"), ("copper", "12", "broken"), ("glass", "7", "whole"))


def zipped(members: Mapping[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in members.items():
            how = zipfile.ZIP_STORED if name == "mimetype" else compression
            archive.writestr(name, content, how)
    return target.getvalue()


def saved(document: object) -> bytes:
    target = BytesIO()
    document.save(target)
    return target.getvalue()


def a_pdf() -> bytes:
    target = BytesIO()
    canvas = Canvas(target)
    canvas.setTitle(TITLE)
    canvas.setAuthor(AUTHOR)
    canvas.setFont("Helvetica-Bold", 18)
    canvas.drawString(72, 780, HEADING)
    canvas.setFont("Helvetica", 11)
    canvas.drawString(72, 740, SENTENCE)
    for number, row in enumerate(ROWS):
        canvas.drawString(72, 700 - 14 * number, " ".join(row))
    canvas.save()
    return target.getvalue()


def a_docx() -> bytes:
    document = docx.Document()
    document.core_properties.title = TITLE
    document.core_properties.author = AUTHOR
    document.add_heading(HEADING, 1)
    document.add_paragraph(SENTENCE)
    table = document.add_table(len(ROWS), len(ROWS[0]))
    for row, line in zip(table.rows, ROWS, strict=True):
        for cell, text in zip(row.cells, line, strict=True):
            cell.text = text
    return saved(document)


def a_pptx() -> bytes:
    slides = pptx.Presentation()
    slides.core_properties.title = TITLE
    slides.core_properties.author = AUTHOR
    slide = slides.slides.add_slide(slides.slide_layouts[1])
    slide.shapes.title.text = HEADING
    slide.placeholders[1].text = SENTENCE
    slide.notes_slide.notes_text_frame.text = "Say this slowly."
    slide = slides.slides.add_slide(slides.slide_layouts[5])
    slide.shapes.title.text = "The lamps"
    shape = slide.shapes.add_table(len(ROWS), len(ROWS[0]), 0, 0, 5_000_000, 1_000_000)
    for row, line in enumerate(ROWS):
        for column, text in enumerate(line):
            shape.table.cell(row, column).text = text
    return saved(slides)


def an_xlsx() -> bytes:
    book = openpyxl.Workbook()
    book.properties.title = TITLE
    book.properties.creator = AUTHOR
    sheet = book.active
    sheet.title = HEADING
    for row in ROWS:
        sheet.append([int(cell) if cell.isdigit() else cell for cell in row])
    sheet.append([SENTENCE, datetime.date(2024, 5, 6), True])
    book.create_sheet("Empty")
    return saved(book)


def an_xls() -> bytes:
    book = xlwt.Workbook()
    sheet = book.add_sheet(HEADING)
    for number, row in enumerate([*ROWS, (SENTENCE,)]):
        for column, text in enumerate(row):
            sheet.write(number, column, int(text) if text.isdigit() else text)
    return saved(book)


_ODF = "".join(
    f' xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{space}:1.0"'
    for name, space in (
        ("office", "office"), ("text", "text"), ("table", "table"), ("draw", "drawing"),
        ("meta", "meta"), ("presentation", "presentation"),
    )
)  # fmt: skip


def open_document(kind: str, body: str) -> bytes:
    meta = (
        f'<office:document-meta{_ODF} xmlns:dc="http://purl.org/dc/elements/1.1/"><office:meta>'
        f"<dc:title>{TITLE}</dc:title><meta:initial-creator>{AUTHOR}</meta:initial-creator>"
        "<meta:creation-date>2024-05-06T07:08:09</meta:creation-date>"
        "</office:meta></office:document-meta>"
    )
    content = (
        f"<office:document-content{_ODF}><office:body>{body}</office:body>"
        "</office:document-content>"
    )
    mime_type = f"application/vnd.oasis.opendocument.{kind}"
    manifest = (
        '<m:manifest xmlns:m="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">'
        f'<m:file-entry m:full-path="/" m:media-type="{mime_type}"/>'
        '<m:file-entry m:full-path="content.xml" m:media-type="text/xml"/></m:manifest>'
    )
    return zipped(
        {
            "mimetype": mime_type,
            "content.xml": content,
            "meta.xml": meta,
            "META-INF/manifest.xml": manifest,
        }
    )


def _odf_table() -> str:
    rows = "".join(
        "<table:table-row>"
        + "".join(
            f'<table:table-cell office:value-type="string"><text:p>{cell}</text:p></table:table-cell>'
            for cell in row
        )
        + "</table:table-row>"
        for row in [*ROWS, (SENTENCE,)]
    )
    return f'<table:table table:name="{HEADING}">{rows}</table:table>'


def an_odt() -> bytes:
    return open_document(
        "text",
        "<office:text><text:tracked-changes><text:p>deleted words</text:p></text:tracked-changes>"
        f'<text:h text:outline-level="1">{HEADING}</text:h><text:p>{SENTENCE}<text:note>'
        "<text:note-citation>1</text:note-citation><text:note-body><text:p>A note.</text:p>"
        f"</text:note-body></text:note></text:p><text:list><text:list-item><text:p>an item</text:p>"
        f"</text:list-item></text:list>{_odf_table()}</office:text>",
    )


def an_ods() -> bytes:
    return open_document("spreadsheet", f"<office:spreadsheet>{_odf_table()}</office:spreadsheet>")


def an_odp() -> bytes:
    slide = (
        '<draw:page draw:name="p"><draw:frame presentation:class="title"><draw:text-box>'
        f"<text:p>{HEADING}</text:p></draw:text-box></draw:frame><draw:frame><draw:text-box>"
        f"<text:p>{SENTENCE}</text:p></draw:text-box></draw:frame><presentation:notes><draw:frame>"
        "<draw:text-box><text:p>Say this slowly.</text:p></draw:text-box></draw:frame>"
        "</presentation:notes></draw:page>"
    )
    body = f"<office:presentation>{slide}{slide.replace(HEADING, 'Second')}</office:presentation>"
    return open_document("presentation", body)


def an_epub() -> bytes:
    chapter = (
        '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head>'
        f"<body><h1>{HEADING}</h1><p>{SENTENCE}</p></body></html>"
    )
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<metadata><dc:title>{TITLE}</dc:title><dc:creator>{AUTHOR}</dc:creator>"
        "<dc:language>en</dc:language><dc:date>2024-05-06</dc:date></metadata><manifest>"
        '<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        '<item id="a" href="one%20a.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="b" href="two.xhtml" media-type="application/xhtml+xml"/></manifest><spine>'
        '<itemref idref="n"/><itemref idref="b"/><itemref idref="a"/></spine></package>'
    )
    return zipped(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container><rootfiles><rootfile full-path="OEBPS/c.opf"/>'
            "</rootfiles></container>",
            "OEBPS/c.opf": package,
            "OEBPS/nav.xhtml": "<html><body><p>table of contents</p></body></html>",
            "OEBPS/one a.xhtml": chapter,
            "OEBPS/two.xhtml": "<html><body><p>First in the spine.</p></body></html>",
        }
    )


def an_rtf() -> bytes:
    cells = "".join(
        r"\trowd\cellx1000\cellx2000\cellx3000 " + "".join(f"{c}\\cell " for c in row) + r"\row "
        for row in ROWS
    )
    return (
        r"{\rtf1\ansi\ansicpg1251{\fonttbl{\f0 Arial;}}{\info{\title "
        + TITLE
        + r"}{\author "
        + AUTHOR
        + r"}{\creatim\yr2024\mo5\dy6}}"
        + rf"\b {HEADING}\b0\par {SENTENCE}\par \'cf\'f0\'e8\'e2\'e5\'f2 caf\u233?\par {cells}"
        + r"\pard\page On the second page.\par}"
    ).encode("ascii")


def an_eml() -> bytes:
    message = email.message.EmailMessage()
    message["From"] = f"{AUTHOR} <keeper@example.org>"
    message["To"] = "Höfen <harbour@example.org>"
    message["Subject"] = TITLE
    message["Date"] = "Mon, 06 May 2024 07:08:09 +0000"
    message.set_content(f"{HEADING}\n\n{SENTENCE}\n")
    message.add_alternative(f"<p>{SENTENCE}</p>", subtype="html")
    message.add_attachment(b"%PDF-1.4", "application", "pdf", filename="bericht über öl.pdf")
    return message.as_bytes()


def compound_file(streams: Mapping[str, bytes]) -> bytes:
    """An OLE container. Streams are filled up with zeros: small ones would be kept elsewhere."""
    sector, free, end, fat_mark = 512, 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD
    entries: list[tuple[str, int, bytes]] = [("Root Entry", 5, b"")]
    parents: dict[str, list[int]] = {"": []}
    for path, data in streams.items():
        folder, _, name = path.rpartition("/")
        if folder and folder not in parents:
            parents[folder] = []
            parents[""].append(len(entries))
            entries.append((folder, 1, b""))
        parents[folder].append(len(entries))
        entries.append((name, 2, data.ljust(4096, b"\0")))
    right = [free] * len(entries)
    child = [free] * len(entries)
    for folder, members in parents.items():
        owner = 0 if not folder else next(i for i, e in enumerate(entries) if e[0] == folder)
        child[owner] = members[0] if members else free
        for one, other in itertools.pairwise(members):
            right[one] = other
    fat: list[int] = []
    body = b""

    def place(data: bytes) -> int:
        nonlocal body
        count = -(-len(data) // sector)
        start = len(fat)
        fat.extend([*range(start + 1, start + count), end] if count else [])
        body += data.ljust(count * sector, b"\0")
        return start if count else end

    starts = [place(data) for _, _, data in entries]
    directory = b"".join(
        name.encode("utf-16-le").ljust(64, b"\0")
        + struct.pack("<HBBIII", 2 * len(name) + 2, kind, 1, free, right[i], child[i])
        + bytes(36)
        + struct.pack("<IQ", starts[i], len(data))
        for i, (name, kind, data) in enumerate(entries)
    )
    directory_start = place(directory.ljust(-(-len(directory) // sector) * sector, b"\0"))
    fat_start = len(fat)
    fat_sectors = -(-(fat_start + 4) // 128)
    fat.extend([fat_mark] * fat_sectors)
    table = struct.pack(f"<{len(fat)}I", *fat).ljust(fat_sectors * sector, b"\xff")
    header = (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
        + bytes(16)
        + struct.pack("<HHHHH", 0x3E, 3, 0xFFFE, 9, 6)
        + bytes(6)
        + struct.pack("<IIIIIIIII", 0, fat_sectors, directory_start, 0, 4096, end, 0, end, 0)
        + struct.pack("<109I", *[fat_start + i if i < fat_sectors else free for i in range(109)])
    )
    return header + body + table


def an_msg() -> bytes:
    def text(value: str) -> bytes:
        return value.encode("utf-16-le")

    sent = (datetime.datetime(2024, 5, 6, 7, 8, 9) - datetime.datetime(1601, 1, 1)).total_seconds()
    return compound_file(
        {
            "__properties_version1.0": bytes(32)
            + struct.pack("<IIQ", 0x00390040, 6, int(sent) * 10**7),
            "__substg1.0_0037001F": text(TITLE),
            "__substg1.0_0C1A001F": text(AUTHOR),
            "__substg1.0_5D01001F": text("keeper@example.org"),
            "__substg1.0_0E04001F": text("harbour@example.org"),
            "__substg1.0_1000001F": text(f"{HEADING}\r\n\r\n{SENTENCE}\r\n"),
            "__attach_version1.0_#00000000/__substg1.0_3707001F": text("bericht über öl.pdf"),
        }
    )


def an_html() -> bytes:
    rows = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in ROWS)
    return (
        f"<!DOCTYPE html><html lang=en><head><title>{TITLE}</title><meta name=author"
        f' content="{AUTHOR}"></head><body><h1>{HEADING}</h1><p>{SENTENCE}</p>'
        f"<table>{rows}</table></body></html>"
    ).encode()


def a_markdown() -> bytes:
    rows = "\n".join(f"| {' | '.join(row)} |" for row in (ROWS[0], ("---",) * 3, *ROWS[1:]))
    return (
        f"---\ntitle: {TITLE}\nauthor: {AUTHOR}\n---\n# {HEADING}\n\n{SENTENCE}\n\n{rows}\n"
    ).encode()


def an_rst() -> bytes:
    return f"""
{"=" * 20}
{TITLE}
{"=" * 20}
:Author: {AUTHOR}

.. a comment

{HEADING}
{"-" * 20}
{SENTENCE} With *marks*, ``code`` and a `link <http://example.org>`_::

    literal = 1

.. note:: Mind the step.

.. include:: /etc/passwd

- an item
- another

====== ===== ======
{ROWS[0][0]}   {ROWS[0][1]} {ROWS[0][2]}
====== ===== ======
copper 12    broken
glass  7     whole
====== ===== ======
""".encode()


def a_csv() -> bytes:
    lines = [";".join(row) for row in ROWS]
    return "\n".join([*lines, f'"{SENTENCE}";3;"a; b"']).encode("windows-1252")


def a_json() -> bytes:
    records = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]
    return json.dumps(
        {"title": TITLE, HEADING: {"text": SENTENCE, "lamps": records}}, ensure_ascii=True
    ).encode()


def a_jsonl() -> bytes:
    return f'{{"title": "{HEADING}"}}\n{{"text": "{SENTENCE}"}}\n'.encode()


def an_xml() -> bytes:
    rows = "".join(
        "<row>" + "".join(f"<{n}>{c}</{n}>" for n, c in zip(ROWS[0], row, strict=True)) + "</row>"
        for row in ROWS[1:]
    )
    return (
        f"<?xml version='1.0'?><book><title>{TITLE}</title><author>{AUTHOR}</author><chapter>"
        f"<title>{HEADING}</title><para>{SENTENCE}</para>{rows}</chapter></book>"
    ).encode()


def a_notebook() -> bytes:
    cells = [
        {"cell_type": "markdown", "source": [f"# {HEADING}\n", SENTENCE]},
        {
            "cell_type": "code",
            "source": "print(6 * 7)",
            "outputs": [{"output_type": "stream", "text": ["42\n"]}],
        },
    ]
    metadata = {"title": TITLE, "authors": [{"name": AUTHOR}]}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4}).encode()


def a_text() -> bytes:
    return f"{HEADING}\n\n{SENTENCE}\n".encode()


def some_code() -> bytes:
    return (
        f'class Harbour:\n    """{SENTENCE}"""\n\n    def light(self):\n        return 1\n'.encode()
    )


VALID: dict[str, Callable[[], bytes]] = {
    "a.pdf": a_pdf,
    "a.docx": a_docx,
    "a.pptx": a_pptx,
    "a.xlsx": an_xlsx,
    "a.xls": an_xls,
    "a.odt": an_odt,
    "a.ods": an_ods,
    "a.odp": an_odp,
    "a.epub": an_epub,
    "a.rtf": an_rtf,
    "a.eml": an_eml,
    "a.msg": an_msg,
    "a.html": an_html,
    "a.md": a_markdown,
    "a.rst": an_rst,
    "a.csv": a_csv,
    "a.json": a_json,
    "a.jsonl": a_jsonl,
    "a.xml": an_xml,
    "a.ipynb": a_notebook,
    "a.txt": a_text,
    "a.py": some_code,
}


def png(width: int, height: int) -> bytes:
    """A white picture of any size declared."""

    def piece(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    line = b"\0" + b"\xff" * min(width, 1_000)
    pixels = zlib.compress(line * min(height, 1_000))
    return (
        b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", head) + piece(b"IDAT", pixels) + piece(b"IEND", b"")
    )

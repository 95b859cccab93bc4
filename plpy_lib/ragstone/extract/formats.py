"""The table of formats, and how the format of a file is recognised."""

from __future__ import annotations

import codecs
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..errors import DocumentError
from .encoding import wide_without_mark

_WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_SHEET = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
_SLIDES = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
_BINARY_SHEET = "application/vnd.ms-excel.sheet.binary.macroEnabled.12"
_ODF = "application/vnd.oasis.opendocument"

CODE_EXTENSIONS = [
    "bash",
    "c",
    "cc",
    "clj",
    "cpp",
    "cs",
    "cxx",
    "dart",
    "ex",
    "exs",
    "go",
    "h",
    "hh",
    "hpp",
    "hs",
    "java",
    "jl",
    "js",
    "jsx",
    "kt",
    "kts",
    "lua",
    "m",
    "mjs",
    "ml",
    "pas",
    "pl",
    "pm",
    "php",
    "ps1",
    "py",
    "pyi",
    "r",
    "rb",
    "rs",
    "scala",
    "sh",
    "sql",
    "swift",
    "tcl",
    "ts",
    "tsx",
    "vb",
    "zig",
]


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file. `module` is the extractor of that name beside this file, None if there is
    none yet; `binary` formats have a signature, so a file without it is not one.
    """

    mime_type: str
    label: str
    module: str | None = None
    extensions: tuple[str, ...] = ()
    signatures: tuple[bytes, ...] = ()
    binary: bool = True


FORMATS: tuple[Format, ...] = (
    Format("application/pdf", "PDF document", "pdf", ("pdf",), (b"%PDF-",)),
    Format(_WORD, "Word document (DOCX)", "docx", ("docx", "docm", "dotx")),
    Format("text/html", "web page", "html", ("html", "htm", "xhtml", "xht"), binary=False),
    Format("text/markdown", "Markdown text", "markdown", ("md", "markdown", "mdown", "mkd"),
           binary=False),
    Format("text/x-source", "source code", "code", tuple(CODE_EXTENSIONS), binary=False),
    Format("text/csv", "table of values", "delimited", ("csv", "tsv", "tab"), binary=False),
    Format("application/json", "JSON file", "json",
           ("json", "jsonl", "ndjson", "geojson"), binary=False),
    Format("application/x-ipynb+json", "Jupyter notebook", "notebook", ("ipynb",), binary=False),
    Format("application/xml", "XML file", "xml",
           ("xml", "rss", "atom", "docbook", "dbk", "svg", "xsd", "xsl", "fodt", "fods", "fodp"),
           binary=False),
    Format("text/x-rst", "reStructuredText", "rst", ("rst", "rest"), binary=False),
    Format("message/rfc822", "mail message", "mail", ("eml", "mht", "mhtml"), binary=False),
    Format("text/plain", "plain text", "text",
           ("txt", "text", "log", "tex", "srt", "vtt", "ini", "cfg", "conf", "toml", "yaml", "yml",
            "properties", "adoc", "org", "asc", "nfo"), binary=False),
    Format(_SHEET, "spreadsheet (XLSX)", "spreadsheet", ("xlsx", "xlsm", "xltx")),
    Format(_BINARY_SHEET, "spreadsheet (XLSB)", "spreadsheet", ("xlsb",)),
    Format(_ODF + ".spreadsheet", "spreadsheet (ODS)", "spreadsheet", ("ods", "ots")),
    Format("application/vnd.ms-excel", "legacy spreadsheet (XLS)", "spreadsheet", ("xls", "xlt")),
    Format(_SLIDES, "presentation (PPTX)", "pptx", ("pptx", "pptm", "ppsx", "potx")),
    Format(_ODF + ".text", "text document (ODT)", "opendocument", ("odt", "ott")),
    Format(_ODF + ".presentation", "presentation (ODP)", "opendocument", ("odp", "otp")),
    Format("application/epub+zip", "electronic book (EPUB)", "epub", ("epub",)),
    Format("application/rtf", "rich text (RTF)", "rtf", ("rtf",), (b"{\\rtf",)),
    Format("application/vnd.ms-outlook", "Outlook message (MSG)", "outlook", ("msg", "oft")),
    # Not read, but recognised so that the error names them.
    Format("application/msword", "legacy Word document (DOC)", None, ("doc", "dot")),
    Format("application/vnd.ms-powerpoint", "legacy presentation (PPT)", None, ("ppt", "pps")),
    Format("application/x-ole-storage", "legacy Office file", None, (),
           (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",)),
    Format("application/zip", "ZIP archive", None, ("zip", "jar"), (b"PK\x03\x04", b"PK\x05\x06")),
    Format("image/jpeg", "JPEG image", "image", ("jpg", "jpeg"), (b"\xff\xd8\xff",)),
    Format("image/png", "PNG image", "image", ("png",), (b"\x89PNG\r\n\x1a\n",)),
    Format("image/gif", "GIF image", "image", ("gif",), (b"GIF87a", b"GIF89a")),
    Format("image/tiff", "TIFF image", "image", ("tif", "tiff"), (b"II*\x00", b"MM\x00*")),
    Format("image/bmp", "bitmap image", "image", ("bmp",)),
    Format("image/webp", "WebP image", "image", ("webp",)),
    Format("application/gzip", "gzip archive", None, ("gz", "tgz"), (b"\x1f\x8b",)),
    Format("application/x-bzip2", "bzip2 archive", None, ("bz2",), (b"BZh",)),
    Format("application/x-xz", "xz archive", None, ("xz",), (b"\xfd7zXZ\x00",)),
    Format("application/zstd", "Zstandard archive", None, ("zst",), (b"\x28\xb5\x2f\xfd",)),
    Format("application/x-7z-compressed", "7z archive", None, ("7z",), (b"7z\xbc\xaf\x27\x1c",)),
    Format("application/vnd.rar", "RAR archive", None, ("rar",), (b"Rar!\x1a\x07",)),
    Format("application/x-elf", "program (ELF)", None, ("so", "o"), (b"\x7fELF",)),
    Format("application/vnd.sqlite3", "SQLite database", None, ("sqlite", "db"),
           (b"SQLite format 3\x00",)),
    Format("audio/mpeg", "MP3 audio", None, ("mp3",), (b"ID3",)),
    Format("video/mp4", "MP4 video", None, ("mp4", "m4a", "mov")),
)  # fmt: skip

_BY_TYPE = {form.mime_type: form for form in FORMATS}
_BY_EXTENSION = {extension: form for form in FORMATS for extension in form.extensions}
# Text formats that are recognised by their content alone.
_OWN_SIGNS = {"text/html", "application/xml", "message/rfc822"}
_UNKNOWN = Format("application/octet-stream", "binary file of no known kind")
_BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]{0,200}\?>\s*)?(?:<!--.{0,2000}?-->\s*)*(?:<!doctype\s+html|<html[\s>])",
    re.IGNORECASE | re.DOTALL,
)
_SHEBANG = re.compile(rb"#! ?/\S*(?:bin|env)")
# PDF readers accept some bytes before the header, which mail gateways add. So does this.
_PDF_SLACK = 1_024
# The content of an OLE container, by the names of its streams.
_STREAMS = (
    ("EncryptedPackage", ""),
    ("__properties_version1.0", "application/vnd.ms-outlook"),
    ("WordDocument", "application/msword"),
    ("PowerPoint Document", "application/vnd.ms-powerpoint"),
    ("Workbook", "application/vnd.ms-excel"),
    ("Book", "application/vnd.ms-excel"),
)
_MAIL_HEADER = re.compile(
    rb"(?:return-path|received|from|to|cc|date|subject|mime-version|message-id|delivered-to|sender"
    rb"|reply-to|content-type|x-[a-z-]{1,40}|dkim-signature|authentication-results):[ \t]",
    re.IGNORECASE,
)
_MAIL_NEEDS = re.compile(rb"^(?:from|received|date|message-id):", re.IGNORECASE | re.MULTILINE)
_NOTEBOOK = re.compile(rb'"(?:nbformat|cell_type)"\s*:')
_XML = re.compile(rb"\s*<\?xml[\s?]")
# Many programs write tables and web pages under these names.
_TEXT_INSIDE = {"xls": "text/csv", "doc": "text/plain"}


def recognise(data: bytes, name: str) -> Format:
    """The format of `data`, by content before name. The one returned always has a module.

    Raises DocumentError unsupported (naming what it is, and what its name says), encrypted for an
    encrypted Office file, damaged where a file is not what its name says and nothing else either.
    """
    named = _BY_EXTENSION.get(extension(name))
    form = _by_signature(data) or _by_text(data, named)
    if form is None:
        form = _UNKNOWN
        if named and named.binary and named.module:
            raise _not_what_it_says(named, name)
    if form.module is None:
        raise _unsupported(form, named, name)
    if named and named.binary and not form.binary and form.mime_type not in _OWN_SIGNS:
        if inside := _TEXT_INSIDE.get(extension(name)):
            return _BY_TYPE[inside]
        raise _not_what_it_says(named, name)
    return form


def extension(name: str) -> str:
    """The file name's extension in lower case, without the dot."""
    return PurePosixPath(name.replace("\\", "/")).suffix[1:].lower()


def _by_signature(data: bytes) -> Format | None:
    head = data[:_PDF_SLACK]
    for form in FORMATS:
        if head.startswith(form.signatures or (b"\x00\xff never",)):
            if form.mime_type == "application/zip":
                return _inside_zip(data)
            if form.mime_type == "application/x-ole-storage":
                return _inside_ole(data, form)
            return form
    if b"%PDF-" in head and b" obj" in data:  # else it is a text about PDF
        return _BY_TYPE["application/pdf"]
    if head[4:8] == b"ftyp":
        return _BY_TYPE["video/mp4"]
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _BY_TYPE["image/webp"]
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return _BY_TYPE["image/bmp"]
    return None


def _inside_zip(data: bytes) -> Format:
    """Office formats are ZIP archives. Their members tell which one it is."""
    plain = _BY_TYPE["application/zip"]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
            if "mimetype" in names and archive.getinfo("mimetype").file_size < 200:
                declared = archive.read("mimetype").decode("ascii", "replace").strip()
                return _BY_TYPE.get(declared.replace("-template", ""), plain)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DocumentError(
            "damaged",
            "the document is damaged",
            detail=f"It is a ZIP-based file whose archive cannot be read: {error}",
        ) from None
    if "xl/workbook.bin" in names:
        return _BY_TYPE[_BINARY_SHEET]
    folders = {name.split("/", 1)[0] for name in names}
    for folder, mime_type in (("word", _WORD), ("xl", _SHEET), ("ppt", _SLIDES)):
        if folder in folders and "[Content_Types].xml" in names:
            return _BY_TYPE[mime_type]
    return plain


def _inside_ole(data: bytes, form: Format) -> Format:
    """Legacy Office files are OLE containers. Their streams tell which one it is."""
    for stream, mime_type in _STREAMS:
        if stream.encode("utf-16-le") not in data:
            continue
        if not mime_type:
            raise DocumentError(
                "encrypted",
                "the document is protected by a password",
                detail="It is an encrypted Office file.",
            )
        return _BY_TYPE[mime_type]
    return form


def _by_text(data: bytes, named: Format | None) -> Format | None:
    """Text has no signature. A web page is recognised by its look, the rest by its name."""
    head = data[:4_096]
    if b"\x00" in head and not head.startswith(_BOMS) and named is None and _is_rubbish(head):
        return None
    bare = head.removeprefix(codecs.BOM_UTF8)
    if _HTML.match(bare) and (named is None or named.module not in ("code", "mail")):
        return _BY_TYPE["text/html"]
    if named and not named.binary:
        return named
    if _XML.match(bare):
        return _BY_TYPE["application/xml"]
    if _MAIL_HEADER.match(bare) and _MAIL_NEEDS.search(bare):
        return _BY_TYPE["message/rfc822"]
    if named and named.binary and _is_rubbish(head):
        return None
    if _SHEBANG.match(bare):
        return _BY_TYPE["text/x-source"]
    if bare.lstrip()[:1] in (b"{", b"["):
        is_notebook = _NOTEBOOK.search(data[:100_000])
        return _BY_TYPE["application/x-ipynb+json" if is_notebook else "application/json"]
    return _BY_TYPE["text/plain"]


def _is_rubbish(head: bytes) -> bool:
    """Whether there are more control characters than in any text of a one-byte encoding."""
    if head.startswith(_BOMS) or wide_without_mark(head):
        return False
    controls = sum(byte < 9 or 13 < byte < 27 or 27 < byte < 32 for byte in head)
    return controls > 0.02 * len(head)


_CONVERT = {
    "application/msword": "Save it as DOCX, e.g. with: soffice --headless --convert-to docx FILE",
    "application/vnd.ms-powerpoint": "Save it as PPTX, e.g. with:"
    " soffice --headless --convert-to pptx FILE",
    "application/zip": "Store the files in the archive one by one.",
}


def _unsupported(form: Format, named: Format | None, name: str) -> DocumentError:
    detail = f"It is {_a(form.label)}"
    if named and named.mime_type != form.mime_type:
        detail += f", though its name ends in .{extension(name)} like {_a(named.label)}"
    hint = _CONVERT.get(form.mime_type, "Convert the document to PDF, DOCX, HTML or plain text.")
    return DocumentError(
        "unsupported",
        f"no text can be extracted from {_a(form.label)}",
        detail=detail + ".",
        hint=hint,
    )


def _not_what_it_says(named: Format, name: str) -> DocumentError:
    return DocumentError(
        "damaged",
        f"the document is not {_a(named.label)}",
        detail=f"Its name ends in .{extension(name)}, but its content does not begin like one.",
        hint="Replace the file by an intact copy, or give it the name of what it is.",
    )


def _a(label: str) -> str:
    return f"{'an' if label[0].lower() in 'aeiou' else 'a'} {label}"

"""Outlook's messages (MSG): MAPI properties in an OLE container."""

from __future__ import annotations

import datetime
import io
import struct
from typing import Any

import olefile

from ..errors import DocumentError
from . import mail, rtf
from .encoding import decode
from .html import decode_page
from .model import Collector, Extracted, Source
from .options import Limits

_NAMES = {"From": "0C1A", "To": "0E04", "Cc": "0E03", "Subject": "0037"}
_ADDRESSES = ("5D01", "0C1F")
_BODY, _HTML, _RTF = "1000", "1013", "1009"
_FILE_NAMES = ("3707", "3704", "3001")
_SENT, _DELIVERED = 0x00390040, 0x0E060040
_HEADER_BYTES, _ENTRY_BYTES = 32, 16
_EPOCH = datetime.datetime(1601, 1, 1, tzinfo=datetime.UTC)
_MAX_STREAM_BYTES = 50_000_000
_MAX_ATTACHMENTS = 1_000


def extract(source: Source, limits: Limits) -> Extracted:
    """Headers, text, and the names of attachments. Raises DocumentError damaged."""
    try:
        with olefile.OleFileIO(io.BytesIO(source.data)) as container:
            letter = _letter(container)
    except (OSError, ValueError, struct.error, IndexError) as error:
        raise DocumentError(
            "damaged", "the document is damaged", detail=f"Its container cannot be read: {error}"
        ) from None
    collector = Collector(limits)
    mail.add(letter, collector)
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=letter.headers.get("Subject"),
        author=letter.headers.get("From"),
        created=letter.headers.get("Date"),
        metadata=mail.described(letter),
    )


def _letter(container: Any) -> mail.Letter:
    letter = mail.Letter()
    for name, number in _NAMES.items():
        if text := " ".join((_property(container, number) or "").replace("\x00", "").split()):
            letter.headers[name] = text[:2_000]
    address = next(filter(None, (_property(container, n) for n in _ADDRESSES)), None)
    if address and "@" in address and address not in letter.headers.get("From", ""):
        letter.headers["From"] = f"{letter.headers.get('From', '')} <{address.strip()}>".strip()
    if date := _date(container):
        letter.headers["Date"] = date
    letter.text = _property(container, _BODY) or ""
    if not letter.text.strip():
        letter.html = _html(container)
    if not letter.text.strip() and not letter.html:
        letter.text = _rich_text(container)
    letter.attachments = _attachments(container)
    return letter


def _property(container: Any, number: str, folder: str = "") -> str | None:
    """A text property, in Unicode or in the code page of the machine that wrote it."""
    if data := _stream(container, f"{folder}__substg1.0_{number}001F"):
        return data.decode("utf-16-le", "replace").rstrip("\x00")
    if data := _stream(container, f"{folder}__substg1.0_{number}001E"):
        return decode(data.rstrip(b"\x00"))[0]
    return None


def _stream(container: Any, name: str) -> bytes:
    if not container.exists(name) or container.get_size(name) > _MAX_STREAM_BYTES:
        return b""
    with container.openstream(name) as stream:
        return bytes(stream.read())


def _html(container: Any) -> str:
    if data := _stream(container, f"__substg1.0_{_HTML}0102"):
        return decode_page(data)
    return _property(container, _HTML) or ""


def _rich_text(container: Any) -> str:
    data = _stream(container, f"__substg1.0_{_RTF}0102")
    if not data:
        return ""
    from compressed_rtf import decompress

    return rtf.plain_text(decompress(data).decode("latin-1"), "cp1252")


def _date(container: Any) -> str | None:
    """When it was sent, or else delivered. The file counts 100 ns since 1601."""
    data = _stream(container, "__properties_version1.0")[_HEADER_BYTES:]
    found: dict[int, int] = {}
    for start in range(0, len(data) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        tag, _, value = struct.unpack_from("<IIQ", data, start)
        found.setdefault(tag, value)
    value = found.get(_SENT) or found.get(_DELIVERED)
    try:
        when = _EPOCH + datetime.timedelta(microseconds=value // 10) if value else None
    except OverflowError:
        return None
    return when.isoformat() if when else None


def _attachments(container: Any) -> list[str]:
    folders = {
        entry[0] for entry in container.listdir(streams=True) if entry[0].startswith("__attach_")
    }
    names = (
        next(filter(None, (_property(container, n, f"{folder}/") for n in _FILE_NAMES)), None)
        for folder in sorted(folders)[:_MAX_ATTACHMENTS]
    )
    return [" ".join(name.replace("\x00", "").split())[:300] for name in names if name]

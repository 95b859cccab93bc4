"""Mail messages as they are sent (EML)."""

from __future__ import annotations

import email
import email.header
import email.policy
import email.utils
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message

from . import html
from .cleaning import clean_text, is_blank
from .encoding import decode
from .model import Collector, Extracted, Source
from .options import Limits

_SHOWN = ("From", "To", "Cc", "Date", "Subject")
_MAX_HEADER = 2_000
_MAX_PARTS = 1_000


@dataclass
class Letter:
    """The parts of a message that a mail program shows."""

    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    html: str = ""
    attachments: list[str] = field(default_factory=list)


def extract(source: Source, limits: Limits) -> Extracted:
    """The visible headers, the text, the names of attachments, and mails attached to it."""
    # compat32, because the newer policy parses addresses in quadratic time.
    message = email.message_from_bytes(source.data.lstrip(), policy=email.policy.compat32)
    collector = Collector(limits)
    letters = list(_letters(message))
    for letter in letters:
        add(letter, collector)
    headers = letters[0].headers
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=headers.get("Subject"),
        author=headers.get("From"),
        created=sent(headers.get("Date", "")),
        metadata=described(letters[0]),
    )


def add(letter: Letter, collector: Collector) -> None:
    """Append a message's blocks, under its subject."""
    collector.leave()
    if subject := letter.headers.get("Subject"):
        collector.enter(subject, 1)
    collector.add("\n".join(f"{name}: {value}" for name, value in letter.headers.items()))
    if not is_blank(letter.text):
        for paragraph in letter.text.replace("\r\n", "\n").split("\n\n"):
            collector.add(paragraph)
    elif letter.html:
        root, _ = html.parse_html(letter.html)
        html.add(root, collector)
    for name in letter.attachments:
        collector.add(f"Attachment: {name}", kind="list")


def described(letter: Letter) -> dict[str, str]:
    """Recipients and attachments as metadata."""
    found = {
        "to": letter.headers.get("To", ""),
        "cc": letter.headers.get("Cc", ""),
        "attachments": ", ".join(letter.attachments)[:_MAX_HEADER],
    }
    return {name: value for name, value in found.items() if value}


def sent(date: str) -> str | None:
    """The date of a mail as ISO 8601; None if it is not a date."""
    try:
        return email.utils.parsedate_to_datetime(date[:200]).isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _letters(message: Message) -> Iterator[Letter]:
    """The message, then those attached to it, without recursion."""
    pending = [message]
    parts_left = _MAX_PARTS
    while pending:
        letter = Letter(_headers(pending[0]))
        parts = [pending.pop(0)]
        while parts and parts_left:
            parts_left -= 1
            part = parts.pop(0)
            if part.get_content_type() == "message/rfc822":
                inner = part.get_payload()
                pending += [each for each in inner if isinstance(each, Message)]
            elif part.is_multipart():
                parts[:0] = [each for each in part.get_payload() if isinstance(each, Message)]
            else:
                _take(part, letter)
        yield letter


def _take(part: Message, letter: Letter) -> None:
    name = clean_text(_decoded(part.get_filename() or "")).replace("\n", " ")[:300]
    kind = part.get_content_type()
    if name or not kind.startswith("text/"):
        if name:
            letter.attachments.append(name)
        return
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes) or not payload.strip():
        return
    text = _text(payload, part.get_content_charset())
    if kind == "text/html":
        letter.html += text
    elif kind == "text/plain":
        letter.text += ("\n\n" if letter.text else "") + text


def _text(payload: bytes, charset: str | None) -> str:
    try:
        return payload.decode(charset or "ascii")
    except (LookupError, ValueError):
        return decode(payload)[0]


def _headers(message: Message) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _SHOWN:
        value = clean_text(_decoded(str(message.get(name) or "")[:_MAX_HEADER]))
        if value := " ".join(value.split()):
            found[name] = value
    return found


def _decoded(value: str) -> str:
    """A header with its encoded words and raw bytes decoded."""
    try:
        parts = email.header.decode_header(value)
    except (email.header.HeaderParseError, ValueError):
        return value
    texts = []
    for part, charset in parts:
        if isinstance(part, bytes):
            texts.append(_text(part, charset if charset != "unknown-8bit" else None))
        else:
            texts.append(part)
    return "".join(texts)

"""Source code, split where its definitions begin."""

from __future__ import annotations

import re

from .encoding import decode
from .formats import extension
from .model import Collector, Extracted, Source
from .options import Limits

_MODIFIERS = (
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|pub(?:"
    r"\([a-z]+\))?|unsafe|override|open|data|sealed|virtual|extern|inline|const)\s+){0,5}"
)
# Languages whose definitions begin with a keyword; and functions of the C family, which have no
# keyword and are recognised at the left margin only.
_DEFINITION = re.compile(
    rf"^(?P<indent>[ \t]*){_MODIFIERS}"
    r"(?:def|class|function\*?|func|fn|struct|enum|trait|impl|interface|module|namespace|sub|object"
    r"|type|record|protocol)\s+(?:\([^)\n]{0,80}\)\s*)?(?P<name>[A-Za-z_$][\w$.:<>]{0,80}[?!]?)"
)
_C_FUNCTION = re.compile(r"^(?:[A-Za-z_][\w*&:<>,]*\s+){1,6}\**(?P<name>[\w:~]{1,80})\s*\([^;]*$")
_SQL = re.compile(
    r"^create\s+(?:or\s+replace\s+)?(?:unique\s+)?(?:materialized\s+)?"
    r"(?:table|view|function|procedure|trigger|type|index|schema)\s+(?:if\s+not\s+exists\s+)?"
    r"(?P<name>[\w.\"]{1,120})",
    re.IGNORECASE,
)
_C_FAMILY = {"c", "cc", "cpp", "cxx", "h", "hh", "hpp", "m"}
_MAX_LINE = 300  # longer lines are data or minified, not definitions


def extract(source: Source, limits: Limits) -> Extracted:
    """Each definition is a section, named by the path of those around it, e.g. `Queue > claim`."""
    language = extension(source.name) or "sh"
    lines = decode(source.data)[0].replace("\r\n", "\n").replace("\r", "\n").split("\n")
    collector = Collector(limits)
    pending: list[str] = []
    for line in lines:
        found = _definition(line, language)
        if found:
            lead = _leading(pending)
            collector.add("\n".join(pending[:lead]), kind="code")
            pending = pending[lead:]
            collector.enter(found[1], found[0] + 1)
        elif not line.strip() and pending:
            collector.add("\n".join(pending), kind="code")
            pending = []
            continue
        pending.append(line)
    collector.add("\n".join(pending), kind="code")
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        metadata={"programming_language": language},
    )


def _definition(line: str, language: str) -> tuple[int, str] | None:
    """The indentation and the name of a definition if `line` begins one."""
    if len(line) > _MAX_LINE or not line.strip():
        return None
    if language == "sql":
        match = _SQL.match(line)
        return (0, match["name"]) if match else None
    if match := _DEFINITION.match(line):
        return len(match["indent"].expandtabs(4)), match["name"].rstrip(":")
    if language in _C_FAMILY and (match := _C_FUNCTION.match(line)):
        return 0, match["name"]
    return None


def _leading(lines: list[str]) -> int:
    """The first line of the comments and decorators of the definition after `lines`."""
    start = len(lines)
    while start and lines[start - 1].lstrip().startswith(("@", "#", "//", "/*", "*", "--", "'")):
        start -= 1
    return start

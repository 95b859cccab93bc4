"""A document's status and its jobs are written in one file, so that no other can make them untrue."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STATES = "50_states.sql"
CODE = [
    path
    for folder in ("sql", "plpy_lib")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".sql", ".py") and path.name != STATES
]
WRITES_STATUS = re.compile(
    r"update\s+rag\.documents\b(?:(?!\b(?:from|where|returning)\b)[^;])*\bstatus\s*="
    r"|insert\s+into\s+rag\.documents\b[^()]*\([^)]*\bstatus\b"
    r"|insert\s+into\s+rag\.documents\b[^;]*\bdo\s+update(?:(?!\b(?:where|returning)\b)[^;])*\bstatus\s*="
)
ENQUEUES = re.compile(r"insert\s+into\s+rag\.ingestion_queue\b")


@pytest.mark.parametrize("pattern", [WRITES_STATUS, ENQUEUES])
def test_no_other_file_writes_a_status_or_enqueues(pattern):
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in CODE
        for match in pattern.finditer(path.read_text())
    ]
    assert found == []
    assert pattern.search((ROOT / "sql" / STATES).read_text()), "the pattern finds nothing any more"

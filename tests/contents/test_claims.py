"""Every claim of docs/security.md is followed by a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_test_that_the_docs_name_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named - there == set()
    assert len(named) > 25


def test_each_claim_names_a_test():
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", (ROOT / "docs" / "security.md").read_text(), re.M)
    header = [i for i, (_, right) in enumerate(rows) if right == "test"]
    claims = [
        (left, right)
        for i, (left, right) in enumerate(rows)
        if any(h < i for h in header) and not left.startswith("---") and right != "test"
    ]
    assert [left for left, right in claims if "`test_" not in right] == []

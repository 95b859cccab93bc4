"""What README.md and docs/ tell the reader to type works, in the order in which it is told."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# The folder and the file that the pages speak of.
DOCUMENT_ROOT = "/srv/documents"
HANDBOOK = "handbook.pdf"
SAMPLE = ROOT / "examples" / "documents" / "collection-care-manual.pdf"

BLOCK = re.compile(r"(?:^<!--(?P<comment>[^\n]*)-->\n)?^```sql\n(?P<sql>.*?)^```$", re.M | re.S)
NOT_RUN = re.compile(r"\s*not run\b:?\s*(?P<reason>.*?)\s*")


@dataclass(frozen=True)
class Block:
    """An SQL example; `skipped` says why it is not run, or is None."""

    line: int
    sql: str
    skipped: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        mark = NOT_RUN.fullmatch(match["comment"] or "")
        line = text.count("\n", 0, match.start("sql")) + 1
        yield Block(line, match["sql"], mark["reason"] if mark else None)


def run(db: psycopg.Connection, sql: str) -> subprocess.CompletedProcess[str]:
    """Type it into psql, as the reader does: each statement is a transaction of its own."""
    info = db.info
    command = ["psql", "-X", "-h", info.host, "-p", str(info.port), "-U", info.user]
    return subprocess.run(
        [*command, "-d", info.dbname, "-v", "ON_ERROR_STOP=1"],
        input=sql,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_page(db: psycopg.Connection, document_root: Path, page: Path) -> None:
    shutil.copyfile(SAMPLE, document_root / HANDBOOK)
    (document_root / HANDBOOK).chmod(0o644)
    for block in blocks(page):
        if block.skipped is None:
            done = run(db, block.sql.replace(DOCUMENT_ROOT, str(document_root)))
            assert done.returncode == 0, f"{page.name}, line {block.line}:\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_runs(db: psycopg.Connection, document_root: Path, page: Path) -> None:
    run_page(db, document_root, page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_skipped_examples_have_a_reason(page: Path) -> None:
    without = [block.line for block in blocks(page) if block.skipped == ""]
    assert without == [], "write <!-- not run: reason --> above these lines"


def test_readme_leads_to_a_searchable_document(db: psycopg.Connection, document_root: Path) -> None:
    run_page(db, document_root, README)
    found = db.execute(
        "select page_number from rag.search_documents('How humid may the paper store be?')"
    ).fetchone()
    assert found == (2,)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []

"""rag.preview_chunks(): what would be searched, before anything is."""

from __future__ import annotations

import psycopg
import pytest
from documents import HEADING, SENTENCE, VALID
from helpers import rows, value


def test_a_text_is_shown_as_it_would_be_stored_and_is_not(db):
    found = rows(
        db,
        "select chunk_index, section, content, char_count from rag.preview_chunks(%s, file_name => 'a.md')",
        "# Storm\n\nSome words.\n\n# Calm\n\nOther words.",
    )
    assert found == [
        (0, "Storm", "Storm\nSome words.", 17),
        (1, "Calm", "Calm\nOther words.", 17),
    ]
    assert value(db, "select count(*) from rag.documents") == 0
    assert value(db, "select count(*) from rag.ingestion_queue") == 0


@pytest.mark.parametrize("name", VALID)
def test_a_file_of_every_format_is_shown(db, document_root, name):
    (document_root / name).write_bytes(VALID[name]())
    found = rows(db, "select content, token_count from rag.preview_chunks(file_path => %s)", name)
    assert any(SENTENCE in content for content, _ in found)
    assert all(0 < tokens <= 256 for _, tokens in found)


@pytest.mark.parametrize(
    "strategy", ["recursive", "structure", "code", "auto", "semantic", "fixed"]
)
def test_every_strategy_of_a_pipeline_can_be_tried(db, document_root, strategy):
    db.execute(
        "insert into rag.pipelines (name, model, chunk_strategy, chunk_size, chunk_overlap) values ('trial', 'all-MiniLM-L6-v2', %s, 64, 8)",
        [strategy],
    )
    (document_root / "a.docx").write_bytes(VALID["a.docx"]())
    found = rows(
        db,
        "select content from rag.preview_chunks(file_path => 'a.docx', pipeline => 'trial')",
    )
    assert len(found) > 1
    assert HEADING in " ".join(content for (content,) in found)


@pytest.mark.parametrize(
    ("call", "sqlstate"),
    [
        ("rag.preview_chunks()", "22023"),
        ("rag.preview_chunks('a', file_path => 'b')", "22023"),
        ("rag.preview_chunks('a', pipeline => 'none')", "42704"),
        ("rag.preview_chunks('')", "22000"),
        ("rag.preview_chunks(file_path => 'missing.pdf')", "22000"),
        ("rag.preview_chunks(file_path => '/etc/passwd')", "22000"),
        ("rag.preview_chunks(file_path => '../../etc/passwd')", "22000"),
    ],
)
def test_what_cannot_be_shown_says_why(db, call, sqlstate):
    with pytest.raises(psycopg.Error) as caught:
        db.execute(f"select * from {call}")
    assert caught.value.sqlstate == sqlstate
    assert caught.value.diag.message_hint


def test_semantic_chunks_break_between_subjects_the_same_way_each_time(db, document_root, table):
    lamps = "The lamp of the lighthouse burns oil all night. The lighthouse lamp guides the ships. The keeper cleans the lighthouse lamp."
    soup = "The fish soup needs leek and fresh cod. Cook the fish soup for an hour. Season the fish soup with salt and pepper."
    (document_root / "a.txt").write_text(f"{lamps} {soup}")
    (document_root / "a.txt").chmod(0o644)
    db.execute(
        "select rag.create_pipeline('meaning', chunk_strategy => 'semantic', chunk_size => 300)"
    )
    ask = "select content from rag.preview_chunks(file_path => 'a.txt', pipeline => 'meaning')"
    assert rows(db, ask) == [(lamps,), (soup,)]
    db.execute(f"insert into {table} values (1, 'a.txt')")
    db.execute("call rag.drain()")
    db.execute("select rag.activate_pipeline('meaning')")
    stored = rows(
        db, "select content from rag.document_chunks where pipeline_id = 2 order by chunk_index"
    )
    assert stored == [(lamps,), (soup,)]

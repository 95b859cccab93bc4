"""From a row in the user's table to passages that can be searched."""

from __future__ import annotations

import threading
import time

import docx
import pytest
from helpers import rows, value
from reportlab.pdfgen.canvas import Canvas

PADDING = [f"This is line {n} of what else there is to be said about the matter." for n in range(6)]


def make_pdf(path, pages):
    canvas = Canvas(str(path))
    for lines in pages:
        for number, line in enumerate(lines):
            canvas.drawString(72, 760 - 16 * number, line)
        canvas.showPage()
    canvas.save()
    path.chmod(0o644)


def test_passages_of_a_pdf_know_their_page(db, table, document_root, drain):
    make_pdf(
        document_root / "manual.pdf",
        [
            ["Cleaning the coffee machine takes a brush and warm water."] + PADDING,
            ["The warranty of the coffee machine ends after two years."] + PADDING,
        ],
    )
    db.execute(f"insert into {table} values (1, 'manual.pdf')")
    drain()
    best = rows(
        db,
        "select page_number, content from rag.search_documents('how long is the warranty', match_count => 1)",
    )
    assert best[0][0] == 2 and "two years" in best[0][1]


def test_passages_of_a_word_file_know_their_section_and_tables_are_readable(
    db, table, document_root, drain
):
    document = docx.Document()
    document.add_heading("Opening hours", 1)
    document.add_paragraph("The reading room opens at nine. " + " ".join(PADDING))
    document.add_heading("Fees", 1)
    grid = document.add_table(rows=2, cols=2)
    for cell, text in zip(grid._cells, ["Service", "Price", "Printing", "10 cents"], strict=True):
        cell.text = text
    document.save(document_root / "house.docx")
    (document_root / "house.docx").chmod(0o644)
    db.execute(f"insert into {table} values (1, 'house.docx')")
    drain()
    section, content = rows(
        db,
        "select section, content from rag.search_documents('price of printing', match_count => 1)",
    )[0]
    assert section == "Fees"
    assert "Printing | 10 cents" in content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "page.html",
            "<html><head><title>T</title></head><body><h1>Loans</h1><p>Maps are lent for a week.</p></body></html>",
        ),
        ("notes.md", "# Loans\n\nMaps are lent for a week.\n"),
        ("notes.txt", "Maps are lent for a week.\n"),
        ("loans.py", 'def lend():\n    """Maps are lent for a week."""\n    return 7\n'),
    ],
)
def test_text_formats_become_passages(db, add, drain, name, content):
    add(1, content, name)
    drain()
    assert "lent for a week" in value(
        db, "select content from rag.search_documents('how long can I keep a map')"
    )


def test_each_chunk_tells_its_size_hash_and_place(db, add, drain):
    add(
        1,
        "\n\n".join(
            f"Paragraph {n} speaks of subject number {n} at some length." * 3 for n in range(20)
        ),
    )
    drain()
    chunks = rows(
        db,
        """select chunk_index, char_count, length(content), token_count, length(content_hash), tenant_id
           from rag.document_chunks order by chunk_index""",
    )
    assert len(chunks) > 3
    assert [c[0] for c in chunks] == list(range(len(chunks)))
    assert all(c[1] == c[2] <= 512 and 2 < c[3] <= 256 and c[4] == 32 for c in chunks)


def test_text_of_many_tokens_is_split_further_and_nothing_is_lost(db, add, drain):
    words = [f"{n:x}q{n * 7919:x}z" for n in range(400)]
    add(1, " ".join(words))
    db.execute("update rag.pipelines set chunk_size = 2000, chunk_overlap = 0")
    drain()
    stored = rows(db, "select content, token_count from rag.document_chunks order by chunk_index")
    assert max(tokens for _, tokens in stored) <= 256
    assert " ".join(content for content, _ in stored).split() == words


def test_changed_file_replaces_its_passages_and_unchanged_ones_keep_their_vector(
    db, add, table, document_root, drain
):
    old = [f"Chapter {n}. " + f"Sentence about topic {n}. " * 18 for n in range(6)]
    add(1, "\n\n".join(old))
    drain()
    before = dict(rows(db, "select chunk_index, chunk_id from rag.document_chunks"))
    new = old[:-1] + ["Chapter 5. Everything about zebras. " * 12]
    (document_root / "1.txt").write_text("\n\n".join(new))
    db.execute(f'update {table} set "DocumentFilePath" = \'1.txt\' where "DocumentID" = 1')
    assert value(db, "select count(*) from rag.ingestion_queue") == 0, (
        "an update to the same path is no change"
    )
    db.execute("""select rag.enqueue_existing('"TblDocumentFiles"')""")
    drain()
    assert "zebras" in value(db, "select string_agg(content, ' ') from rag.document_chunks")
    assert (
        value(db, "select count(*) from rag.document_chunks where content like '%%topic 5%%'") == 0
    )
    reused, chunks = rows(
        db, "select chunks_reused, chunks from rag.document_versions where state = 'ready'"
    )[0]
    assert 0 < reused < chunks
    after = dict(rows(db, "select chunk_index, chunk_id from rag.document_chunks"))
    assert before[0] == after[0], "a chunk that did not change is not even rewritten"


def test_the_same_file_again_is_no_work(db, add, drain):
    add(1, "Nothing new under the sun.")
    drain()
    db.execute("""select rag.enqueue_existing('"TblDocumentFiles"')""")
    drain()
    assert rows(db, "select outcome from rag.job_history order by job_id") == [
        ("done",),
        ("unchanged",),
    ]
    assert value(db, "select count(*) from rag.document_versions") == 1


def test_other_chunking_is_work_though_the_file_is_the_same(db, add, drain):
    add(1, "A sentence that is cut elsewhere when chunks are small. " * 10)
    drain()
    db.execute("update rag.pipelines set chunk_size = 128, chunk_overlap = 0")
    db.execute("""select rag.enqueue_existing('"TblDocumentFiles"')""")
    drain()
    assert value(db, "select max(char_count) from rag.document_chunks") <= 128


def test_a_warm_worker_takes_a_row_without_waiting_for_a_tick_of_pg_cron(db, connect, add):
    worker = connect()
    thread = threading.Thread(target=worker.execute, args=["call rag.drain(run_for => '30 s')"])
    thread.start()
    try:
        add(1, "The first document only warms the worker up.")
        wait_for(db, 1)
        for number in range(2, 9):
            add(number, f"Document {number} was inserted while a worker was warm.")
            wait_for(db, number)
        assert value(db, "select count(*) from rag.workers") == 1, "by the same worker"
    finally:
        db.execute("select rag.stop_workers()")
        thread.join(timeout=30)
    assert not thread.is_alive(), "a stopped worker ends"


def wait_for(db, document_id):
    for _ in range(1200):
        found = value(
            db,
            "select count(*) from rag.search_documents('document', document_filter => array[%s]::bigint[])",
            document_id,
        )
        if found:
            return
        time.sleep(0.05)
    pytest.fail(f"document {document_id} did not become searchable")


def test_drain_inside_a_transaction_says_what_to_do(db):
    import psycopg

    with pytest.raises(psycopg.errors.ActiveSqlTransaction) as error, db.transaction():
        db.execute("call rag.drain()")
    assert "outside" in error.value.diag.message_hint


def test_drain_stops_after_the_number_of_documents_asked_for(db, add):
    for number in range(5):
        add(number, f"Document number {number}.")
    db.execute("call rag.drain(max_documents => 2)")
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 2
    assert value(db, "select count(*) from rag.ingestion_queue where status = 'queued'") == 3

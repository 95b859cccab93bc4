"""Each bad document gets its own clear outcome, and the others go on."""

from __future__ import annotations

import io
import os

import docx
import psycopg
import pypdf
import pytest
from helpers import rows, value
from PIL import Image
from reportlab.pdfgen.canvas import Canvas


def pdf(*lines: str) -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    for number, line in enumerate(lines):
        canvas.drawString(72, 700 - 20 * number, line)
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def encrypted_pdf() -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("secret")))
    writer.encrypt("password", algorithm="AES-256")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def damaged_docx() -> bytes:
    buffer = io.BytesIO()
    docx.Document().save(buffer)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def memory_bomb() -> bytes:
    """A PDF page whose content inflates to 3 GB: 3 MB of zeros, deflated over and over."""
    import zlib

    stream = zlib.compress(b"q " * 25_000_000, 9)
    for _ in range(2):
        stream = zlib.compress(stream, 9)
    head = b"%PDF-1.7\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    head += b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    head += b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>endobj\n"
    head += b"4 0 obj<</Length %d/Filter[/FlateDecode/FlateDecode/FlateDecode]>>stream\n" % len(
        stream
    )
    return head + stream + b"\nendstream endobj\ntrailer<</Root 1 0 R>>\n%%EOF"


OUTCOMES = {
    "encrypted.pdf": (encrypted_pdf, "password"),
    "blank.pdf": (lambda: pdf(), "no text"),
    "damaged.docx": (damaged_docx, "damaged"),
    "picture.pdf": (jpeg, "JPEG"),
    "empty.txt": (lambda: b"", "empty"),
    "rubbish.bin": (lambda: os.urandom(5000), ""),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_bad_file_fails_with_its_reason_and_stops_no_other(db, add, drain, name):
    make, word = OUTCOMES[name]
    add(1, make(), name)
    add(2, "An innocent document.")
    drain()
    status, error, hint = rows(
        db, "select status, last_error, error_hint from rag.ingestion_log where document_id = 1"
    )[0]
    assert status == "failed"
    assert word.lower() in error.lower()
    assert hint
    assert value(db, "select status from rag.ingestion_log where document_id = 2") == "completed"
    assert value(db, "select count(*) from rag.ingestion_queue where status = 'dead'") == 1, (
        "it is not tried again"
    )


def test_bad_paths_fail_with_their_reason_and_reveal_nothing(db, table, document_root, drain):
    (document_root / "folder").mkdir()
    (document_root / "leak.txt").symlink_to("/etc/passwd")
    (document_root / "folder" / "up").symlink_to("/etc")
    paths = {
        1: ("missing.txt", "does not exist"),
        2: ("../../../etc/passwd", "document root"),
        3: ("/etc/passwd", "document root"),
        4: ("leak.txt", "document root"),
        5: ("folder/up/passwd", "document root"),
        6: ("folder", "folder"),
        7: (None, "null"),
        8: ("", "empty"),
        9: ("new\nline'\"\\.txt", ""),
    }
    for document_id, (path, _) in paths.items():
        db.execute(f"insert into {table} values (%s, %s)", [document_id, path])
    drain()
    for document_id, (_, word) in paths.items():
        status, error, hint = rows(
            db,
            "select status, last_error, error_hint from rag.ingestion_log where document_id = %s",
            document_id,
        )[0]
        assert status == "failed" and word in error and hint, (document_id, error, hint)
    assert value(db, "select count(*) from rag.document_chunks") == 0


def test_a_missing_file_is_tried_again_and_found_when_it_is_there(db, table, document_root, drain):
    db.execute(f"insert into {table} values (1, 'late.txt')")
    drain()
    assert value(db, "select status from rag.ingestion_queue") == "queued"
    (document_root / "late.txt").write_text("Better late than never.")
    db.execute("update rag.ingestion_queue set run_at = now()")
    drain()
    assert value(db, "select status from rag.ingestion_log") == "completed"


def test_attempts_end_in_the_dead_letters(db, table, drain):
    db.execute("select rag.set('max_attempts', '3')")
    db.execute("select rag.set('retry_delays_s', '0')")
    db.execute(f"insert into {table} values (1, 'missing.txt')")
    for _ in range(4):
        drain()
    assert rows(db, "select status, attempts, stage, error_code from rag.ingestion_queue") == [
        ("dead", 3, "read", "not_found")
    ]
    assert value(db, "select state from rag.document_versions") == "failed"


def test_a_changed_row_leaves_the_dead_letters(db, add, table, document_root, drain):
    add(1, b"", "empty.txt")
    drain()
    (document_root / "good.txt").write_text("Now there is text.")
    db.execute(f"update {table} set \"DocumentFilePath\" = 'good.txt'")
    drain()
    assert value(db, "select status from rag.ingestion_log") == "completed"
    assert value(db, "select count(*) from rag.ingestion_queue") == 0


def test_nul_bytes_are_cleaned_out_of_text(db, add, drain):
    add(1, b"Text with a \x00 NUL byte in the middle of an otherwise ordinary sentence.")
    drain()
    assert "NUL byte" in value(db, "select content from rag.search_documents('ordinary sentence')")


def test_a_file_that_eats_memory_harms_only_itself(db, add, drain):
    add(1, memory_bomb(), "bomb.pdf")
    add(2, "An innocent document.")
    before = value(db, "select pg_postmaster_start_time()")
    drain()
    assert value(db, "select status from rag.ingestion_log where document_id = 1") == "failed"
    assert value(db, "select status from rag.ingestion_log where document_id = 2") == "completed"
    assert value(db, "select pg_postmaster_start_time()") == before


def test_a_file_that_takes_for_ever_is_stopped_at_its_time_limit(db, add, drain):
    """A page that draws forms in forms, forty times each: 40^6 operations."""
    parts = [
        b"%PDF-1.7\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    ]
    parts.append(
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Resources<</XObject<</F 5 0 R>>>>/Contents 4 0 R>>endobj\n"
    )
    parts.append(b"4 0 obj<</Length 5>>stream\n/F Do\nendstream endobj\n")
    for level in range(6):
        body = b"/F Do " * 40 if level < 5 else b"BT /X 9 Tf (word) Tj ET " * 40
        resources = (
            b"/Resources<</XObject<</F %d 0 R>>>>" % (6 + level) if level < 5 else b"/Resources<<>>"
        )
        parts.append(
            b"%d 0 obj<</Type/XObject/Subtype/Form/BBox[0 0 9 9]%s/Length %d>>stream\n%s\nendstream endobj\n"
            % (5 + level, resources, len(body), body)
        )
    add(1, b"".join(parts) + b"trailer<</Root 1 0 R>>\n%%EOF", "forever.pdf")
    add(2, "An innocent document.")
    db.execute("select rag.set('extraction_wall_s', '3'), rag.set('extraction_cpu_s', '2')")
    drain()
    status, error = rows(
        db, "select status, last_error from rag.ingestion_log where document_id = 1"
    )[0]
    assert status == "failed" and error
    assert value(db, "select status from rag.ingestion_log where document_id = 2") == "completed"


def test_no_document_root_is_said_and_mended_by_setting_it(db, add, document_root, drain):
    db.execute("select rag.set('document_root', null)")
    add(1, "Waiting for a root.")
    drain()
    assert "rag.set('document_root'" in value(db, "select error_hint from rag.ingestion_log")
    db.execute("select rag.set('document_root', %s)", [str(document_root)])
    drain()
    assert value(db, "select status from rag.ingestion_log") == "completed"


@pytest.mark.parametrize(
    ("name", "given", "word"),
    [
        ("document_root", "relative/path", "absolute"),
        ("document_root", "/no/such/folder", "no such folder"),
        ("document_root", "/usr/bin/env", "a file"),
        ("max_attempts", "many", "whole number"),
        ("max_attempts", "0", "from 1"),
        ("retry_delays_s", "1,x", "whole number"),
        ("notifications", "perhaps", "on or off"),
    ],
)
def test_a_setting_refuses_a_value_it_cannot_have(db, name, given, word):
    import psycopg

    with pytest.raises(psycopg.errors.InvalidParameterValue) as error:
        db.execute("select rag.set(%s, %s)", [name, given])
    assert word in error.value.diag.message_detail and error.value.diag.message_hint


def test_an_unknown_setting_is_refused(db):
    import psycopg

    for call in ("select rag.set('colour', 'red')", "select rag.get('colour')"):
        with pytest.raises(psycopg.errors.UndefinedObject) as error:
            db.execute(call)
        assert "rag.settings" in error.value.diag.message_hint


@pytest.fixture
def bodies(db):
    """A table whose rows hold their documents, with metadata as json."""
    db.execute("create table bodies (id text primary key, body text, facts json)")
    db.execute(
        "select rag.attach_source('bodies', content_column => 'body', metadata_columns => '{facts}')"
    )
    return "bodies"


def test_json_that_jsonb_cannot_hold_costs_its_document_nothing(db, bodies, drain):
    db.execute(
        """insert into bodies values ('a', 'Bees make honey.', '{"by": "\\u0000"}'), ('b', 'Ants do not.', '{"size": 1e999999}')"""
    )
    drain()
    assert rows(db, "select source_key, status from rag.documents order by 1") == [
        ("a", "completed"),
        ("b", "completed"),
    ]
    assert "u0000" in value(
        db, "select metadata ->> 'facts' from rag.documents where source_key = 'a'"
    )


def test_one_row_that_cannot_be_a_document_holds_up_no_other(db, drain):
    """Of a statement that is worked off later: the worker finds the row and leaves it alone."""
    db.execute("create table ranges (id integer primary key, body text, facts text)")
    db.execute(
        "select rag.attach_source('ranges', content_column => 'body', metadata_columns => '{facts}')"
    )
    # A constraint of ours that one row breaks, as limits of the server would.
    db.execute(
        "alter table rag.documents add constraint unlucky check (metadata ->> 'facts' <> 'bad')"
    )
    db.execute(
        "insert into ranges select n, 'Number ' || n, case n when 77 then 'bad' else 'good' end from generate_series(1, 300) n"
    )
    drain()
    assert rows(db, "select status, count(*) from rag.documents group by 1 order by 1") == [
        ("completed", 299),
        ("failed", 1),
    ]
    assert rows(db, "select source_key, stage, error_code from rag.dead_letters") == [
        ("77", "read", "23514")
    ]
    assert value(db, "select count(*) from rag._changes") == 0
    assert rows(db, "select * from rag.check_consistency()") == []
    db.execute("update ranges set facts = 'good' where id = 77")
    drain()
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 300


def test_a_key_too_long_for_a_document_is_told_and_holds_up_no_other(db, bodies, drain):
    db.execute("alter table bodies drop constraint bodies_pkey")
    notices = []
    db.add_notice_handler(lambda n: notices.append(n.message_primary))
    db.execute(
        "insert into bodies select case n when 7 then (select string_agg(md5(i::text), '') from generate_series(1, 400) i) else n::text end, 'Number ' || n from generate_series(1, 200) n"
    )
    drain()
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 199
    assert any("key that is too long" in notice for notice in notices)


def test_a_path_of_control_characters_is_no_obstacle_to_notifications(db, table, drain):
    db.execute("select rag.set('notifications', 'on')")
    db.execute(f"insert into {table} values (1, repeat(chr(1), 6000))")
    db.execute(f"insert into {table} select n, repeat(chr(1), 6000) from generate_series(2, 200) n")
    drain()
    assert value(db, "select count(*) from rag.documents") == 200


def test_a_source_that_somebody_holds_holds_up_no_other(db, bodies, connect, drain):
    db.execute("create table held (id integer primary key, body text)")
    db.execute("select rag.attach_source('held', content_column => 'body')")
    db.execute("insert into held select n, 'Held ' || n from generate_series(1, 200) n")
    db.execute("insert into bodies select n, 'Free ' || n from generate_series(1, 200) n")
    holder = connect()
    holder.execute("begin; lock table held")
    drain()
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 200
    holder.execute("rollback")
    drain()
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 400


def test_documents_of_stop_words_alone_stop_no_worker(db, bodies, drain):
    db.execute("insert into bodies select n, 'the and of it is' from generate_series(1, 70) n")
    drain()
    db.execute("insert into bodies values ('x', 'Bees make honey.')")
    drain()
    drain()
    assert (
        value(db, "select content from rag.search_documents('honey', mode => 'text')")
        == "Bees make honey."
    )


def test_a_temporary_table_is_refused(db):
    db.execute("create temp table passing (id integer primary key, body text)")
    with pytest.raises(psycopg.errors.WrongObjectType, match="temporary"):
        db.execute("select rag.attach_source('passing', content_column => 'body')")


def test_a_source_whose_table_vanished_unseen_holds_up_no_other(db, bodies, drain):
    db.execute("create table gone (id integer primary key, body text)")
    db.execute("select rag.attach_source('gone', content_column => 'body')")
    db.execute("insert into gone select n, 'Gone ' || n from generate_series(1, 200) n")
    db.execute("alter event trigger ragstone_after_drop disable")
    db.execute("drop table gone")
    db.execute("insert into bodies select n, 'Here ' || n from generate_series(1, 200) n")
    drain()
    assert value(db, "select count(*) from rag.documents where status = 'completed'") == 200
    assert rows(db, "select name from rag.sources") == [("bodies",)]

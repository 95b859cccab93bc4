"""What was searched before a change can be brought back, and costs a search nothing until then."""

from __future__ import annotations

import psycopg
import pytest
from helpers import rows, value

VERSIONS = "select state, chunks, restorable from rag.document_versions order by version_id"
CONTENT = "select content from rag.document_chunks order by chunk_index"


@pytest.fixture
def write(db, table, document_root, drain):
    """Gives document 1 another text and has it processed."""
    numbers = iter(range(1000))

    def write(text):
        name = f"{next(numbers)}.txt"
        (document_root / name).write_text(text)
        db.execute(
            f"""insert into {table} values (1, %s)
                on conflict ("DocumentID") do update set "DocumentFilePath" = excluded."DocumentFilePath" """,
            [name],
        )
        drain()

    yield write
    assert rows(db, "select * from rag.check_consistency()") == []


def test_the_last_version_is_kept_outside_the_search_indexes(db, write):
    write("The first text is about otters.")
    write("The second text is about badgers.")
    write("The third text is about foxes.")
    assert rows(db, VERSIONS) == [
        ("superseded", 1, False),
        ("superseded", 1, True),
        ("ready", 1, False),
    ]
    assert rows(db, CONTENT) == [("The third text is about foxes.",)]
    assert value(db, "select count(*) from rag._retained_chunks") == 1
    found = rows(db, "select content from rag.search_documents('badgers')")
    assert found == [("The third text is about foxes.",)]


def test_a_restored_version_is_searched_and_the_replaced_one_kept_in_its_stead(db, write):
    write("The first text is about otters.")
    write("The second text is about badgers.")
    first, second = [
        r[0] for r in rows(db, "select version_id from rag.document_versions order by 1")
    ]
    vector = value(db, "select embedding::text from rag._retained_chunks")
    assert value(db, "select rag.restore_version(%s)", first) == 1
    assert rows(db, "select content from rag.search_documents('otters')") == [
        ("The first text is about otters.",)
    ]
    assert value(db, "select embedding::text from rag.document_chunks") == vector, (
        "not embedded anew"
    )
    assert value(db, "select rag.restore_version(%s)", second) == 1
    assert rows(db, CONTENT) == [("The second text is about badgers.",)]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        db.execute("select rag.restore_version(%s)", [second])


def test_a_version_that_a_waiting_change_would_replace_is_not_restored(db, write, table):
    write("The first text.")
    write("The second text.")
    db.execute(f"update {table} set \"DocumentFilePath\" = '0.txt'")
    with pytest.raises(psycopg.errors.ObjectInUse) as error:
        db.execute("select rag.restore_version(min(version_id)) from rag.document_versions")
    assert "rag.cancel" in error.value.diag.message_hint


def test_an_unknown_version_is_refused(db):
    for version in (4711, None):
        with pytest.raises(psycopg.errors.UndefinedObject):
            db.execute("select rag.restore_version(%s)", [version])


def test_how_many_are_kept_is_a_setting_and_none_costs_nothing(db, write):
    db.execute("select rag.set('retain_versions', '0')")
    write("The first text.")
    write("The second text.")
    assert value(db, "select count(*) from rag._retained_chunks") == 0
    db.execute("select rag.set('retain_versions', '3')")
    for number in range(5):
        write(f"Text number {number}.")
    assert value(db, "select count(*) from rag._retained_chunks") == 3
    db.execute("select rag.set('retain_versions', '1')")
    assert value(db, "select rag._prune_versions()") == 2
    assert value(db, "select count(*) from rag._retained_chunks") == 1


def test_unchanged_chunks_keep_their_vector_and_the_version_says_how_many(db, write):
    paragraphs = [
        f"Paragraph {n} tells at some length about subject {n * 17}. " * 8 for n in range(6)
    ]
    write("\n\n".join(paragraphs))
    before = value(db, "select count(*) from rag.document_chunks")
    paragraphs[3] = "Something else altogether stands here now. " * 8
    write("\n\n".join(paragraphs))
    reused = "select chunks_reused from rag.document_versions where state = 'ready'"
    assert 0 < value(db, reused) < before


def test_reembedding_makes_every_vector_anew(db, write, drain):
    write("Some text.")
    db.execute(
        "update rag.document_chunks set embedding = embedding + embedding - rag.embed('other')"
    )
    assert value(db, "select rag.reembed(document_ids => '{1}')") == 1
    assert value(db, "select status from rag.ingestion_log") == "pending"
    drain()
    assert value(db, "select (embedding <=> rag.embed(content)) < 1e-6 from rag.document_chunks")
    assert value(db, "select chunks_reused from rag.document_versions where state = 'ready'") == 0


def test_a_deleted_document_leaves_no_kept_chunks(db, write, table):
    write("The first text.")
    write("The second text.")
    db.execute(f"delete from {table}")
    assert value(db, "select count(*) from rag._retained_chunks") == 0

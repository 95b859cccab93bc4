"""Documents of applications that have no table of their own."""

from __future__ import annotations

import psycopg
import pytest
from helpers import rows, value


def test_an_added_document_is_searchable_with_all_it_was_given(db, drain):
    job = value(
        db,
        """select rag.add_document(name => 'rules.md', content => %s, title => 'Rules', tenant_id => 7, tags => '{pool}',
                                   metadata => '{"year": 2024}')""",
        b"# Pool\n\nNo running beside the water.",
    )
    assert rows(db, "select source, status from rag.job(%s)", job) == [("uploads", "queued")]
    drain()
    assert rows(db, "select status from rag.job(%s)", job) == [("done",)]
    assert rows(
        db,
        "select source, file_path, title, section, tags, metadata from rag.search_documents('running', tenant_filter => 7)",
    ) == [("uploads", "rules.md", "Rules", "Pool", ["pool"], {"year": 2024})]


def test_a_removed_document_is_out_of_search_at_once(db, drain):
    job = value(db, "select rag.add_document('a.txt', %s)", b"Here today.")
    drain()
    document = value(db, "select document_id from rag.job(%s)", job)
    assert value(db, "select rag.remove_document(%s)", document) is True
    assert rows(db, "select from rag.search_documents('today')") == []
    assert value(db, "select rag.remove_document(%s)", document) is False


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("null, 'x'", psycopg.errors.NullValueNotAllowed),
        ("'', 'x'", psycopg.errors.NullValueNotAllowed),
        ("'a.txt', null", psycopg.errors.NullValueNotAllowed),
        ("'a.txt', 'x', metadata => '[1]'", psycopg.errors.InvalidParameterValue),
    ],
)
def test_an_incomplete_document_is_refused_with_a_hint(db, arguments, error):
    with pytest.raises(error) as caught:
        db.execute(f"select rag.add_document({arguments})")
    assert caught.value.diag.message_hint


def test_a_document_over_the_limit_is_refused_before_it_is_stored(db):
    db.execute("select rag.set('max_file_bytes', '10', tenant_id => 3)")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded) as error:
        db.execute("select rag.add_document('a.txt', 'more than ten bytes', tenant_id => 3)")
    assert "max_file_bytes" in error.value.diag.message_primary
    db.execute("select rag.add_document('a.txt', 'more than ten bytes', tenant_id => 4)")


def test_nobody_chooses_the_number_of_an_upload(db, connect):
    """Numbers taken in advance would be in the way of those to come, and tell which are taken."""
    db.execute("create role ragstone_uploader")
    db.execute("select rag.grant_usage('ragstone_uploader', level => 'ingest')")
    session = connect()
    session.execute("set role ragstone_uploader")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(
            "insert into rag.uploads (upload_id, name, content) values (1, 'a.txt', 'x')"
        )
    session.execute("insert into rag.uploads (name, content) values ('a.txt', 'x')")
    db.execute("drop owned by ragstone_uploader")
    db.execute("drop role ragstone_uploader")

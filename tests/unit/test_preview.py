"""A preview, with the database and the child in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import MODEL, PIPELINE, SETTINGS, FakeChild, FakeConnection, read_lines

from ragstone.db.connection import Refused
from ragstone.errors import DocumentError
from ragstone.server import preview


class Box(FakeChild):
    work = staticmethod(read_lines)

    def __class_getitem__(cls, _):
        return cls

    def __init__(self):
        super().__init__(type(self).work)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def connection(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(preview, "Sandbox", Box)
    settings = SETTINGS | {"document_root": str(tmp_path)}
    rows = [{"name": name, "value": value} for name, value in settings.items()]
    return FakeConnection(
        _settings_of=rows,
        models=MODEL,
        pipelines=lambda wanted: PIPELINE if wanted in (1, "active") else [],
    )


def show(connection, content=None, file_path=None, pipeline="active", file_name=None):
    return list(preview.preview_chunks(connection, content, file_path, pipeline, file_name))


def test_a_text_is_shown_as_its_passages_and_nothing_is_written(connection):
    assert show(connection, "one two\nthree") == [
        (0, None, None, 7, 2, "one two"),
        (1, None, None, 5, 1, "three"),
    ]
    assert {name for name, _ in connection.asked} == {"pipelines", "models", "_settings_of"}


def test_a_file_below_the_document_root_is_shown(connection, tmp_path):
    (tmp_path / "a.txt").write_text("from a file")
    ((_, _, _, _, _, content),) = show(connection, file_path="a.txt")
    assert content == "from a file"


@pytest.mark.parametrize(
    ("arguments", "sqlstate"),
    [
        ({}, "22023"),
        ({"content": "a", "file_path": "b"}, "22023"),
        ({"content": "a", "pipeline": None}, "22023"),
        ({"content": "a", "pipeline": "nowhere"}, "42704"),
        ({"file_path": "missing.txt"}, "22000"),
        ({"file_path": "../etc/passwd"}, "22000"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_a_hint(connection, arguments, sqlstate):
    with pytest.raises(Refused) as caught:
        show(connection, **arguments)
    assert caught.value.sqlstate == sqlstate
    assert caught.value.hint


def test_a_document_that_cannot_be_read_says_why(connection, monkeypatch):
    def read(request, fd):
        raise DocumentError("encrypted", "the document is encrypted", detail="It is.")

    monkeypatch.setattr(Box, "work", staticmethod(read))
    with pytest.raises(Refused, match="encrypted") as caught:
        show(connection, "text")
    assert (caught.value.sqlstate, caught.value.detail) == ("22000", "It is.")

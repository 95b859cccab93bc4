"""What every store promises: what is known of a document before it is read, and its copy."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ragstone.errors import DocumentError
from ragstone.stores.places import open_document
from ragstone.stores.port import OpenDocument

Opened = Callable[[bytes], OpenDocument]


@pytest.fixture(params=["file", "column"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """A document with these bytes, in its store and open."""

    def in_file(data: bytes) -> OpenDocument:
        (tmp_path / "document").write_bytes(data)
        return open_document("document", root=str(tmp_path))

    def in_column(data: bytes) -> OpenDocument:
        return open_document(None, root=None, content=lambda: data)

    return in_file if request.param == "file" else in_column


def nothing() -> None:
    pass


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_size_is_known_before_anything_is_read(opened: Opened) -> None:
    with opened(b"alpha") as document:
        assert document.size == 5


def test_another_content_is_another_version(opened: Opened) -> None:
    with opened(b"alpha") as document:
        first = document.version
        assert document.version == first
    with opened(b"alphabet") as document:
        assert document.version != first


def test_the_copy_is_what_was_hashed_and_cannot_be_changed(opened: Opened) -> None:
    data = os.urandom(3_000_001)
    with opened(data) as document:
        copy = document.snapshot(10**8, nothing)
    with copy:
        assert (copy.size, copy.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert os.pread(copy.fd, 10**7, 0) == data
        with pytest.raises(PermissionError):
            os.pwrite(copy.fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.truncate(copy.fd, 0)
        if stat.S_IMODE(os.fstat(copy.fd).st_mode) & 0o111 == 0:  # Linux 6.3 can seal that, too
            with pytest.raises(PermissionError):
                os.fchmod(copy.fd, 0o777)


@pytest.mark.parametrize(("data", "code"), [(b"", "empty"), (b"123456", "too_large")])
def test_what_is_empty_or_too_large_says_so(opened: Opened, data: bytes, code: str) -> None:
    before = open_descriptors()
    with opened(data) as document, pytest.raises(DocumentError) as caught:
        document.snapshot(5, nothing)
    assert (caught.value.code, caught.value.stage) == (code, "read")
    assert open_descriptors() == before


def test_a_cancel_stops_the_copy_and_leaves_nothing_open(opened: Opened) -> None:
    calls = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    before = open_descriptors()
    with opened(bytes(10_000_000)) as document, pytest.raises(KeyboardInterrupt):
        document.snapshot(10**8, cancel)
    assert len(calls) == 3
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("call", "code", "failure"),
    [
        (lambda: open_document("a.txt", root=None), "no_document_root", "transient"),
        (lambda: open_document(None, root="/srv"), "no_path", "permanent"),
        (lambda: open_document(None, root="/srv", content=lambda: None), "no_content", "permanent"),
        (lambda: open_document("a.txt", root="/nowhere"), "root_missing", "transient"),
    ],
)
def test_a_document_that_is_not_there_says_what_to_do(
    call: Callable[[], OpenDocument], code: str, failure: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        call()
    assert (caught.value.code, caught.value.failure, caught.value.stage) == (code, failure, "read")
    assert caught.value.hint


def test_a_column_goes_before_a_path() -> None:
    with open_document("a.txt", root=None, content=lambda: b"in the column") as document:
        assert document.size == 13

"""Opening a user's file: what may be read, and what a hostile path gets."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ragstone import INSTALL_DIR
from ragstone.errors import DocumentError
from ragstone.stores import files
from ragstone.stores.files import open_beneath, open_file, root_problem


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("alpha")
    (folder / "sub" / "b.txt").write_text("beta")
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def read(root: Path, path: str) -> bytes:
    fd = open_beneath(root, path)
    try:
        return os.read(fd, 1000)
    finally:
        os.close(fd)


def refusal(root: Path, path: str) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        os.close(open_beneath(root, path))
    assert caught.value.stage == "read"
    assert caught.value.hint
    return caught.value


def test_a_path_relative_to_the_root_is_read(root: Path) -> None:
    assert read(root, "sub/b.txt") == b"beta"
    assert read(root, "./sub/../a.txt") == b"alpha"


def test_an_absolute_path_inside_the_root_is_read(root: Path) -> None:
    assert read(root, str(root / "a.txt")) == b"alpha"


def test_a_root_that_is_itself_a_link_still_serves_its_files(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert read(link, "a.txt") == b"alpha"
    assert read(link, str(link / "a.txt")) == b"alpha"
    assert read(link, str(root / "a.txt")) == b"alpha"


def test_a_link_that_stays_inside_is_followed(root: Path) -> None:
    (root / "inside").symlink_to("sub/b.txt")
    assert read(root, "inside") == b"beta"


@pytest.mark.parametrize(
    "path", ["../secret.txt", "sub/../../secret.txt", "/etc/passwd", "/etc/no-such-file", "/"]
)
def test_no_path_reads_outside_the_root_or_tells_what_exists_there(root: Path, path: str) -> None:
    assert refusal(root, path).code == "outside_root"


def test_a_root_with_a_like_named_neighbour_does_not_serve_the_neighbour(root: Path) -> None:
    neighbour = root.parent / "documents2"
    neighbour.mkdir()
    (neighbour / "c.txt").write_text("c")
    assert refusal(root, str(neighbour / "c.txt")).code == "outside_root"


def test_a_link_out_of_the_root_is_refused(root: Path) -> None:
    (root / "out").symlink_to(root.parent / "secret.txt")
    (root / "up").symlink_to(root.parent)
    assert refusal(root, "out").code == "outside_root"
    assert refusal(root, "up/secret.txt").code == "outside_root"


def test_a_file_swapped_for_a_link_while_it_is_opened_never_leaks(root: Path) -> None:
    victim, good, bad = root / "victim", root / "good", root / "bad"
    good.write_text("alpha")
    bad.symlink_to(root.parent / "secret.txt")
    pid = os.fork()
    if pid == 0:
        while True:  # swap as fast as possible
            for source in (good, bad):
                temporary = root / "temporary"
                try:
                    if source is bad:
                        temporary.symlink_to(root.parent / "secret.txt")
                    else:
                        temporary.write_text("alpha")
                    temporary.rename(victim)
                except OSError:
                    pass
    try:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            try:
                assert read(root, "victim") in (b"alpha", b"")
            except DocumentError as error:
                assert error.code in ("outside_root", "not_found", "io_error")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.timeout(60)
def test_a_named_pipe_does_not_block_the_server(root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert refusal(root, "pipe").code == "not_regular"


def test_a_device_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_unfit", lambda folder: None)
    assert refusal(Path("/dev"), "zero").code == "not_regular"


def test_each_mistake_in_a_path_has_its_own_reason(root: Path) -> None:
    (root / "loop").symlink_to("loop")
    expected = {
        "": "bad_path",
        "  ": "bad_path",
        "a\x00b": "bad_path",
        "lone \ud800": "bad_path",
        "missing.txt": "not_found",
        "a.txt/more": "not_found",
        "sub": "is_directory",
        "x" * 300: "name_too_long",
        "loop": "symlink_loop",
    }
    assert {path: refusal(root, path).code for path in expected} == expected


@pytest.mark.parametrize("path", ["C:\\Docs\\plan.pdf", "reports\\plan.pdf", "D:/plan.pdf"])
def test_a_windows_path_is_told_how_to_be_written(root: Path, path: str) -> None:
    assert "forward slashes" in refusal(root, path).hint


def test_a_url_is_told_that_it_is_no_path(root: Path) -> None:
    assert "URL" in refusal(root, "https://example.org/plan.pdf").hint


@pytest.mark.parametrize("name", ['it\'s "quoted".txt', "new\nline.txt", "tab\t.txt", "b\\s.txt"])
def test_odd_but_legal_names_are_read(root: Path, name: str) -> None:
    (root / name).write_text("odd")
    assert read(root, name) == b"odd"


def test_a_name_that_is_not_utf8_is_read(root: Path) -> None:
    name = b"caf\xe9.txt"
    with open(os.path.join(os.fsencode(root), name), "wb") as file:
        file.write(b"latin")
    assert read(root, name.decode("utf-8", "surrogateescape")) == b"latin"


def test_a_message_about_an_odd_name_stays_on_one_line(root: Path) -> None:
    error = refusal(root, "no\nsuch\n" + "y" * 5_000 + "/file")
    assert "\n" not in error.message + error.detail
    assert len(error.detail) < 500


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_the_server_may_not_read_says_so(root: Path) -> None:
    (root / "private.txt").write_text("x")
    (root / "private.txt").chmod(0)
    error = refusal(root, "private.txt")
    assert error.code == "permission_denied"
    assert not error.permanent


def test_a_missing_root_is_the_settings_fault(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none", "a.txt").code == "root_missing"


# The root itself


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory, as a backend has it for its current folder, and what it leads to."""
    data = tmp_path / "pgdata"
    for folder in ("pgdata/base", "pgdata/pg_tblspc", "disk/wal", "disk2/space", "documents/a"):
        (tmp_path / folder).mkdir(parents=True)
    (data / "PG_VERSION").write_text("15")
    (data / "pg_wal").symlink_to(tmp_path / "disk" / "wal")
    (data / "pg_tblspc" / "16384").symlink_to(tmp_path / "disk2" / "space")
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "other" / "base").mkdir(parents=True)
    (tmp_path / "other" / "PG_VERSION").write_text("14")
    monkeypatch.chdir(data)
    return tmp_path


UNFIT = [
    "/", "//", "/.", "/tmp/..", "/usr/../etc/..", "/proc", "/proc/self", "/sys", "/dev/shm",
    "/etc/ssl", "/run", "{}", "{}/pgdata", "{}/pgdata/", "{}/pgdata/base", "{}/link",
    "{}/link/base", "{}/documents/../pgdata", "{}/disk", "{}/disk/wal", "{}/disk2",
    "{}/disk2/space", "{}/other", "{}/other/base", str(INSTALL_DIR), str(INSTALL_DIR.parent), str(INSTALL_DIR / "ragstone"),
    str(Path.home()),
]  # fmt: skip


@pytest.mark.parametrize("path", UNFIT)
def test_a_root_that_shows_the_servers_own_files_is_refused(server: Path, path: str) -> None:
    problem, hint = root_problem(path.format(server)) or ("", "")
    assert problem
    assert hint
    assert "/folder/of/the/documents" in hint


def test_a_root_that_holds_documents_alone_is_fine(server: Path) -> None:
    (server / "elsewhere").symlink_to(server / "documents")
    for path in ("documents", "documents/", "documents/a", "elsewhere"):
        assert root_problem(f"{server}/{path}") is None


def test_what_is_wrong_with_a_root_is_said(server: Path) -> None:
    (server / "file").write_text("x")
    (server / "loop").symlink_to("loop")
    expected = {
        "documents": "absolute",
        f"{server}/none": "no such folder",
        f"{server}/file": "a file",
        f"{server}/file/a": "no such folder",
        f"{server}/loop": "symbolic links",
        f"{server}/documents/a/..": f"'{server}/documents'",
    }
    for path, words in expected.items():
        problem = root_problem(path)
        assert problem and words in problem[0], (path, problem)


def test_a_root_is_judged_at_each_use(server: Path) -> None:
    """A link may lead elsewhere by now, and a tablespace may have come."""
    (server / "root").symlink_to(server / "documents")
    (server / "documents" / "a.txt").write_text("alpha")
    assert read(server / "root", "a.txt") == b"alpha"
    (server / "root").unlink()
    (server / "root").symlink_to(server / "pgdata")
    error = refusal(server / "root", "PG_VERSION")
    assert (error.code, error.permanent) == ("root_unfit", False)
    (server / "pgdata" / "pg_tblspc" / "16385").symlink_to(server / "documents" / "a")
    assert refusal(server / "documents", "a.txt").code == "root_unfit"


def test_nobody_who_puts_files_below_the_root_can_make_it_unfit(server: Path) -> None:
    (server / "documents" / "PG_VERSION").write_text("15")
    (server / "documents" / "pg_tblspc").mkdir()
    assert read(server / "documents", "PG_VERSION") == b"15"


def test_a_root_with_letters_of_any_script_is_read(root: Path) -> None:
    other = root.rename(root.with_name("Dokumente für 文書"))
    assert read(other, "a.txt") == b"alpha"
    assert root_problem(str(other)) is None


def nothing() -> None:
    pass


def test_a_snapshot_is_what_the_file_was(root: Path) -> None:
    with open_file(str(root), "a.txt") as file, file.snapshot(10**8, nothing) as copy:
        (root / "a.txt").write_text("other")
        assert os.read(copy.fd, 100) == b"alpha"
        assert copy.sha256 == hashlib.sha256(b"alpha").hexdigest()


def test_a_file_changed_to_the_same_size_has_another_version(root: Path) -> None:
    with open_file(str(root), "a.txt") as file:
        first = file.version
    (root / "a.txt").write_text("other")
    with open_file(str(root), "a.txt") as file:
        assert (file.size, file.version != first) == (5, True)


def test_a_file_written_to_meanwhile_is_tried_again(root: Path) -> None:
    path = root / "growing"
    path.write_bytes(bytes(3_000_000))

    def grow() -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with open_file(str(root), "growing") as file, pytest.raises(DocumentError) as caught:
        file.snapshot(10**8, grow)
    assert caught.value.code == "changed"
    assert not caught.value.permanent


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x" * path.stat().st_size)


def shrink(path: Path) -> None:
    os.truncate(path, 1)


def shrink_and_grow(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 1)
    os.truncate(path, size)


def set_back(path: Path, change: Callable[[Path], None]) -> None:
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("size", [100, 3_000_000])
@pytest.mark.parametrize("change", [append, rewrite, shrink, shrink_and_grow])
def test_a_change_is_seen_although_the_time_of_writing_was_set_back(
    root: Path, change: Callable[[Path], None], size: int
) -> None:
    """As `cp -p`, tar and rsync do; and at once, within a step of the kernel's clock."""
    path = root / "file"
    for _ in range(5):
        path.write_bytes(bytes(size))
        with open_file(str(root), "file") as file, pytest.raises(DocumentError) as caught:
            file.snapshot(10**8, partial(set_back, path, change))
        assert caught.value.code == "changed"
        assert not caught.value.permanent


def test_a_change_without_any_time_set_back_is_seen_as_well(root: Path) -> None:
    """Written, looked at and written again within one step of the clock."""
    path = root / "file"
    for number in range(50):
        path.write_bytes(b"%d" % number * 1_000)
        with open_file(str(root), "file") as file, pytest.raises(DocumentError) as caught:
            file.snapshot(10**8, lambda: rewrite(path))
        assert caught.value.code == "changed"


def test_a_file_replaced_while_it_is_read_is_wholly_the_old_one_or_tried_again(root: Path) -> None:
    path, other = root / "file", root / "other"
    path.write_bytes(b"old" * 1_000_000)
    other.write_bytes(b"new" * 1_000_000)
    with open_file(str(root), "file") as file:
        try:
            copy = file.snapshot(10**8, lambda: other.exists() and other.rename(path))
        except DocumentError as error:
            assert error.code == "changed"
            return
    with copy:
        assert copy.sha256 == hashlib.sha256(b"old" * 1_000_000).hexdigest()


def test_a_file_that_is_always_written_to_does_not_hold_up_the_worker(root: Path) -> None:
    path = root / "log"
    path.write_bytes(b"line\n")
    with open_file(str(root), "log") as file, pytest.raises(DocumentError) as caught:
        file.snapshot(10**8, lambda: append(path))
    assert caught.value.code == "changed"
    assert path.stat().st_size < 100


def test_a_file_from_the_future_is_read(root: Path) -> None:
    """The clock of the machine that wrote it may be ahead."""
    os.utime(root / "a.txt", (2**33, 2**33))
    with open_file(str(root), "a.txt") as file, file.snapshot(10**8, nothing) as copy:
        assert os.read(copy.fd, 10) == b"alpha"

"""Files below the document root, opened so that no path leads out of it."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import pwd
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ragstone import INSTALL_DIR
from ragstone.errors import DocumentError
from ragstone.stores.copying import BLOCK_BYTES, sealed, too_large, write_all
from ragstone.stores.port import Check, OpenDocument, Snapshot

# CLOCK_REALTIME_COARSE, which files get their times from, has steps of 1 to 10 ms. A file that is
# written to all the time, or whose server's clock is ahead, is read after this many ms as it is.
_COARSE_CLOCK = 5
_MOST_STEPS = 30

# What holds no documents: devices and PostgreSQL's shared memory, passwords, keys, other processes.
_SYSTEM = (b"/boot", b"/dev", b"/etc", b"/proc", b"/run", b"/sys")
_HOME = "the home folder of the server's account"
_CHOOSE = (
    "Choose the folder that the documents are in:"
    " select rag.set('document_root', '/folder/of/the/documents');"
)

_WINDOWS = re.compile(r"^[A-Za-z]:[\\/]|\\")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class OpenFile(OpenDocument):
    """A file; its version is its size and the times of its last change."""

    fd: int
    size: int
    version: str

    def snapshot(self, max_bytes: int, check: Check) -> Snapshot:
        """See the port."""
        return sealed(lambda target: _copy_file(self.fd, target, max_bytes, check))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


def open_file(root: str | None, path: str | None) -> OpenFile:
    """Open the file `path` below `root`, the setting document_root.

    Raises DocumentError: no_document_root, no_path, and those of `open_beneath`.
    """
    if root is None:
        raise _read_error(
            "no_document_root",
            "no document root is set",
            "",
            "Type: select rag.set('document_root', '/folder/of/the/documents');",
            permanent=False,
        )
    if path is None:
        raise _read_error(
            "no_path",
            "the path is null",
            "",
            "Put the file's name into the path column, or delete the row.",
        )
    fd = open_beneath(Path(root), path)
    file = os.fstat(fd)
    return OpenFile(fd, file.st_size, "-".join(map(str, _state(file))))


def open_beneath(root: Path, path: str) -> int:
    """Open the regular file `path` under `root` for reading and return its file descriptor.

    Relative paths start at the root; absolute ones must lie inside it, under the root's given or
    its resolved name. The check is made on the opened file, not on its name, so that swapping a
    link between check and use gains nothing. FIFOs and devices are never opened.

    Raises DocumentError: bad_path, name_too_long, outside_root, not_found, is_directory,
    not_regular, symlink_loop, permission_denied, io_error; root_missing and root_unfit for the
    root itself.
    """
    name = _encoded(path)
    root_name = _name(root)
    real_root = _resolve_root(root_name, root)
    target = _lexical_target(name, root_name, real_root, path)
    handle = _open_path(target, path)
    try:
        _check_regular(handle, path)
        _check_inside(handle, real_root, path, root)
        return _reopen(handle, path)
    finally:
        os.close(handle)


def root_problem(path: str) -> tuple[str, str | None] | None:
    """Why documents cannot be read from below the folder and what to do, None where they can.

    The folder is judged by where its name leads, for the account of this process. There is no
    hint where the access to the folders above has to be looked at.
    """
    name = _name(path)
    if not name.startswith(b"/"):
        return "it is an absolute path, such as /srv/documents", _CHOOSE
    try:
        resolved = os.path.realpath(name, strict=True)
        if problem := _unfit(resolved):
            return problem, _CHOOSE
        if _is_database(resolved):
            return f"{_text(resolved)} is a database's", _CHOOSE
        if b".." in name.split(b"/"):
            return f"it is a path without .., such as {_text(resolved)}", _CHOOSE
        if not stat.S_ISDIR(os.stat(resolved).st_mode):
            return "it is a file, not a folder", _CHOOSE
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENOTDIR:
                return "there is no such folder on the server", None
            case errno.EACCES:
                return f"the server's account ({_account().pw_name}) may not reach it", None
            case _:
                return f"it cannot be opened: {os.strerror(error.errno or 0)}", None
    if not os.access(resolved, os.R_OK | os.X_OK):
        return f"the server's account ({_account().pw_name}) may not read it", None
    return None


def _encoded(path: str) -> bytes:
    if not path or not path.strip():
        raise _read_error(
            "bad_path",
            "the document has no path",
            "The path is NULL or empty.",
            "Store the file's path, relative to the document root.",
        )
    if "\x00" in path:
        raise _read_error(
            "bad_path",
            "the path holds a NUL character",
            f"The path is {_shown(path)}.",
            "Correct the path; no file name can hold a NUL.",
        )
    try:
        return _name(path)
    except UnicodeEncodeError as error:
        raise _read_error(
            "bad_path",
            "the path is not valid Unicode",
            f"The path is {_shown(path)}: {error.reason}.",
            "Correct the path.",
        ) from None


def _resolve_root(root_name: bytes, root: Path) -> bytes:
    try:
        fd = os.open(root_name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DocumentError(
            "root_missing",
            "the document root cannot be opened",
            detail=f"{_shown(str(root))}: {os.strerror(error.errno or 0)}.",
            hint="Create the folder, or point the setting document_root at the right one.",
            permanent=False,
            stage="read",
        ) from None
    try:
        real_root = os.readlink(b"/proc/self/fd/%d" % fd)
    finally:
        os.close(fd)
    # Judged at each use: a link may lead elsewhere than when the root was set, a tablespace may
    # have come since, and a restored setting was never judged here.
    if problem := _unfit(real_root):
        raise DocumentError(
            "root_unfit",
            "the document root is not a folder of documents alone",
            detail=f"{_shown(str(root))}: {problem}.",
            hint=_CHOOSE,
            permanent=False,
            stage="read",
        )
    return real_root


def _unfit(folder: bytes) -> str | None:
    """Why nobody's documents are in the folder, however its access is set; None for any other.

    Whoever may insert a path can have every file below it found by searching.
    """
    if folder == b"/":
        return "it is the whole file system"
    for system in _SYSTEM:
        if _is_within(folder, system):
            return f"it is in {system.decode()}, which is the system's own"
    for private, whose in _private_folders():
        if _is_within(private, folder):
            return f"it holds {whose} in {_text(private)}"
        if _is_within(folder, private) and whose != _HOME:
            return f"it is in {_text(private)}, with {whose}"
    above = folder
    while above != b"/":  # not in the folder itself: whoever puts documents there could stop all
        above = os.path.dirname(above)
        if _is_database(above):
            return f"it is in {_text(above)}, which is a database's"
    return None


def _is_database(folder: bytes) -> bool:
    return os.path.lexists(os.path.join(folder, b"PG_VERSION"))


def _private_folders() -> Iterator[tuple[bytes, str]]:
    """Folders of the server's that can be anywhere: where each is, and what is in it."""
    yield os.path.realpath(_name(INSTALL_DIR)), "ragstone itself"
    yield os.path.realpath(_name(_account().pw_dir)), _HOME
    here = os.getcwdb()  # in a backend, the data directory
    if _is_database(here):
        yield here, "the server's own data"
        links = [os.path.join(here, b"pg_wal"), os.path.join(here, b"log")]
        with contextlib.suppress(OSError), os.scandir(os.path.join(here, b"pg_tblspc")) as found:
            links += [entry.path for entry in found]
        for link in links:
            yield os.path.realpath(link), "the server's own data"


@functools.cache
def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(os.geteuid())
    except KeyError:  # a container may run as a number that has no name
        name = str(os.geteuid())
        return pwd.struct_passwd((name, "", os.geteuid(), os.getegid(), "", "/nonexistent", ""))


def _lexical_target(name: bytes, root_name: bytes, real_root: bytes, path: str) -> bytes:
    """The path to open. What plainly leads outside is refused before the file system is asked.

    Otherwise the difference between "missing" and "outside" would tell which of the server's
    files exist.
    """
    roots = {os.path.normpath(root_name), os.path.normpath(real_root)}
    target = os.path.normpath(os.path.join(os.path.normpath(root_name), name))
    if not any(_is_within(target, candidate) for candidate in roots):
        hint = _style_hint(path) or (
            "Store paths relative to the document root, or move the file under it."
        )
        raise _read_error(
            "outside_root",
            "the path leads out of the document root",
            f"The path is {_shown(path)}.",
            hint,
        )
    return target


def _is_within(target: bytes, root: bytes) -> bool:
    return target == root or root == b"/" or target.startswith(root.rstrip(b"/") + b"/")


def _open_path(target: bytes, path: str) -> int:
    try:
        return os.open(target, os.O_PATH | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise _open_error(error, path) from None


def _check_regular(handle: int, path: str) -> None:
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise _read_error(
            "is_directory",
            "the path is a directory, not a file",
            f"The path is {_shown(path)}.",
            "Store one row for each file in it.",
        )
    raise _read_error(
        "not_regular",
        "the path is not a regular file",
        f"{_shown(path)} is a {_kind(mode)}.",
        "Store the path of a regular file.",
    )


def _check_inside(handle: int, real_root: bytes, path: str, root: Path) -> None:
    try:
        resolved = os.readlink(b"/proc/self/fd/%d" % handle)
    except OSError as error:
        raise _open_error(error, path) from None
    if not _is_within(resolved, real_root):
        raise _read_error(
            "outside_root",
            "the path leads out of the document root through a symbolic link",
            f"{_shown(path)} does not lie under {_shown(str(root))} once links are followed.",
            "Move the file itself under the document root.",
        )


def _reopen(handle: int, path: str) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open(b"/proc/self/fd/%d" % handle, flags)
    except OSError as error:
        raise _open_error(error, path) from None


def _open_error(error: OSError, path: str) -> DocumentError:
    shown = _shown(path)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            hint = _style_hint(path) or (
                "Check the path; relative paths start at the document root, and letter case counts."
            )
            # An application may well store the row a moment before the file.
            return _read_error(
                "not_found",
                "the file does not exist",
                f"The path is {shown}.",
                hint,
                permanent=False,
            )
        case errno.ENAMETOOLONG:
            return _read_error(
                "name_too_long",
                "the path is too long for the file system",
                f"It has {len(path)} characters and begins {shown[:80]}.",
                "Shorten the file's name.",
            )
        case errno.ELOOP:
            return _read_error(
                "symlink_loop",
                "the path is a loop of symbolic links",
                f"The path is {shown}.",
                "Remove the loop.",
            )
        case errno.EACCES | errno.EPERM:
            return _read_error(
                "permission_denied",
                "the server may not read the file",
                f"The path is {shown}.",
                "Let the account that PostgreSQL runs as read the file and search"
                " the folders above it.",
                permanent=False,
            )
        case _:
            return _read_error(
                "io_error",
                "the file could not be read",
                f"{shown}: {os.strerror(error.errno or 0)}.",
                "Check the file system; the document will be tried again.",
                permanent=False,
            )


def _style_hint(path: str) -> str:
    if _URL.match(path):
        return "This is a URL; store the path of a file under the document root."
    if _WINDOWS.search(path):
        return (
            "This looks like a Windows path; store it relative to the document root,"
            " with forward slashes, e.g. reports/2024/plan.pdf."
        )
    return ""


def _copy_file(source: int, target: int, max_bytes: int, check: Check) -> tuple[int, str]:
    try:
        before = _settled(source)
        if before.st_size > max_bytes:
            raise too_large(before.st_size, max_bytes)
        digest, size = hashlib.sha256(), 0
        while block := os.pread(source, BLOCK_BYTES, size):
            size += len(block)
            if size > before.st_size:  # a log that is always written to would never end
                break
            digest.update(block)
            write_all(target, block)
            check()
        after = os.fstat(source)
    except OSError as error:
        raise _read_error(
            "io_error",
            "the file could not be read",
            f"{os.strerror(error.errno or 0)}.",
            "Check the file system; the document will be tried again.",
            permanent=False,
        ) from None
    if size != before.st_size or _state(before) != _state(after):
        raise _read_error(
            "changed",
            "the file was written to while it was read",
            f"It had {before.st_size} bytes before, {size} were read, and it had {after.st_size}"
            " after.",
            "Nothing to do: it will be tried again.",
            permanent=False,
        )
    return size, digest.hexdigest()


def _settled(source: int) -> os.stat_result:
    """The file's state, from a moment on after which every write gives it another one.

    Writes set the time of change to the kernel's clock, which goes in steps of some milliseconds:
    a file changed within the current step could be changed again without a trace. The step is
    waited for, which costs nothing where the file is older. Not found are writes through memory
    that was mapped before, and those on file systems whose clock is coarser than this or not ours.
    """
    for _ in range(_MOST_STEPS):
        now = time.clock_gettime_ns(_COARSE_CLOCK)
        state = os.fstat(source)
        if state.st_ctime_ns < now:
            break
        time.sleep(0.001)
    return state


def _state(file: os.stat_result) -> tuple[int, int, int]:
    """What every write changes. Programs can set the time of writing back, that of change not."""
    return file.st_size, file.st_mtime_ns, file.st_ctime_ns


def _read_error(
    code: str, message: str, detail: str, hint: str, *, permanent: bool = True
) -> DocumentError:
    return DocumentError(code, message, detail=detail, hint=hint, permanent=permanent, stage="read")


def _name(path: str | Path) -> bytes:
    """Not os.fsencode: inside a server started with LC_ALL=C that would mean ASCII."""
    return str(path).encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return _shown(name.decode("utf-8", "surrogateescape"))


def _shown(path: str) -> str:
    """The path as it may stand in a message: on one line, quoted, of bounded length."""
    text = path.encode("utf-8", "replace").decode("utf-8")
    quoted = repr(text)
    return quoted if len(quoted) <= 300 else quoted[:299] + "…"


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "named pipe"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "special file"

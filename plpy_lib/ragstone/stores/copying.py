"""From what a store hands out to a sealed copy. The contents are never interpreted."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable

from ragstone.errors import DocumentError
from ragstone.stores.port import Snapshot

# Large enough to be quick, small enough that a cancel is seen within a few milliseconds.
BLOCK_BYTES = 1 << 20

_MFD_NOEXEC_SEAL = 8  # since Linux 6.3; some systems allow no other kind
_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def sealed(copy: Callable[[int], tuple[int, str]]) -> Snapshot:
    """A memfd that nobody can change any more.

    `copy` writes the document to the descriptor that it is given and returns the size in bytes and
    the sha256 in hexadecimal. Raises what it raises, and DocumentError empty.
    """
    fd = _memory_file()
    try:
        size, digest = copy(fd)
        if size == 0:
            raise DocumentError(
                "empty",
                "the document is empty",
                detail="It has 0 bytes.",
                hint="Replace the file by one with content.",
                stage="read",
            )
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _ALL_SEALS)
        os.lseek(fd, 0, os.SEEK_SET)
        return Snapshot(fd, size, digest)
    except BaseException:
        os.close(fd)
        raise


def _memory_file() -> int:
    """A file in memory that can be sealed and, where the kernel can say so, never be run."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("ragstone-document", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("ragstone-document", flags)


def write_all(fd: int, block: bytes | memoryview) -> None:
    """Write a block, in as many calls as the kernel wants."""
    view = memoryview(block)
    while view:
        view = view[os.write(fd, view) :]


def too_large(size: int, limit: int) -> DocumentError:
    """A document over the limit max_file_bytes."""
    return DocumentError(
        "too_large",
        "the document is larger than the limit max_file_bytes",
        detail=f"It has {size:,} bytes; the limit is {limit:,}.",
        hint="Split the document, or raise the limit.",
        stage="read",
    )

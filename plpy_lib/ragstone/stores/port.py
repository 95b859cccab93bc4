"""The store port: a document that was found, what is known of it before it is read, and its copy.

Each store is a module beside this one and a line in places.py.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

Check = Callable[[], None]
"""Called at least for each MiB that is read; what it raises passes through."""


class _Closing(AbstractContextManager):
    """Closed by leaving a `with` block."""

    def close(self) -> None:
        """May be called twice."""

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Snapshot(_Closing):
    """A private, sealed copy of a document: what is hashed is what is parsed.

    `fd` is a memfd positioned at its start; close it with `close()` or by leaving a `with` block.
    """

    fd: int
    size: int
    sha256: str

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


class OpenDocument(_Closing):
    """A document in its store, open and not read yet."""

    size: int
    """Bytes, as the store says."""
    version: str
    """Another one whenever the content is; only comparable within its store."""

    @abstractmethod
    def snapshot(self, max_bytes: int, check: Check) -> Snapshot:
        """A copy that nobody can change; nothing is left open where this raises.

        Raises DocumentError: too_large, empty, changed (it was written to meanwhile), io_error.
        """

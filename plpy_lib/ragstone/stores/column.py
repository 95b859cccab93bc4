"""Documents that a column of their table holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from ragstone.errors import DocumentError
from ragstone.stores.copying import BLOCK_BYTES, sealed, too_large, write_all
from ragstone.stores.port import Check, OpenDocument, Snapshot


@dataclass
class OpenContent(OpenDocument):
    """A column's value; its version is its hash."""

    content: bytes

    @classmethod
    def found(cls, content: bytes | None) -> OpenContent:
        """Raises DocumentError no_content for a null."""
        if content is None:
            raise DocumentError(
                "no_content",
                "the content is null",
                stage="read",
                hint="Put the document into the content column, or delete the row.",
            )
        return cls(content)

    @property
    def size(self) -> int:
        return len(self.content)

    @cached_property
    def version(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def snapshot(self, max_bytes: int, check: Check) -> Snapshot:
        """See the port."""
        if self.size > max_bytes:
            raise too_large(self.size, max_bytes)
        return sealed(lambda target: self._copy(target, check))

    def _copy(self, target: int, check: Check) -> tuple[int, str]:
        digest = hashlib.sha256()
        view = memoryview(self.content)
        for start in range(0, len(view), BLOCK_BYTES):
            block = view[start : start + BLOCK_BYTES]
            digest.update(block)
            write_all(target, block)
            check()
        return self.size, digest.hexdigest()

"""Which store a document is in. A new store is a module beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable

from ragstone.stores.column import OpenContent
from ragstone.stores.files import open_file
from ragstone.stores.port import OpenDocument


def open_document(
    name: str | None,
    *,
    root: str | None,
    content: Callable[[], bytes | None] | None = None,
) -> OpenDocument:
    """Find a document and what is known of it; nothing is read of it yet.

    `content` fetches it where a column holds it. Otherwise `name` is a path below `root`, the
    setting document_root. Raises DocumentError with what is wrong.
    """
    if content:
        return OpenContent.found(content())
    return open_file(root, name)

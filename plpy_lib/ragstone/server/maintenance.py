"""Body of the procedure rag.maintain(), the nightly pass."""

from __future__ import annotations

from collections.abc import Callable

from ragstone.db.catalog import Catalog
from ragstone.db.connection import Connection
from ragstone.db.maintenance import Maintenance
from ragstone.db.rows import StoredFile
from ragstone.errors import DocumentError
from ragstone.stores.places import open_document


def maintain(connection: Connection) -> None:
    """Each task in a transaction of its own; one that fails is a warning and stops no other."""
    calls = Maintenance(connection)
    _do(connection, calls, calls.members, calls.perform)
    for name in calls.comparisons:
        _do(connection, calls, name, lambda task: _compare_sources(calls, task))
    _do(
        connection,
        calls,
        "changed files queued",
        lambda task: _check_files(connection, calls, task),
    )
    for name in calls.tasks:
        _do(connection, calls, name, calls.perform)


def _do(connection: Connection, calls: Maintenance, task: str, work: Callable[[str], int]) -> None:
    started = calls.now()
    try:
        count = work(task)
    except Exception as error:
        if connection.is_interrupt(error):
            raise
        why = f"{type(error).__name__}: {error}"
        calls.log(task, None, started, why)
        connection.warning(f"maintenance failed: {task}", detail=why)
        return
    if count and task == "contradictions found":
        connection.warning(f"{count} {task}", hint="Look: select * from rag.check_consistency();")
    elif count:
        connection.notice(f"{count} {task}")


def _compare_sources(calls: Maintenance, task: str) -> int:
    """Each source with its documents, in batches that are transactions of their own."""
    started = calls.now()
    total = 0
    for source_id in calls.source_ids():
        last, number = calls.compare_source(task, source_id, None)
        total += number
        while last is not None:
            last, number = calls.compare_source(task, source_id, last)
            total += number
    calls.log(task, total, started)
    return total


def _check_files(connection: Connection, calls: Maintenance, task: str) -> int:
    started = calls.now()
    count = _queue_changed_files(connection, calls)
    calls.log(task, count, started)
    return count


def _queue_changed_files(connection: Connection, calls: Maintenance) -> int:
    settings = Catalog(connection).settings(None)
    root = settings["document_root"]
    limit = int(settings["max_file_bytes"] or 0)
    queued = 0
    last: StoredFile | None = None
    while root is not None and (files := calls.files_to_check(last)):
        for file in files:
            if _hash(connection, root, file, limit) != file.sha256:
                calls.record_change(file)
                queued += 1
        last = files[-1]
    return queued


def _hash(connection: Connection, root: str, file: StoredFile, limit: int) -> str | None:
    """What the file holds now; None where it cannot be read any more."""
    try:
        with (
            open_document(file.file_path, root=root) as document,
            document.snapshot(limit, connection.check) as now,
        ):
            return now.sha256
    except DocumentError:
        return None

"""Body of the procedure rag.maintain(), the nightly pass."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ragstone.db.calls import Database
from ragstone.db.rows import StoredFile
from ragstone.errors import DocumentError
from ragstone.stores.files import open_beneath, snapshot

TASKS = {
    "outdated documents queued": "rag._queue_outdated()",
    "orphaned chunks removed": "rag.cleanup_orphaned_chunks()",
    "expired versions let go": "rag._prune_versions()",
    "old versions forgotten": "rag._prune_version_history()",
    "old jobs forgotten": "rag._prune_history()",
    "cached queries forgotten": (
        "rag._evict_queries(rag.get('query_cache_entries')::pg_catalog.int4,"
        " rag.get('query_cache_days')::pg_catalog.int4 operator(pg_catalog.*) interval '1 day')"
    ),
    "notes of pg_cron removed": "rag._prune_cron_history()",
    "chunks counted for text search": "rag._fold_statistics()",
    "contradictions found": "rag._count_problems()",
}


def maintain(plpy: Any) -> None:
    """Each task in a transaction of its own; one that fails is a warning and stops no other."""
    require_no_transaction(plpy, "rag.maintain()")
    db = Database(plpy)
    _do(db, "changed files queued", lambda: _queue_changed_files(db))
    for task, call in TASKS.items():
        _do(db, task, lambda call=call: db.maintenance_task(call))


def require_no_transaction(plpy: Any, name: str) -> None:
    """Raise 25001, in the name of a procedure that commits, inside a transaction block."""
    db = Database(plpy)
    try:
        db.commit()
    except db.database_errors:
        db.error(
            f"{name} cannot run inside a transaction block",
            sqlstate="25001",
            detail="It commits as it goes.",
            hint="Call it outside of begin … commit, and not from a function.",
        )


def _do(db: Database, task: str, work: Callable[[], int]) -> None:
    started = db.now()
    try:
        count = work()
        db.log_maintenance(task, count, started)
        db.commit()
    except Exception as error:
        if db.is_interrupt(error):
            raise
        db.rollback()
        db.warning(f"maintenance failed: {task}", detail=f"{type(error).__name__}: {error}")
        return
    if count and task == "contradictions found":
        db.warning(f"{count} {task}", hint="Look: select * from rag.check_consistency();")
    elif count:
        db.notice(f"{count} {task}")


def _queue_changed_files(db: Database) -> int:
    settings = db.settings(None)
    root = settings["document_root"]
    limit = int(settings["max_file_bytes"] or 0)
    queued = 0
    last: StoredFile | None = None
    while root is not None and (files := db.files_to_check(last)):
        db.commit()
        for file in files:
            if _hash(db, Path(root), file, limit) != file.sha256:
                db.record_change(file)
                queued += 1
            db.commit()
        last = files[-1]
    return queued


def _hash(db: Database, root: Path, file: StoredFile, limit: int) -> str | None:
    """What the file holds now; None where it cannot be read any more."""

    def check() -> None:
        db.check()
        db.commit()

    try:
        fd = open_beneath(root, file.file_path)
        try:
            with snapshot(fd, limit, check) as now:
                return now.sha256
        finally:
            os.close(fd)
    except DocumentError:
        return None

"""What the nightly pass asks of the database."""

from __future__ import annotations

from ragstone.db.connection import Connection
from ragstone.db.rows import StoredFile

# What is compared in which direction, see rag._compare_source().
_COMPARISONS = {
    "rows without a document queued": "rows",
    "documents without a row removed": "documents",
}
# In this order, but for the first. Each call returns how many it was.
_TASKS = {
    "partitions that came or went": "rag._members_followed()",
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


class Maintenance:
    """The calls of the nightly pass; `tasks` are the names of what is one call each, in order.

    The first of them comes before, and `comparisons` after it.
    """

    members, *tasks = _TASKS
    comparisons = tuple(_COMPARISONS)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def perform(self, task: str) -> int:
        """Do and note one of `tasks`, or `members`, in one transaction; how many it was."""
        with self._connection.transaction():
            started = self.now()
            count = self._connection.value(_TASKS[task])
            self.log(task, count, started)
        return count

    def now(self) -> str:
        return self._connection.value("pg_catalog.clock_timestamp()::pg_catalog.text")

    def log(self, task: str, count: int | None, started: str, error: str | None = None) -> None:
        """Note in rag.maintenance_log what was done, or why it failed: then count is None."""
        self._connection.rows(
            "select rag._log_maintenance($1, $2, $3, $4)",
            ["text", "int8", "timestamptz", "text"],
            task,
            count,
            started,
            error,
        )

    def source_ids(self) -> list[int]:
        rows = self._connection.rows("select source_id from rag.sources order by source_id")
        return [row["source_id"] for row in rows]

    def compare_source(
        self, comparison: str, source_id: int, after: str | None
    ) -> tuple[str | None, int]:
        """A batch of one of `comparisons`; where to go on, and how many it was."""
        (row,) = self._connection.rows(
            "select last, number from rag._compare_source($1, $2, $3)",
            ["text", "int4", "text"],
            _COMPARISONS[comparison],
            source_id,
            after,
        )
        return row["last"], row["number"]

    def files_to_check(self, last: StoredFile | None) -> list[StoredFile]:
        """The next files after `last`, from the first where that is None."""
        after = (last.source_id, last.document_id) if last else (0, 0)
        rows = self._connection.rows(
            "select * from rag._files_to_check($1, $2)", ["int4", "int8"], *after
        )
        return [StoredFile(**row) for row in rows]

    def record_change(self, file: StoredFile) -> None:
        """Have the document read again, behind all that waits."""
        self._connection.rows(
            "select rag._record_changes($1, array[$2], (-10)::pg_catalog.int2)",
            ["int4", "text"],
            file.source_id,
            file.source_key,
        )

"""A restored database answers as the dumped one did, and goes on working."""

from __future__ import annotations

import subprocess

import pytest
from helpers import rows, value

SAME = {
    "answers": "select document_id, content, round(similarity_score::numeric, 5), round(text_rank::numeric, 4), round(hybrid_score::numeric, 4) from rag.search_documents('text about foxes')",
    "documents": "select source_id, document_id, generation, status, file_path from rag.documents order by 1, 2",
    "queue": "select document_id, status, attempts, error_code from rag.ingestion_queue order by job_id",
    "pipelines": "select * from rag.pipelines order by 1",
    "models": "select name, dimension from rag.models order by 1",
    "settings": "select name, value from rag.settings order by 1",
    "triggers": "select tgname, tgargs from pg_trigger where tgname like 'ragstone%%' order by 1",
    "indexes": "select indexdef from pg_indexes where schemaname = 'rag' and tablename like 'document_chunks%%' order by 1",
    "partition": "select attname, attstorage from pg_attribute where attrelid = 'rag.document_chunks_1'::regclass and attnum > 0 order by 1",
}


@pytest.mark.parametrize("form", ["plain", "custom", "directory"])
def test_a_restored_database_answers_the_same_and_goes_on(
    cluster, database, empty_database, db, add, table, drain, document_root, tmp_path, form
):
    add(1, "A text about foxes.")
    add(2, "A text about geese.")
    drain()
    add(3, "Not processed before the dump.")
    db.execute(f"insert into {table} values (4, 'missing.txt')")
    before = {name: rows(db, sql) for name, sql in SAME.items()}

    dump = tmp_path / "dump"
    dump_format = {"plain": "p", "custom": "c", "directory": "d"}[form]
    run(cluster, database, "pg_dump", "-F", dump_format, "-f", str(dump))
    if form == "plain":
        run(cluster, empty_database, "psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", "-f", str(dump))
    else:
        jobs = ["-j", "2"] if form == "directory" else []
        run(
            cluster,
            empty_database,
            "pg_restore",
            "--exit-on-error",
            *jobs,
            "-d",
            empty_database,
            str(dump),
        )

    with cluster.connect(empty_database) as restored:
        assert {name: rows(restored, sql) for name, sql in SAME.items()} == before
        (document_root / "5.txt").write_text("Inserted after the restore.")
        restored.execute(f"insert into {table} values (5, '5.txt')")
        restored.execute("call rag.drain()")
        assert [
            r[0]
            for r in rows(
                restored,
                "select document_id from rag.documents where status = 'completed' order by 1",
            )
        ] == [1, 2, 3, 5]
        assert (
            value(
                restored,
                "select document_id from rag.search_documents('after the restore', match_count => 1)",
            )
            == 5
        )
        assert value(restored, "select rag.cleanup_orphaned_chunks()") == 0


def run(cluster, database, *command):
    done = subprocess.run(
        command, env=cluster.environment(database), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

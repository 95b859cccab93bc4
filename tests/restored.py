"""What a database must do after it was restored, or taken to another server."""

from __future__ import annotations

from helpers import rows, value

SAME = {
    "answers": "select source, document_id, content, round(similarity_score::numeric, 5), round(text_rank::numeric, 4), round(hybrid_score::numeric, 4) from rag.search_documents('text about foxes') order by 1, 2",
    "documents": "select source_id, document_id, generation, status, file_path from rag.documents order by 1, 2",
    "queue": "select source_id, document_id, status, attempts, error_code from rag.ingestion_queue order by job_id",
    "changes": "select source_id, keys from rag._changes order by change_id",
    "sources": "select source_id, name, relation::text from rag.sources order by 1",
    "pipelines": "select * from rag.pipelines order by 1",
    "models": "select name, dimension from rag.models order by 1",
    "settings": "select name, value from rag.settings order by 1",
    "triggers": "select tgrelid::regclass::text, tgname, tgenabled, tgargs from pg_trigger where tgname like 'ragstone%%' and tgrelid <> 'rag.uploads'::regclass order by 1, 2",
    "indexes": "select indexdef from pg_indexes where schemaname = 'rag' and tablename like 'document_chunks%%' order by 1",
    "partition": "select attname, attstorage from pg_attribute where attrelid = 'rag.document_chunks_1'::regclass and attnum > 0 order by 1",
    "statistics": "select lexeme, text_search_config, chunks from rag._lexemes order by 1, 2",
}
# pg_cron may be in another database, and nobody works on what waits.
NOT_HERE = ("pg_cron", "workers")


def fill(db, add, table, drain) -> dict[str, list]:
    """A bit of everything; what the database answers."""
    add(1, "A text about foxes.")
    add(2, "A text about geese.")
    # Named to come after rag: a restore loads tables in the order of their names.
    db.execute("create schema shop")
    db.execute("create table shop.notes (id uuid primary key default gen_random_uuid(), body text)")
    db.execute("select rag.attach_source('shop.notes', content_column => 'body')")
    db.execute("insert into shop.notes (body) values ('A note about foxes.')")
    db.execute(
        "create table shop.parts (id integer primary key, body text) partition by range (id)"
    )
    db.execute("create table shop.parts_1 partition of shop.parts for values from (0) to (10)")
    db.execute("create table shop.parts_2 partition of shop.parts for values from (10) to (20)")
    db.execute("select rag.attach_source('shop.parts', content_column => 'body')")
    db.execute(
        "insert into shop.parts values (1, 'A part about foxes.'), (11, 'A part about geese.')"
    )
    db.execute("select rag.add_document(name => 'a.txt', content => 'An upload about foxes.')")
    drain()
    add(3, "Not processed before.")
    db.execute(f"insert into {table} values (4, 'missing.txt')")
    return state(db)


def state(db) -> dict[str, list]:
    return {name: rows(db, sql) for name, sql in SAME.items()} | {"problems": problems(db)}


def problems(db) -> list[tuple]:
    return rows(
        db,
        'select * from rag.check() where not ok and "check" <> all (%s)',
        list(NOT_HERE),
    )


def goes_on(cluster, database, before, table, root):
    """The restored database answers the same; what is inserted now is found, and nothing twice."""
    with cluster.connect(database) as db:
        assert state(db) == before
        assert rows(db, "select * from rag.check_consistency()") == []
        (root / "5.txt").write_text("Inserted after the restore.")
        noted = "select count(*) from rag._changes c, unnest(c.keys) k where k = any (%s)"
        before_inserts = value(db, noted, ["5", "2", "12"])
        db.execute(f"insert into {table} values (5, '5.txt')")
        assert value(db, noted, ["5", "2", "12"]) == before_inserts + 1, "triggers fire once"
        db.execute("insert into shop.parts values (2, 'Another part.'), (12, 'And another.')")
        assert value(db, noted, ["5", "2", "12"]) == before_inserts + 3
        db.execute("call rag.drain()")
        found = "select document_id from rag.documents where source_id = 1 and status = 'completed' order by 1"
        assert [r[0] for r in rows(db, found)] == [1, 2, 3, 5]
        late = "select document_id from rag.search_documents('after the restore', match_count => 1)"
        assert value(db, late) == 5
        assert value(db, "select rag.cleanup_orphaned_chunks()") == 0
        # Triggers on tables of an extension are not dumped: these come back with the worker.
        assert (
            value(
                db,
                "select count(*) from pg_trigger where tgrelid = 'rag.uploads'::regclass and tgname like 'ragstone%%'",
            )
            == 7
        )
        assert value(db, "select rag.remove_document(1)")
        assert (
            value(
                db, "select count(*) from rag.search_documents('upload') where source = 'uploads'"
            )
            == 0
        )
        job = value(db, "select rag.add_document(name => 'b.txt', content => 'Another upload.')")
        assert value(db, "select count(*) from rag.job(%s)", job) == 1
        db.execute(f'delete from {table} where "DocumentID" = 5')
        assert (
            value(
                db,
                "select count(*) from rag.document_chunks where source_id = 1 and document_id = 5",
            )
            == 0
        )

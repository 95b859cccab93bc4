"""Whatever a database or a role has set for its sessions, work goes on and answers are the same."""

from __future__ import annotations

import pytest
from helpers import rows, value

# By what they have in common; a group that passes says so of each of its parameters.
SETTINGS = {
    "statement_timeout": {"statement_timeout": "700ms"},
    "other timeouts": {
        "lock_timeout": "1ms", "idle_in_transaction_session_timeout": "200ms", "idle_session_timeout": "30s", "transaction_timeout": "700ms",
    },
    "read only": {"default_transaction_read_only": "on"},
    "serializable": {"default_transaction_isolation": "serializable", "default_transaction_deferrable": "on"},
    "replica": {"session_replication_role": "replica"},
    "form": {
        "bytea_output": "escape", "datestyle": "SQL, DMY", "intervalstyle": "iso_8601", "timezone": "Australia/Eucla", "xmlbinary": "hex",
        "standard_conforming_strings": "off", "escape_string_warning": "off", "backslash_quote": "off", "extra_float_digits": "-15",
        "array_nulls": "off", "quote_all_identifiers": "on", "transform_null_equals": "on", "lc_numeric": "C", "lc_monetary": "C",
        "client_encoding": "LATIN1", "row_security": "off", "search_path": "nowhere", "default_text_search_config": "pg_catalog.german",
    },
    "planner": {
        "enable_seqscan": "off", "enable_indexscan": "off", "enable_bitmapscan": "off", "enable_hashjoin": "off", "enable_nestloop": "off",
        "enable_sort": "off", "enable_partition_pruning": "off", "plan_cache_mode": "force_custom_plan", "work_mem": "64kB", "jit_above_cost": "0",
        "random_page_cost": "1000", "join_collapse_limit": "1", "cursor_tuple_fraction": "1", "constraint_exclusion": "on",
        "default_statistics_target": "1", "gin_fuzzy_search_limit": "1", "parallel_setup_cost": "0", "parallel_tuple_cost": "0",
    },
    "generic plans": {"plan_cache_mode": "force_generic_plan", "enable_mergejoin": "off", "geqo_threshold": "2", "enable_memoize": "off"},
    "storage": {
        "default_table_access_method": "heap", "default_tablespace": "pg_default", "temp_tablespaces": "pg_default", "synchronous_commit": "off",
        "check_function_bodies": "off", "maintenance_work_mem": "1MB", "default_toast_compression": "pglz", "vacuum_cost_delay": "10",
    },
}  # fmt: skip
LEVELS = {"database": "database {0}", "role": "role postgres in database {0}"}
WORDS = "question of the lighthouse keeper's lamp, r2d2 v2.3.1"
ANSWERS = """
select document_id, content, title, round(similarity_score::numeric, 4), round(text_rank::numeric, 4), round(hybrid_score::numeric, 4), snippet
  from rag.search_documents(%s, mode => %s, highlight => true, min_score => 0)
"""
NOTE = "Note %s of the lighthouse keeper''s lamp: v2.3.%s, " + "oil " * 40


def answers(db):
    return [rows(db, ANSWERS, WORDS, mode) for mode in ("hybrid", "semantic", "text")]


@pytest.fixture
def notes(db):
    db.execute(
        """create table notes (id integer primary key, body text, title text, amount float8, day date, at timestamptz, raw bytea,
                               took interval)"""
    )
    db.execute(
        """select rag.attach_source('notes', content_column => 'body', title_column => 'title',
                                    metadata_columns => '{amount,day,at,raw,took}')"""
    )
    insert(db, range(1, 7))
    db.execute("call rag.drain()")
    return db


def insert(db, numbers):
    for number in numbers:
        db.execute(
            f"""insert into public.notes values ({number}, '{NOTE % (number, number)}', 'On lamps', 1.0/{number}, '2024-02-{number:02}',
                                                 '2024-02-03 04:05:06+00', '\\x0102'::bytea, '1 day 2 hours')"""
            if value(db, "select current_setting('standard_conforming_strings')") == "on"
            else f"""insert into public.notes values ({number}, '{NOTE % (number, number)}', 'On lamps', 1.0/{number}, '2024-02-{number:02}',
                                                 '2024-02-03 04:05:06+00', decode('0102', 'hex'), '1 day 2 hours')"""
        )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("group", SETTINGS)
def test_documents_are_taken_in_and_found(cluster, notes, connect, database, group, level):
    known = {name for (name,) in rows(notes, "select lower(name) from pg_settings")}
    with cluster.connect("postgres") as admin:
        for name, setting in SETTINGS[group].items():
            if name in known:
                whom = LEVELS[level].format(database)
                admin.execute(f"alter {whom} set {name} = '{setting}'")

    application, worker = connect(), connect()
    # What a read-only application cannot do, and what takes longer than it would wait, is not asked of it.
    application.execute("set default_transaction_read_only = off")
    for timeout in ("statement_timeout", "lock_timeout"):
        application.execute(f"set {timeout} = 0")
    insert(application, range(7, 10))
    application.execute("update public.notes set body = body || ' again' where id = 1")
    application.execute("delete from public.notes where id = 2")
    before = rows(worker, "select name, setting from pg_settings where source in ('database', 'user', 'database user')")  # fmt: skip

    worker.execute("call rag.drain(run_for => '2 s')")
    worker.execute("call rag.maintain()")

    after = {name: rows(worker, "select setting from pg_settings where name = %s", name) for name, _ in before}  # fmt: skip
    assert after == {name: [(setting,)] for name, setting in before}
    here = answers(application)
    with cluster.connect("postgres") as admin:
        admin.execute(f"alter {LEVELS[level].format(database)} reset all")
    plain = connect()
    assert rows(plain, "select * from rag.check_consistency()") == []
    assert rows(plain, "select document_id, status from rag.documents order by 1") == [
        (number, "completed") for number in (1, 3, 4, 5, 6, 7, 8, 9)
    ]
    assert answers(plain) == here and len(here[0]) >= 8
    # As if each row had been taken in by a session without settings.
    kept = "select document_id, metadata, title from rag.documents order by 1"
    found = rows(plain, kept)
    plain.execute("select rag.enqueue_existing('notes')")
    plain.execute("call rag.drain()")
    assert rows(plain, kept) == found
    weights = "select document_id, content_bm25::text, content_tsv::text from rag.document_chunks order by 1, chunk_index"
    stored = rows(plain, weights)
    plain.execute("select rag.reembed()")
    plain.execute("call rag.drain()")
    assert rows(plain, weights) == stored


def test_a_timeout_that_the_session_itself_has_set_ends_its_call(notes, connect):
    session = connect()
    session.execute("set statement_timeout = '300ms'")
    with pytest.raises(Exception, match="statement timeout"):
        session.execute("call rag.drain(run_for => '10 s')")
    assert value(session, "show statement_timeout") == "300ms"

"""A tenant never sees another's text."""

from __future__ import annotations

import psycopg
import pytest
from helpers import rows, value

ROLE = "ragstone_tenant_reader"
BOUND = "ragstone_tenant_2"


@pytest.fixture
def tenants(db, drain, cluster, database):
    """Ten documents of tenant 1, ten of tenant 2, two of nobody; one failed job of each tenant."""
    for role in (ROLE, BOUND):
        db.execute(
            f"do $$ begin create role {role} login; exception when duplicate_object or unique_violation then null; end $$"
        )
    db.execute("create table papers (id integer primary key, body text, tenant integer)")
    db.execute(
        "select rag.attach_source('papers', content_column => 'body', tenant_column => 'tenant')"
    )
    db.execute(
        "insert into papers select n, 'honey of tenant ' || t || ', number ' || n, t from generate_series(1, 20) n, lateral (select 1 + n % 2) t (t)"
    )
    db.execute(
        "insert into papers values (21, 'honey of nobody', null), (22, 'honey of nobody', null)"
    )
    drain()
    db.execute("insert into papers values (101, null, 1), (102, null, 2)")
    drain()
    assert rows(db, "select count(*) from rag.document_chunks") == [(22,)]
    for role in (ROLE, BOUND):
        db.execute("select rag.grant_usage(%s, level => 'search')", [role])
        db.execute(
            f"grant select on rag.ingestion_log, rag.documents, rag.ingestion_queue, rag._changes, rag.job_history, rag.document_versions, rag.document_chunks_1 to {role}"
        )
    db.execute("select rag.enable_tenant_isolation()")
    sessions = []

    def login(role, tenant=None):
        sessions.append(
            psycopg.connect(
                host=cluster.host, port=cluster.port, user=role, dbname=database, autocommit=True
            )
        )
        if tenant is not None:
            sessions[-1].execute(f"set ragstone.tenant_id = {tenant}")
        return sessions[-1]

    yield login
    for session in sessions:
        session.close()
    for role in (ROLE, BOUND):
        db.execute(f"drop owned by {role}")


def seen(session, query="select content from rag.search_documents('honey', match_count => 100)"):
    """Of which tenants a session sees text."""
    return {content.split(",")[0] for (content,) in rows(session, query)}


@pytest.mark.parametrize(
    "arguments",
    ["", ", mode => 'text'", ", mode => 'semantic'", ", tenant_filter => 2", ", document_filter => array[1, 2, 3, 21]", ", context_chunks => 2",
     ", source => 'papers'", ", semantic_weight => 0.5, fusion => 'rrf'", ", max_per_document => 1"],
)  # fmt: skip
@pytest.mark.parametrize(
    "form",
    [
        "'honey'",
        "'\"honey\" -wax'",
        "(select rag._embed_query('honey', 'all-MiniLM-L6-v2')), 'honey'",
    ],
)
def test_a_search_finds_only_what_is_the_tenants(tenants, form, arguments):
    first = tenants(ROLE, 1)
    found = seen(first, f"select content from rag.search_documents({form}{arguments})")
    assert found <= {"honey of tenant 1"} and (found or "tenant_filter" in arguments)


def test_a_search_finds_as_many_as_there_are(tenants):
    assert (
        value(
            tenants(ROLE, 2),
            "select count(*) from rag.search_documents('honey', match_count => 100)",
        )
        == 10
    )
    assert (
        value(
            tenants(ROLE, 2), "select count(*) from rag.find_documents('honey', match_count => 100)"
        )
        == 10
    )


def test_without_a_tenant_nothing_is_seen(tenants):
    assert seen(tenants(ROLE)) == set()
    assert seen(tenants(ROLE), "select content from rag.document_chunks") == set()


@pytest.mark.parametrize(
    ("relation", "count"),
    [("rag.documents", 11), ("rag.document_chunks", 10), ("rag.document_chunks_1", 10), ("rag.document_versions", None), ("rag.ingestion_queue", 1),
     ("rag.job_history", 10), ("rag.ingestion_log", 11), ("rag._changes", 0)],
)  # fmt: skip
def test_every_table_and_view_shows_only_the_tenants_rows(tenants, db, relation, count):
    first, second = (value(tenants(ROLE, t), f"select count(*) from {relation}") for t in (1, 2))
    assert first == second and (count is None or first == count)


def test_a_setting_that_is_no_tenant_is_an_error_and_no_key(tenants):
    session = tenants(ROLE)
    for wrong in ("'1 or 1=1'", "'*'", "'9223372036854775808'", "'1.5'", "'1e3'"):
        session.execute(f"set ragstone.tenant_id = {wrong}")
        with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
            seen(session)
        assert "set ragstone.tenant_id = 42" in caught.value.diag.message_hint


def test_a_function_with_side_effects_in_a_filter_is_not_shown_another_tenants_rows(tenants, db):
    db.execute(f"create schema hostile authorization {ROLE}")
    session = tenants(ROLE, 1)
    session.execute(
        "create function hostile.leak(text) returns boolean language plpgsql cost 0.0001 as $$ begin raise notice 'saw %', $1; return true; end $$"
    )
    notices = []
    session.add_notice_handler(lambda n: notices.append(n.message_primary))
    for relation in (
        "rag.document_chunks",
        "rag.document_chunks_1",
        "rag.search_documents('honey', match_count => 50)",
    ):
        session.execute(f"select from {relation} where hostile.leak(content)")
    session.execute(
        "select from rag.documents where hostile.leak(source_key::text || file_path) or hostile.leak(metadata::text)"
    )
    assert any("tenant 1" in n for n in notices) and not any(
        "tenant 2" in n or "nobody" in n for n in notices
    )


@pytest.mark.parametrize("statement", ["update rag.document_chunks set content = ''", "delete from rag.documents", "insert into rag._tenant_roles values ('x', 1)",
                                       "select from rag._tenant_roles", "select from rag._lexemes", "select from rag._background",
                                       "select rag.set_tenant_role('postgres', 1)", "select rag.disable_tenant_isolation()"])  # fmt: skip
def test_a_tenant_cannot_change_what_keeps_it_apart(tenants, statement):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        tenants(ROLE, 1).execute(statement)


def test_a_prepared_statement_follows_the_tenant_of_a_pooled_connection(tenants):
    session = tenants(ROLE)
    session.execute(
        "prepare ask as select content from rag.search_documents('honey', match_count => 100)"
    )
    session.execute("prepare look as select content from rag.document_chunks")
    for _ in range(8):
        for tenant in (1, 2):
            with session.transaction():
                session.execute(f"set local ragstone.tenant_id = {tenant}")
                assert seen(session, "execute ask") == {f"honey of tenant {tenant}"}
                assert seen(session, "execute look") == {f"honey of tenant {tenant}"}
        assert seen(session, "execute ask") == set()


def test_a_role_that_belongs_to_a_tenant_cannot_choose_another(tenants, db):
    db.execute("select rag.set_tenant_role(%s, 2)", [BOUND])
    session = tenants(BOUND, 1)
    assert seen(session) == {"honey of tenant 2"}
    session.execute("set role none")
    assert seen(session) == {"honey of tenant 2"}
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(f"set session authorization {ROLE}")


def test_a_pipeline_made_later_is_covered(tenants, db):
    db.execute("insert into rag.pipelines (name, model) values ('second', 'all-MiniLM-L6-v2')")
    db.execute("select rag._ensure_partition(pipeline_id) from rag.pipelines where name = 'second'")
    assert (
        value(
            db,
            "select count(*) from pg_class where relname like 'document_chunks_%' and relkind = 'r' and not relrowsecurity",
        )
        == 0
    )


def test_isolation_can_be_taken_back(tenants, db):
    db.execute("select rag.disable_tenant_isolation()")
    assert seen(tenants(ROLE)) == {"honey of tenant 1", "honey of tenant 2", "honey of nobody"}


def test_workers_and_owners_are_not_kept_from_anything(tenants, db, drain):
    db.execute("insert into papers values (200, 'wax of tenant 1', 1)")
    drain()
    assert value(db, "select document_id from rag.search_documents('wax', match_count => 1)") == 200


def test_row_security_lets_the_text_leg_use_its_index(tenants, db):
    """Not so with the core's @@, which is not leakproof: all chunks of the tenant would be unpacked."""
    db.execute(
        """insert into rag.document_chunks (pipeline_id, source_id, document_id, chunk_index, content, char_count, token_count,
                                            content_tsv, content_bm25, embedding, content_hash, tenant_id)
           select 1, 1, 1000 + n, 0, 'filler', 6, 3, to_tsvector('simple', 'filler' || n),
                  rag._bm25_weights(to_tsvector('simple', 'filler' || n), 'simple', 40), c.embedding, '', 2
           from generate_series(1, 2000) n, (select embedding from rag.document_chunks limit 1) c"""
    )
    db.execute("analyze rag.document_chunks")
    db.execute("load 'auto_explain'")
    plans = []
    db.add_notice_handler(lambda n: plans.append(n.message_primary))
    db.execute(
        "set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on; set client_min_messages = log"
    )
    db.execute(f"set ragstone.tenant_id = 2; set session authorization {ROLE}")
    candidates = "select rag._text_candidates('rag.document_chunks c where c.pipeline_id = 1', rag._query_weights(rag._query_lexemes(rag._parsed_question('filler7', p), p)), '{filler7}', null, null, 10) from rag.pipelines p where p.state = 'active'"
    assert len(value(db, candidates)) == 1
    db.execute("reset session authorization")
    plan = "\n".join(plans)
    assert "Bitmap Index Scan on document_chunks_1_content_tsv_idx" in plan, plan
    assert "tenant_id = " in plan, plan


def test_a_tenants_role_keeps_its_tenant_when_a_superuser_analyzes_its_table(tenants, db):
    """Then session_user is the superuser's, and the code of an index runs as the table's owner."""
    db.execute(f"create schema loot authorization {BOUND}")
    db.execute("select rag.set_tenant_role(%s, 2)", [BOUND])
    bound = tenants(BOUND)
    bound.execute("create table loot.found (content text)")
    bound.execute(
        """create function loot.take() returns void language plpgsql as $$ begin
             perform set_config('ragstone.tenant_id', '1', true);
             insert into loot.found select content from rag.document_chunks; end $$;
           create function loot.steal(integer) returns integer language plpgsql immutable as $$ begin
             perform loot.take(); return $1; end $$"""
    )
    bound.execute("create table loot.bait (id integer)")
    bound.execute("create index on loot.bait (loot.steal(id))")
    bound.execute("insert into loot.bait select generate_series(1, 10)")
    bound.execute("truncate loot.found")
    db.execute("analyze loot.bait")
    assert seen(bound, "select content from loot.found") == {"honey of tenant 2"}
    db.execute("drop schema loot cascade")


def test_a_session_that_acts_as_a_tenants_role_is_that_tenants(tenants, db):
    db.execute("select rag.set_tenant_role(%s, 2)", [BOUND])
    db.execute(f"grant {BOUND} to {ROLE}")
    pooled = tenants(ROLE, 1)
    pooled.execute(f"set role {BOUND}")
    assert seen(pooled) == {"honey of tenant 2"}
    pooled.execute("reset role")
    assert seen(pooled) == {"honey of tenant 1"}
    db.execute("select rag.set_tenant_role(%s, 3)", [ROLE])
    pooled.execute(f"set role {BOUND}")
    assert seen(pooled) == set(), "two tenants are none"
    db.execute("select rag.set_tenant_role(%s, null)", [ROLE])
    db.execute("select rag.set_tenant_role(%s, null)", [BOUND])


def test_a_large_table_can_be_read_in_parallel(tenants, db):
    first = tenants(ROLE, 1)
    for setting in ("min_parallel_table_scan_size", "parallel_setup_cost", "parallel_tuple_cost"):
        first.execute(f"set {setting} = 0")
    for setting in ("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"):
        first.execute(f"set {setting} = off")
    db.execute("alter table rag.document_chunks_1 set (parallel_workers = 2)")
    plan = rows(first, "explain select count(*) from rag.document_chunks_1")
    assert any("Parallel" in line for (line,) in plan), plan
    assert value(first, "select count(*) from rag.document_chunks_1") == 10
    assert seen(first) == {"honey of tenant 1"}


PHRASE = """explain (analyze, costs off, timing off) select from rag.document_chunks where pipeline_id = 1
            and content_tsv operator(rag.@@) phraseto_tsquery('english', 'honey of tenant 1, number 2')"""


def test_without_the_mark_no_phrase_of_another_tenant_can_be_guessed(tenants, db):
    second = tenants(ROLE, 2)
    for setting in ("set enable_seqscan = off", "set random_page_cost = 0"):
        second.execute(setting)
    db.execute("alter function rag._matches(tsvector, tsquery) not leakproof")
    plan = [line for (line,) in rows(second, PHRASE)]
    known = [line for (line,) in rows(second, PHRASE.replace("1, number 2", "2, number 3"))]
    guessed = [line for (line,) in rows(second, PHRASE.replace("number 2", "number 999"))]
    counts = [[line for line in p if "rows" in line.lower()] for p in (plan, guessed, known)]
    assert counts[0] == counts[1] != counts[2]
    assert not any("content_tsv_idx" in line for line in plan)
    assert seen(second) == {"honey of tenant 2"}

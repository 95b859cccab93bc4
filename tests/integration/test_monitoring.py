"""What rag.status, rag.progress, rag.failures, rag.metrics() and the log say is what happened."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from helpers import rows, value
from prometheus_client.parser import text_string_to_metric_families

from ragstone.worker.meter import BOUNDS_S

DASHBOARD = Path(__file__).resolve().parents[2] / "examples" / "grafana" / "ragstone.json"


def samples(db):
    """Samples by name and labels, through Prometheus' own parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(value(db, "select rag.metrics()"))
        for sample in family.samples
    }


@pytest.fixture
def processed(db, add, drain):
    """Two good documents, one of them processed twice, a damaged one, and one that waits."""
    add(1, "Some text to be found.")
    add(2, "Another text to be found.")
    add(3, b"%PDF-1.7 damaged", name="3.pdf")
    drain()
    db.execute("""select rag.enqueue_existing('"TblDocumentFiles"')""")
    drain()
    add(4, "It waits.")


def test_status_is_one_row_that_says_how_it_goes(db, processed):
    status = dict(db.execute("select to_jsonb(s) from rag.status s").fetchone()[0])
    assert (status["documents"], status["chunks"], status["waiting"], status["running"]) == (
        4,
        2,
        1,
        0,
    )
    assert status["dead"] == 1 and status["last_error"] == value(
        db, "select last_error from rag.ingestion_log where document_id = 3"
    )
    assert status["workers"] == 0 and status["pipeline"] == "default"
    assert (
        status["documents_per_minute"] > 0
        and status["tokens_per_s"] is not None
        and status["oldest_wait"]
    )


def test_progress_is_by_source_and_pipeline(db, processed):
    assert rows(db, "select * from rag.progress") == [
        ("TblDocumentFiles", "default", 4, 2, 1, 0, 1, 50)
    ]


def test_failures_are_those_that_are_over_and_those_that_are_tried_again(
    db, add, drain, document_root
):
    add(1, b"%PDF-1.7 damaged", name="1.pdf")
    add(2, "Text.")
    (document_root / "2.txt").unlink()
    drain()
    found = rows(
        db,
        "select document_id, stage, error_code, attempts, next_try is null, hint is not null from rag.failures order by 1",
    )
    assert found[0] == (1, "extract", "damaged", 1, True, True)
    assert [row[0] for row in found] == [1, 2]


def test_views_fit_into_120_columns(db, processed):
    for view in ("progress", "worker_activity", "pipeline_progress"):
        cursor = db.execute(f"select * from rag.{view}")
        width = sum(3 + max([len(c.name), *(len(str(r[i] if r[i] is not None else "")) for r in cursor_rows)])
                    for cursor_rows in [cursor.fetchall()] for i, c in enumerate(cursor.description))  # fmt: skip
        assert width <= 120, view


def test_metrics_are_what_prometheus_reads(db, processed):
    found = samples(db)
    assert found["ragstone_jobs_total", (("outcome", "done"),)] == 2
    assert found["ragstone_jobs_total", (("outcome", "unchanged"),)] == 2
    assert found["ragstone_jobs_total", (("outcome", "dead"),)] >= 1
    assert found["ragstone_chunks_total", ()] == 2
    assert found["ragstone_tokens_total", ()] == value(
        db, "select sum(tokens) from rag.document_versions"
    )
    assert found["ragstone_jobs", (("state", "waiting"),)] == 1
    assert found["ragstone_jobs", (("state", "dead"),)] == 1
    assert found["ragstone_documents", ()] == 4
    assert 0 < found["ragstone_oldest_job_age_seconds", ()] < 600


def test_a_file_that_is_missing_for_hours_does_not_pass_for_want_of_workers(
    db, add, drain, document_root
):
    add(1, "Text.")
    (document_root / "1.txt").unlink()
    drain()
    db.execute("update rag.ingestion_queue set created_at = created_at - interval '5 hours'")
    assert rows(db, "select retrying, oldest_wait from rag.status") == [(1, None)]
    assert samples(db)["ragstone_oldest_job_age_seconds", ()] == 0
    # Tried anew by hand, it waits from then on.
    db.execute("select rag.retry()")
    assert value(db, "select oldest_wait < interval '1 minute' from rag.status")


def test_stages_are_whole_histograms(db, processed):
    found = samples(db)
    for stage in ("read", "extract", "embed", "store"):
        buckets = [
            found["ragstone_stage_duration_seconds_bucket", (("le", bound), ("stage", stage))]
            for bound in [*(f"{b:g}" for b in BOUNDS_S), "+Inf"]
        ]
        assert buckets == sorted(buckets)
        assert (
            buckets[-1] == found["ragstone_stage_duration_seconds_count", (("stage", stage),)] > 0
        )
        assert found["ragstone_stage_duration_seconds_sum", (("stage", stage),)] > 0


def test_bounds_are_the_same_on_both_sides(db):
    assert tuple(value(db, "select rag._metric_bounds_s()")) == BOUNDS_S


def test_counters_outlive_their_workers_however_these_end(db, add, drain):
    add(1, "One.")
    drain()
    db.execute("insert into rag.workers (worker_id, pid, chunks, tokens) values (77, 1, 5, 50)")
    db.execute("""select rag._count(77, '[{"metric": "jobs", "label": "done", "count": 5}]')""")
    before = samples(db)
    assert before["ragstone_jobs_total", (("outcome", "done"),)] == 6
    db.execute("select rag._free_jobs_of_dead_workers()")
    assert rows(db, "select from rag.workers") == []
    after = samples(db)
    assert {k: v for k, v in after.items() if k[0].endswith("_total")} == {
        k: v for k, v in before.items() if k[0].endswith("_total")
    }


def test_searches_are_counted_where_the_server_tracks_functions(db, processed):
    db.execute("set track_functions = 'pl'")
    db.execute("select from rag.search_documents('text')")
    db.execute("select pg_stat_force_next_flush()")
    db.execute("select 1")
    found = samples(db)
    assert found["ragstone_searches_total", (("function", "search_documents"),)] == 1
    assert found["ragstone_search_seconds_total", (("function", "search_documents"),)] > 0


def test_status_and_metrics_read_no_large_table(db, table):
    """With documents and jobs beyond what is counted, both still answer from estimates."""
    db.execute(
        "insert into rag.documents (source_id, document_id, source_key) select 1, n, n::text from generate_series(1, 300000) n"
    )
    db.execute(
        "insert into rag.ingestion_queue (source_id, document_id, pipeline_id) select 1, n, 1 from generate_series(1, 300000) n"
    )
    db.execute("analyze rag.documents, rag.ingestion_queue")
    for call in ("select * from rag.status", "select rag.metrics()"):
        db.execute("begin")
        db.execute(call)
        read = value(
            db,
            "select sum(seq_tup_read + idx_tup_fetch) from pg_stat_xact_all_tables where schemaname = 'rag'",
        )
        db.execute("rollback")
        assert read < 100_000, call
    ((documents, waiting),) = rows(db, "select documents, waiting from rag.status")
    assert abs(documents - 300_000) < 3_000 and abs(waiting - 300_000) < 3_000


def test_lines_in_the_log_are_off_until_asked_for(db, add, drain, cluster, database):
    add(1, "Quiet.")
    drain()
    db.execute("select rag.set('log_min_duration_ms', '0')")
    add(2, "Loud.")
    add(3, b"%PDF-1.7 damaged", name="3.pdf")
    drain()
    lines = [
        line.partition("ragstone: ")[2]
        for line in cluster.log.splitlines()
        if f"@{database} " in line and "LOG:  ragstone: " in line
    ]
    assert len(lines) == 2
    good, bad = (
        dict(pair.split("=") for pair in line.split())
        for line in sorted(lines, key=lambda text: "error=" in text)
    )
    assert good["document"] == "2" and good["outcome"] == "done" and good["chunks"] == "1"
    assert {"read_ms", "extract_ms", "embed_ms", "store_ms"} <= good.keys()
    assert (
        bad["document"] == "3"
        and bad["outcome"] == "dead"
        and bad["stage"] == "extract"
        and bad["error"] == "damaged"
    )


def test_only_slow_documents_are_logged_above_a_threshold(db, add, drain, cluster, database):
    db.execute("select rag.set('log_min_duration_ms', '100000')")
    add(1, "Fast.")
    drain()
    assert [
        line
        for line in cluster.log.splitlines()
        if f"@{database} " in line and "ragstone: job" in line
    ] == []


def test_ends_of_jobs_are_notified_where_that_is_on(db, connect, add, drain):
    listener = connect()
    listener.execute("listen document_status")
    add(1, "Silent.")
    drain()
    db.execute("select rag.set('status_notifications', 'on')")
    add(2, "Told.")
    add(3, b"%PDF-1.7 damaged", name="3.pdf")
    drain()
    told = [json.loads(n.payload) for n in listener.notifies(timeout=2, stop_after=2)]
    assert sorted((t["document_id"], t["status"]) for t in told) == [(2, "done"), (3, "dead")]


# What Grafana's PostgreSQL data source puts in place of its macros.
MACROS = {
    r"\$__timeGroupAlias\(([^,]+), \$__interval\)": r'floor(extract(epoch from \1) / 60) * 60 as "time"',
    r"\$__timeFilter\(([^)]+)\)": r"\1 between now() - interval '6 hours' and now()",
}


def test_every_query_of_the_dashboard_answers_a_role_that_may_operate(db, connect, processed):
    role = f"ragstone_grafana_{os.getpid()}"
    db.execute(f"create role {role}")
    try:
        db.execute("select rag.grant_usage(%s, level => 'operate')", [role])
        session = connect()
        session.execute(f"set role {role}")
        panels = json.loads(DASHBOARD.read_text())["panels"]
        for panel in panels:
            for target in panel["targets"]:
                query = target["rawSql"]
                for macro, sql in MACROS.items():
                    query = re.sub(macro, sql, query)
                assert "$" not in query
                found = session.execute(query)
                assert found.description, panel["title"]
                if panel["type"] == "timeseries":
                    assert found.description[0].name == "time"
                    assert found.rowcount > 0, panel["title"]
        assert len(panels) > 10
    finally:
        db.execute(f"drop owned by {role}")
        db.execute(f"drop role {role}")

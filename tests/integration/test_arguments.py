"""Arguments that make no sense are answered in the caller's terms, never in Python's."""

from __future__ import annotations

import psycopg
import pytest
from helpers import rows, value

# PL/Python's and PL/pgSQL's own words for a mistake of ours, beside internal errors.
OURS = {"38000", "39000", "XX000", "P0004", "42883", "0A000"}


def public_calls(db):
    """Every public function and procedure of scalar arguments, with the types of these."""
    return rows(
        db,
        """select p.oid::regproc::text, p.prokind::text, p.proargtypes::regtype[]::text[]
             from pg_proc p join pg_namespace n on n.oid = p.pronamespace
            where n.nspname = 'rag' and p.proname !~ '^_' and p.pronargs > 0
              and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
            order by 1, 3""",
    )


def outcome(db, name, kind, arguments):
    """The SQLSTATE of a call, None where it succeeds."""
    call = f"call {name}({arguments})" if kind == "p" else f"select * from {name}({arguments})"
    try:
        db.execute(call)
    except psycopg.Error as error:
        return error.sqlstate, str(error).splitlines()[0]
    return None


@pytest.mark.parametrize("given", ["null", "-1"])
def test_no_argument_ends_in_a_fault_of_ours(db, given):
    """Null for all arguments, then -1 for those that are numbers or times."""
    found = {}
    for name, kind, types in public_calls(db):
        one = {"interval": "'-1 s'::interval"} | dict.fromkeys(
            ("integer", "bigint", "smallint", "real", "double precision"), "-1"
        )
        values = [f"{'null' if given == 'null' else one.get(t, 'null')}::{t}" for t in types]
        ended = outcome(db, name, kind, ", ".join(values))
        if ended and ended[0] in OURS:
            found[name, tuple(types)] = ended
    assert found == {}


@pytest.mark.parametrize(
    "arguments",
    ["run_for => null", "run_for => '-1 s'", "max_documents => -1", "null, null"],
)
def test_drain_says_which_argument_makes_no_sense(db, arguments):
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        db.execute(f"call rag.drain({arguments})")
    assert any(word in caught.value.diag.message_primary for word in ("null", "-1", "-00:00:01"))
    assert "rag.drain" in caught.value.diag.message_hint or "Null" in caught.value.diag.message_hint
    assert held_locks(db) == 0


def test_drain_of_no_documents_and_of_all_of_them(db, add):
    add(1, "text")
    db.execute("call rag.drain(max_documents => 0)")
    assert value(db, "select count(*) from rag.ingestion_queue") == 1
    db.execute("call rag.drain(max_documents => null)")
    assert value(db, "select count(*) from rag.ingestion_queue") == 0


def held_locks(db):
    return value(
        db,
        "select count(*) from pg_locks where locktype = 'advisory' and classid = rag._lock_class()::oid"
        " and pid = pg_backend_pid()",
    )


def test_a_drain_that_is_refused_in_a_transaction_leaves_no_lock(db):
    """Its session would count as a worker until it ends, and jobs of dead ones stay with it."""
    with pytest.raises(psycopg.errors.ActiveSqlTransaction) as caught, db.transaction():
        db.execute("call rag.drain()")
    assert caught.value.diag.message_hint
    assert held_locks(db) == 0
    assert value(db, "select count(*) from rag.workers") == 0

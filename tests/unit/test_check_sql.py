"""What lint finds in SQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import check_sql

HEAD = "create or replace function rag.f() returns integer language sql"


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        (f"{HEAD} security definer as $$ select 1 $$;", "PS003"),
        (f"{HEAD} security definer set search_path = public as $$ select 1 $$;", "PS004"),
        (f"{HEAD} as $$ select 1 $$;", "PS005"),
        (f"{HEAD} set search_path = public as $$ select 1 $$;", "PS00"),
        (f"{HEAD} set search_path = pg_catalog, pg_temp as $$ select 1 $$;", None),
    ],
)
def test_functions_without_a_pinned_search_path_are_found(
    sql: str, code: str | None, tmp_path: Path
):
    (tmp_path / "source").mkdir()
    source = tmp_path / "source" / "x.sql"
    source.write_text(sql)
    said = check_sql.check(source, tmp_path)
    assert said is None if code is None else code in said

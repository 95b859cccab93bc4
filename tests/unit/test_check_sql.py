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


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("-- " + "x" * 137, None),
        ("-- " + "x" * 138, "line 1 has 141 characters"),
        (f"{HEAD}\nas $sql$\n" + "\n" * 117 + "$sql$;\n", None),
        (f"{HEAD}\nas $sql$\n" + "\n" * 118 + "$sql$;\n", "rag.f has 121 lines"),
        (f"{HEAD}\nas $sql$ select 1 $sql$;\n" + "\n" * 120 + f"{HEAD}\n  return 1;\n", None),
    ],
)
def test_lines_and_functions_stay_short_enough_to_read(sql: str, found: str | None, tmp_path: Path):
    source = tmp_path / "x.sql"
    source.write_text(sql)
    said = "; ".join(check_sql.form(source))
    assert not said if found is None else found in said


def test_no_two_files_of_sql_have_one_number(tmp_path: Path):
    names = [tmp_path / name for name in ("10_a.sql", "12_b.sql", "12_c.sql")]
    assert list(check_sql.shared_numbers(names)) == ["number 12 is shared by 12_b.sql, 12_c.sql"]


def test_the_functions_of_sql_are_all_seen():
    """Otherwise lint would accept a long one that it does not see."""
    for source in sorted((check_sql.ROOT / "sql").glob("*.sql")):
        text = source.read_text()
        assert len(list(check_sql.functions(text))) == len(check_sql.FUNCTION.findall(text)), (
            source.name
        )

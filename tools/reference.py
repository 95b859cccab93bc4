"""docs/reference.md, from the comments in the catalog of a database that has the extension."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference.md"
# In the order in which they are needed; each function is described under the file that defines it.
TOPICS = {
    "76_search": "Searching",
    "46_sources": "Tables as sources",
    "48_uploads": "Documents without a table",
    "63_drain.extension": "Workers",
    "62_workers": "Workers",
    "56_jobs": "Jobs",
    "57_versions": "Versions",
    "32_pipelines": "Pipelines",
    "36_ocr": "Pictures of text",
    "34_vector_indexes": "Vector indexes",
    "20_models": "Models",
    "22_query_cache": "Models",
    "38_preview.extension": "Trying out",
    "10_settings": "Settings",
    "87_check": "Health",
    "82_status": "Monitoring",
    "84_metrics": "Monitoring",
    "58_consistency": "Consistency",
    "65_maintain.extension": "Maintenance",
    "78_evaluation": "Measuring searches",
    "80_tenants": "Tenants",
    "88_grants": "Privileges",
}
DEFINED = re.compile(r"create or replace (?:function|procedure|view) rag\.(\w+)")
PREAMBLE = """\
# Reference

Every function, view, table and setting. Written by `make reference` from the comments in the database;
do not edit. Level says who may: see [security.md](security.md). Errors are named by their SQLSTATE."""

ROUTINES = """
  select p.proname as name, p.prokind = 'p' as is_procedure, p.proargnames as names, p.proargmodes::text[] as modes, p.pronargs as inputs,
         array(select pg_catalog.format_type(t, null) from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality u (t, i) order by i) as types,
         array(select pg_catalog.pg_get_function_arg_default(p.oid, i) from generate_series(1, p.pronargs) i) as defaults,
         pg_catalog.pg_get_function_result(p.oid) as result,
         pg_catalog.obj_description(p.oid, 'pg_proc') as comment,
         array(select distinct l.level from rag._privileges() l where l.kind = 'routine' and l.object = p.proname) as levels
    from pg_catalog.pg_proc p
   where p.pronamespace = 'rag'::regnamespace and p.proname !~ '^_' and p.prorettype <> 'trigger'::regtype
   order by p.proname collate "C", p.pronargs desc, p.oid::regprocedure::text collate "C"
"""
RELATIONS = """
  select c.relname as name, c.relkind::text as kind,
         coalesce(pg_catalog.obj_description(c.oid, 'pg_class'), pg_catalog.obj_description(c.reltype, 'pg_type')) as comment,
         array(select array[a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), coalesce(pg_catalog.col_description(c.oid, a.attnum), '')]
                 from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) as columns,
         array(select distinct l.level from rag._privileges() l where l.kind = 'table' and l.object = c.relname and l.privilege = 'select') as levels
    from pg_catalog.pg_class c
   where c.relnamespace = 'rag'::regnamespace and c.relname !~ '^_' and c.relkind in ('r', 'p', 'v', 'c') and not c.relispartition
   order by c.relname collate "C"
"""
SETTINGS = """
  select d.name, coalesce(d.default_value, '') as value, coalesce(d.unit, '') as unit, d.per_tenant, d.description
    from rag._setting_definitions() d order by d.name collate "C"
"""
LEVELS = ("search", "ingest", "operate", "admin")


def topics() -> dict[str, str]:
    """The topic of each name that a file in sql/ defines."""
    found: dict[str, str] = {}
    for stem, title in TOPICS.items():
        for name in DEFINED.findall((ROOT / "sql" / f"{stem}.sql").read_text()):
            found[name] = title
    return found


def rows(db: Any, sql: str) -> list[dict[str, Any]]:
    """The rows of a query, as dictionaries by column."""
    cursor = db.execute(sql)
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def sentence(text: str) -> str:
    """A comment as a sentence, fit for a Markdown table."""
    text = text.replace("|", "\\|")
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def plain(default: str) -> str:
    """A default without a cast to its own type."""
    return re.sub(r"^(NULL|'.*')::[a-z ]+(\[\])?$", lambda m: m[1].replace("NULL", "null"), default)


def granted(levels: list[str]) -> str:
    """The levels that have a privilege."""
    return ", ".join(level for level in LEVELS if level in levels) or "superuser"


def signature(routine: dict[str, Any]) -> Iterator[str]:
    """The lines that show how to call a function and what it returns."""
    modes = routine["modes"] or ["i"] * len(routine["types"])
    inputs = [
        f"{name} {kind}" + (f" default {plain(default)}" if default is not None else "")
        for name, kind, default in zip(
            routine["names"] or [""] * routine["inputs"],
            routine["types"],
            routine["defaults"],
            strict=False,
        )
    ]
    outputs = [
        f"{name} {kind}"
        for name, kind, mode in zip(routine["names"] or [], routine["types"], modes, strict=False)
        if mode in "to"
    ]
    opening = f"{'call ' * routine['is_procedure']}rag.{routine['name']}("
    if sum(map(len, inputs)) < 70:
        yield opening + ", ".join(inputs) + ")"
    else:
        yield opening
        yield from (f"  {text}," for text in inputs[:-1])
        yield f"  {inputs[-1]})"
    if outputs and routine["result"].startswith(("TABLE", "SETOF record")):
        yield "  → rows of (" + ", ".join(outputs) + ")"
    elif not routine["is_procedure"]:
        yield "  → " + routine["result"].replace("SETOF ", "rows of ")


def reference(db: Any) -> str:
    """The whole page."""
    parts = [PREAMBLE]
    where = topics()
    routines, relations = rows(db, ROUTINES), rows(db, RELATIONS)
    for title in dict.fromkeys(TOPICS.values()):
        own = [r for r in routines if where.get(r["name"]) == title]
        views = [r for r in relations if r["kind"] == "v" and where.get(r["name"]) == title]
        if own or views:
            parts.append(f"\n## {title}")
        for routine in own:
            parts.append(f"\n### {routine['name']}\n\n```text")
            parts.extend(signature(routine))
            parts.append(
                f"```\n\n{sentence(routine['comment'])} Level: {granted(routine['levels'])}."
            )
        parts.extend(relation(view) for view in views)
    lost = {r["name"] for r in routines} - where.keys()
    if lost:
        raise ValueError(f"defined in no file that TOPICS lists: {', '.join(sorted(lost))}")
    parts.append(
        "\n## Tables\n\nRead them as far as the level allows; they are written by functions alone."
    )
    parts.extend(relation(table) for table in relations if table["kind"] in "rp")
    parts.append("\n## Types\n\nWhat searches and previews return.")
    parts.extend(relation(kind) for kind in relations if kind["kind"] == "c")
    parts.append(
        "\n## Settings\n\nChanged with `rag.set(name, value)`; see [configuration.md](configuration.md).\n"
    )
    parts.append("| name | default | unit | each tenant | |\n|---|---|---|---|---|")
    for s in rows(db, SETTINGS):
        tenant = "yes" if s["per_tenant"] else ""
        default = f"`{s['value']}`" if s["value"] else ""
        parts.append(
            f"| `{s['name']}` | {default} | {s['unit']} | {tenant} | {sentence(s['description'])} |"
        )
    return "\n".join(parts) + "\n"


def relation(found: dict[str, Any]) -> str:
    """A view, table or type with its columns."""
    level = "" if found["kind"] == "c" else f" Level: {granted(found['levels'])}."
    lines = [f"\n### {found['name']}\n\n{sentence(found['comment'])}{level}\n"]
    lines += ["| column | type | |", "|---|---|---|"]
    for name, kind, comment in found["columns"]:
        lines.append(f"| `{name}` | {kind} | {sentence(comment) if comment else ''} |")
    return "\n".join(lines)

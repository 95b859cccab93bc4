"""JSON and JSON Lines: records as readable rows."""

from __future__ import annotations

import json
from typing import Any

from .cleaning import clean_text
from .encoding import decode
from .model import Collector, Extracted, Source
from .options import Limits

_MAX_LABEL = 80
_MAX_ROW = 400
# The innermost names say most, and a path of a thousand names would take quadratic time.
_MAX_DEPTH = 6


def extract(source: Source, limits: Limits) -> Extracted:
    """An object's plain values as `name: value` rows, under the path of names that leads to it.

    What is no JSON after all is plain text, and says so.
    """
    text, _ = decode(source.data)
    collector = Collector(limits)
    values, partial = _parsed(text)
    if values is None:
        for line in text.split("\n"):
            collector.add(line)
    else:
        for value in values:
            _walk(value, collector)
    first = values[0] if values and len(values) == 1 else None
    title = first.get("title") if isinstance(first, dict) else None
    return Extracted(
        blocks=tuple(collector.blocks),
        mime_type=source.mime_type,
        title=clean_text(title)[:200] if isinstance(title, str) else None,
        partial=partial,
    )


def _parsed(text: str) -> tuple[list[Any] | None, str | None]:
    """The values in the text, and what is missing; None if it is not JSON."""
    try:
        return [json.loads(text)], None
    except RecursionError:
        return None, "the JSON is nested too deeply and was read as plain text"
    except ValueError:
        pass
    values, broken = [], 0
    for line in filter(str.strip, text.split("\n")):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            broken += 1
    if not values or broken > 0.1 * len(values) + 1:
        return None, "it is not valid JSON and was read as plain text"
    return values, f"{broken} lines are not valid JSON" if broken else None


def _walk(root: Any, collector: Collector) -> None:
    """Depth first, without recursion. Each entry: a value, its path, its depth."""
    pending: list[tuple[Any, tuple[str, ...]]] = [(root, ())]
    before: tuple[str, ...] = ()
    while pending:
        value, path = pending.pop()
        _enter(collector, path)
        if path != before and path:
            collector.add(path[-1], kind="heading", level=len(path))
        before = path
        if isinstance(value, dict):
            plain, nested = [], []
            for name, item in value.items():
                (nested if _is_nested(item) else plain).append((name, item))
            _add_row(collector, plain)
            pending += [
                (item, (*path, _label(name))[-_MAX_DEPTH:]) for name, item in reversed(nested)
            ]
        elif isinstance(value, list):
            if all(not _is_nested(item) for item in value):
                for item in value:
                    collector.add(_plain(item), kind="list")
            else:
                pending += [(item, path) for item in reversed(value)]
        else:
            collector.add(_plain(value))


def _is_nested(value: Any) -> bool:
    if isinstance(value, list):
        return (
            not all(isinstance(v, str | int | float | bool | None) for v in value)
            or len(value) > 20
        )
    return isinstance(value, dict)


def _enter(collector: Collector, path: tuple[str, ...]) -> None:
    collector.leave()
    for level, name in enumerate(path, start=1):
        collector.enter(name, level)


def _label(name: object) -> str:
    return clean_text(str(name))[:_MAX_LABEL] or "?"


def _add_row(collector: Collector, items: list[tuple[str, Any]]) -> None:
    """Write short values side by side, as in the row of a table, and long ones as paragraphs."""
    row: list[str] = []
    for name, item in items:
        text = _plain(item)
        if not text:
            continue
        if len(text) <= _MAX_ROW:
            row.append(f"{_label(name)}: {text}")
        else:
            collector.add(" | ".join(row), kind="table")
            row = []
            collector.add(f"{_label(name)}: {text}")
    collector.add(" | ".join(row), kind="table")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(filter(None, map(_plain, value)))
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)

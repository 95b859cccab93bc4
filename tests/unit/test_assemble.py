"""The assembled SQL holds every part once, in order, with nothing left to fill in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import assemble

CARD = {"dimension": 384, "normalize": True, "model_sha256": "ab12"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for folder in ("extension", "migrations", "sql", "plpy_lib/ragstone"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "plpy_lib/ragstone/a.py").write_text("A = 1\n")
    set_version(tmp_path, "0.10.0")
    (tmp_path / "migrations/0.9.0.sql").write_text("create table rag.first ();\n")
    (tmp_path / "migrations/0.10.0.sql").write_text("create table rag.second ();\n")
    (tmp_path / "migrations/0.10.0.extension.sql").write_text("create operator class third;\n")
    (tmp_path / "sql/20_b.sql").write_text("select '@model_sha256@', @model_dimension@;\n")
    (tmp_path / "sql/10_a.sql").write_text("as $python$\n  @boot@\n  return 1\n$python$;\n")
    (tmp_path / "sql/README.md").write_text("@not_sql@\n")
    (tmp_path / "model.json").write_text(json.dumps(CARD))
    return tmp_path


def set_version(root: Path, version: str) -> None:
    (root / "extension/ragstone.control").write_text(
        f"default_version = '{version}'\nschema = 'rag'\nrelocatable = false\n"
    )


def build(root: Path) -> dict[str, str]:
    output = root / "build"
    assemble.build(assemble.Sources(root), root / "model.json", output)
    return {path.name: path.read_text() for path in output.iterdir()}


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_install_script_runs_migrations_by_version_then_definitions_by_name(repository: Path):
    script = build(repository)["ragstone--0.10.0.sql"]
    assert in_order(
        script, "\\quit", "rag.first", "rag.second", "class third", "10_a.sql", "20_b.sql"
    )


def test_script_can_not_be_fed_to_psql(repository: Path):
    script = build(repository)["ragstone--0.10.0.sql"]
    guard = next(line for line in script.splitlines() if not line.startswith("--"))
    assert guard.startswith("\\echo") and guard.endswith("\\quit")


def test_placeholders_are_filled_in(repository: Path):
    script = build(repository)["ragstone--0.10.0.sql"]
    assert "select 'ab12', 384;" in script


def test_boot_snippet_keeps_its_indentation_and_names_its_version(repository: Path):
    script = build(repository)["ragstone--0.10.0.sql"]
    assert '\n  import sys\n  if "ragstone 0.10.0" not in GD:\n      with open(' in script
    assert '\n  import ragstone; ragstone.require("0.10.0", plpy)\n  return 1' in script


def test_unknown_placeholder_is_named_with_file_and_line(repository: Path):
    (repository / "sql/30_c.sql").write_text("select 1;\nselect '@modle@';\n")
    with pytest.raises(assemble.AssembleError, match=r"sql/30_c\.sql:2: .*@modle@.*version"):
        build(repository)


@pytest.mark.parametrize("text", ["a @@ b", "a @> b and c <@ d", "'x@example.com'", "@extschema@"])
def test_operators_and_postgresql_s_own_placeholders_pass(repository: Path, text: str):
    (repository / "sql/30_c.sql").write_text(text)
    assert text in build(repository)["ragstone--0.10.0.sql"]


def test_update_script_has_only_later_migrations_and_all_definitions(repository: Path):
    set_version(repository, "0.9.0")
    later = [*repository.glob("migrations/0.10.0*")]
    texts = [path.read_text() for path in later]
    for path in later:
        path.unlink()
    released = build(repository)["ragstone--0.9.0.sql"]
    assemble.freeze(assemble.Sources(repository), repository / "model.json")
    for path, text in zip(later, texts, strict=True):
        path.write_text(text)
    set_version(repository, "0.10.0")
    scripts = build(repository)
    update = scripts["ragstone--0.9.0--0.10.0.sql"]
    assert "rag.first" not in update
    assert in_order(update, "alter extension ragstone update", "rag.second", "10_a.sql", "20_b.sql")
    assert scripts["ragstone--0.9.0.sql"] == released


def test_frozen_script_is_what_the_release_installed(repository: Path):
    released = build(repository)["ragstone--0.10.0.sql"]
    assemble.freeze(assemble.Sources(repository), repository / "model.json")
    set_version(repository, "0.11.0")
    (repository / "sql/20_b.sql").write_text("select 'changed since';\n")
    (repository / "model.json").write_text(json.dumps({**CARD, "dimension": 768}))
    assert build(repository)["ragstone--0.10.0.sql"] == released


def test_release_is_frozen_once(repository: Path):
    sources = assemble.Sources(repository)
    assemble.freeze(sources, repository / "model.json")
    with pytest.raises(assemble.AssembleError, match="raise default_version"):
        assemble.freeze(sources, repository / "model.json")


def test_migration_of_a_later_version_is_refused(repository: Path):
    (repository / "migrations/0.11.0.sql").write_text("select 1;\n")
    with pytest.raises(assemble.AssembleError, match=r"0\.11\.0\.sql is newer"):
        build(repository)


def test_script_of_an_abandoned_version_is_removed(repository: Path):
    build(repository)
    set_version(repository, "0.11.0")
    assert set(build(repository)) == {"ragstone--0.11.0.sql"}


def test_unchanged_script_is_not_rewritten(repository: Path):
    build(repository)
    before = (repository / "build/ragstone--0.10.0.sql").stat()
    build(repository)
    after = (repository / "build/ragstone--0.10.0.sql").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_what_was_released_is_frozen_by_hash(repository: Path):
    assert assemble.changed_since_release(repository) == []
    assemble.freeze(assemble.Sources(repository), repository / "model.json")
    assert assemble.changed_since_release(repository) == []
    set_version(repository, "0.11.0")
    (repository / "migrations/0.11.0.sql").write_text("create table rag.third ();\n")
    assert assemble.changed_since_release(repository) == []
    (repository / "migrations/0.9.0.sql").write_text("create table rag.changed ();\n")
    (repository / "extension/ragstone--0.10.0.tar.xz").unlink()
    assert assemble.changed_since_release(repository) == [
        "extension/ragstone--0.10.0.tar.xz",
        "migrations/0.9.0.sql",
    ]
    (repository / "extension/ragstone--0.8.0.tar.xz").touch()
    assert "extension/ragstone--0.8.0.tar.xz" in assemble.changed_since_release(repository)

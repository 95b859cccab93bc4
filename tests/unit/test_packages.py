"""Dockerfile, Debian package and `make deps` ask for the same packages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from tools import dist


def listed(major: str) -> set[str]:
    done = subprocess.run(
        [ROOT / "tools/deps.sh", "packages", major], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_the_image_is_built_from_the_packages_that_make_deps_installs():
    text = (ROOT / "Dockerfile").read_text()
    (major,) = set(re.findall(r"postgresql-(\d+)\b", text))
    named = set(re.findall(r"^ {8}(postgresql\S+|python3-venv)", text, re.M))
    assert named == listed(major)


@pytest.mark.parametrize("major", ["15", "16", "17", "18"])
def test_the_package_depends_on_what_make_deps_installs(
    major: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        dist.Server,
        "ask",
        lambda _, option: f"PostgreSQL {major}.1" if option == "--version" else "/x",
    )
    package = dist.extension_package(
        dist.Server("pg_config", Path("/usr/bin/python3.11")), Path("/x")
    )
    depends = {name.split()[0] for name in package.depends}
    # It brings its libraries, and so needs the interpreter and nothing to make environments with.
    assert depends == listed(major) - {"python3-venv"} | {"python3.11"}


def test_the_package_brings_the_pages_and_the_document_that_they_ask_about():
    brought = set(dist.pages())
    assert {Path("README.md"), Path("docs/install.md"), Path("docs/tutorial.md")} <= brought
    for page in ("README.md", "docs/tutorial.md"):
        for name in re.findall(r"examples/\S+?\.\w+", (ROOT / page).read_text()):
            assert Path(name) in brought, name


def test_the_compose_file_mounts_what_the_entry_point_reads():
    compose, entry, image = (
        (ROOT / name).read_text() for name in ("compose.yaml", "tools/container.sh", "Dockerfile")
    )
    assert ":/srv/documents:ro" in compose
    assert "/srv/documents" in entry
    assert "/srv/documents" in image
    assert "data:/var/lib/postgresql/data" in compose
    assert "PGDATA=/var/lib/postgresql/data" in image
    for name in re.findall(r"^ {6}(\w+):", compose, re.M):
        assert re.search(rf"\$\{{?{name}\b", entry), name

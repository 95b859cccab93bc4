"""Installing, removing and packing up: the same files, and none that stays behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from tools import dist, install

PYTHON = Path(sys.executable)
CURRENT = install.version()


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build as small as can be, in place of the real one."""
    build = tmp_path / "build"
    for folder in ("site/library", "model", "extension"):
        (build / folder).mkdir(parents=True)
    (build / "site/.installed-server").touch()
    (build / "site/library/__init__.py").write_text("x = 1\n")
    for name in install.MODEL_FILES:
        (build / "model" / name).write_text("{}")
    (build / "model/model.json").write_text(json.dumps({"name": "small"}))
    (build / f"extension/ragstone--{CURRENT}.sql").write_text("select 1;\n")
    monkeypatch.setattr(install, "PACKAGES", build / "site")
    monkeypatch.setattr(install, "MODEL", build / "model")
    monkeypatch.setattr(install, "SCRIPTS", build / "extension")
    monkeypatch.setattr(install, "run", run_but_prepack)
    return tmp_path


def run_but_prepack(command, environment, *, check=True):
    if "prepack" not in command:
        subprocess.run(command, env=environment, check=check, cwd="/")


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_what_is_uninstalled_leaves_nothing(built: Path):
    server = built / "server"
    for folder in ("lib", "share/extension"):
        (server / folder).mkdir(parents=True)
    (server / "share/extension/vector.control").touch()
    before = files(server)
    install.install(server / "lib", server / "share/extension")
    assert len(files(server) - before) > 10
    install.uninstall(server / "lib", server / "share/extension")
    assert files(server) == before


def test_versions_live_side_by_side_until_all_are_removed(built: Path, monkeypatch):
    server = built / "server"
    for folder in ("lib", "share/extension"):
        (server / folder).mkdir(parents=True)
    install.install(server / "lib", server / "share/extension")
    monkeypatch.setattr(install, "version", lambda: "9.9.9")
    install.install(server / "lib", server / "share/extension")
    assert {p.name for p in (server / "lib/ragstone").glob("[0-9]*")} == {CURRENT, "9.9.9"}


def test_compiled_files_name_the_place_where_they_will_be(built: Path):
    target = built / "packed"
    install.install(Path("/usr/lib/pg"), Path("/usr/share/pg"), target)
    (compiled,) = (target / "usr/lib/pg/ragstone" / CURRENT / "library").rglob("*.pyc")
    assert f"/usr/lib/pg/ragstone/{CURRENT}/library/__init__.py".encode() in compiled.read_bytes()
    assert str(target).encode() not in compiled.read_bytes()


def test_the_package_holds_what_make_install_installs(built: Path):
    """But for the model's copy for one CPU, which is made where the package is installed."""
    server = dist.Server(server_program(), PYTHON)
    target = built / "packed"
    install.install(server.pkglibdir, server.extensions, target)
    installed = files(target)
    tree = built / "tree"
    dist.stage(server, tree)
    made = dist.extension_package(server, tree).build(built, "none")
    listed = subprocess.run(["dpkg-deb", "-c", made], check=True, capture_output=True, text=True)
    packed = {
        line.split(maxsplit=5)[5].removeprefix("./").rstrip("/")
        for line in listed.stdout.splitlines()
    }
    assert {
        p
        for p in packed
        if p and not p.startswith("usr/share/doc") and p not in ("usr", "usr/share")
    } == {p for p in installed if not p.endswith("/.lock") and p not in ("usr", "usr/share")}
    fields = subprocess.run(["dpkg-deb", "-f", made], check=True, capture_output=True, text=True)
    assert f"Package: postgresql-{server.major}-ragstone\n" in fields.stdout
    assert f"postgresql-plpython3-{server.major}, " in fields.stdout


def server_program() -> str:
    done = subprocess.run(
        [ROOT / "tools/deps.sh", "pg_config"], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_scripts_of_the_package_are_filled_in_and_run(script: str, tmp_path: Path):
    server = dist.Server(server_program(), PYTHON)
    text = dist.maintainer_scripts(server, "0.1.0")[script]
    assert not re.search(r"@\w+@", text)
    (tmp_path / script).write_text(text)
    subprocess.run(["sh", "-n", tmp_path / script], check=True)


def test_meta_json_takes_the_version_from_the_control_file():
    assert json.loads(dist.meta())["version"] == install.version()


def test_the_source_archive_holds_every_file_and_meta_json(tmp_path: Path):
    with zipfile.ZipFile(dist.source_archive(tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.namelist()}
    assert names == {"META.json", *map(str, dist.source_files())}

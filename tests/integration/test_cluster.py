"""The private cluster is usable after PostgreSQL's packages were updated under it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Cluster

PROGRAMS = ("pg_config", "pg_ctl", "postgres", "initdb", "psql", "createdb")


def asked(pg_config: str | Path, option: str) -> Path:
    said = subprocess.run([pg_config, option], check=True, capture_output=True, text=True)
    return Path(said.stdout.strip())


def replace(file: Path) -> None:
    """As a package manager does: a new file takes the name of the old one."""
    new = file.with_name(file.name + ".new")
    shutil.copy2(file, new)
    new.rename(file)


@pytest.fixture
def installed() -> Iterator[Path]:
    """The bin folder of a copy of the server. Libraries are links, except that of pg_cron."""
    pg_config = subprocess.run(
        [ROOT / "tools/deps.sh", "pg_config"], check=True, capture_output=True, text=True
    ).stdout.strip()
    root = Path(tempfile.mkdtemp(prefix="ragstone-server-"))
    root.chmod(0o755)
    bin_folder, lib, share = (
        asked(pg_config, option) for option in ("--bindir", "--pkglibdir", "--sharedir")
    )
    copies = [root / folder.relative_to("/") for folder in (bin_folder, lib, share)]
    for copy in copies[:2]:
        copy.mkdir(parents=True)
    for name in PROGRAMS:
        shutil.copy2(bin_folder / name, copies[0])
    for file in lib.iterdir():
        (copies[1] / file.name).symlink_to(file)
    (copies[1] / "pg_cron.so").unlink()
    shutil.copy2(lib / "pg_cron.so", copies[1])
    copies[2].parent.mkdir(parents=True, exist_ok=True)
    copies[2].symlink_to(share)
    yield copies[0]
    shutil.rmtree(root)


def command(cluster: Cluster, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "tools/cluster.sh", name, "--dir", cluster.home, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ,
    )


@pytest.mark.parametrize("updated", ["postgres", "pg_cron.so"])
@pytest.mark.parametrize("again", [("start",), ("psql", "--", "-XAtqc", "select 1")])
def test_the_server_is_restarted_where_a_program_or_library_was_replaced(
    installed, own_cluster, monkeypatch, updated, again
):
    monkeypatch.setenv("PG_CONFIG", str(installed / "pg_config"))
    cluster = own_cluster()
    with cluster.connect("cron") as db:
        db.execute("create table kept ()")
    before = cluster.postmaster_pid

    assert command(cluster, *again).stderr == ""
    assert cluster.postmaster_pid == before

    folder = asked(installed / "pg_config", "--pkglibdir") if ".so" in updated else installed
    replace(folder / updated)
    said = command(cluster, *again)
    assert said.stderr.startswith("ragstone: restarting the private cluster")
    assert said.stderr.count("\n") == 1
    assert said.stdout == ("1\n" if "psql" in again else "")
    assert cluster.postmaster_pid != before
    with cluster.connect("cron") as db:
        db.execute("table kept")
    assert command(cluster, *again).stderr == ""

"""Builds the image without Docker, in clean Debian roots, and runs it as compose.yaml does.

The stages of Dockerfile become folders made by tools/debian_root.sh, in which its RUN and COPY lines
are carried out as they stand. Needs root and debootstrap. Bare roots stay in /var/tmp for the next time.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "chosen for the test"
# What the first start must make possible, over TCP and with the password.
TAKES_A_DOCUMENT_IN = """
create table files (id integer primary key, path text not null);
select rag.attach_source('files', path_column => 'path');
insert into files values (1, 'note.txt');
call rag.drain();
"""
SEARCH = "select content from rag.search_documents('paper store')"
FOUND = "Keep the paper store dry."


@dataclass
class Stage:
    """The root of one FROM line, and what its other lines have set."""

    root: Path
    suite: str
    user: str = "root"
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)

    def words(self, command: str, **environment: str) -> list[str]:
        """The command line that has a shell run `command` in this root."""
        settings = [f"{name}={value}" for name, value in (self.environment | environment).items()]
        inside = ["runuser", "-u", self.user, "--", "env", "-C", "/", *settings]
        return [
            str(ROOT / "tools/debian_root.sh"),
            str(self.root),
            self.suite,
            *inside,
            "sh",
            "-c",
            command,
        ]

    def run(self, command: str, **environment: str) -> str:
        """Its standard output; ends the test with what it said where it fails."""
        done = subprocess.run(self.words(command, **environment), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}test-image: error: failed: {command}")
        return done.stdout.strip()


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.M)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def build(folder: Path) -> Stage:
    """Carry out the Dockerfile; the last stage."""
    stages: dict[str, Stage] = {}
    stage = Stage(folder, "")
    for name, rest in instructions((ROOT / "Dockerfile").read_text()):
        started = time.monotonic()
        match name:
            case "FROM":
                base, _, label = rest.partition(" AS ")
                stage = stages[label or str(len(stages))] = new_stage(
                    folder / str(len(stages)), base
                )
            case "RUN":
                stage.run(rest)
            case "COPY":
                copy(stage, rest.split(), stages)
            case "USER":
                stage.user = rest
            case "ENV":
                stage.environment |= dict(word.split("=", 1) for word in rest.split())
            case "CMD":
                stage.command = re.findall(r'"([^"]*)"', rest)
            case "VOLUME" | "EXPOSE" | "STOPSIGNAL":
                pass
            case _:
                sys.exit(f"test-image: error: this test does not know {name}: add it to {__file__}")
        print(f"test-image: {time.monotonic() - started:5.1f} s  {name} {rest:.80}", flush=True)
    return stage


def new_stage(root: Path, image: str) -> Stage:
    """A root like the image, without the packages that only tools/debian_root.sh adds."""
    if not (known := re.fullmatch(r"debian:(\w+)-slim", image)):
        sys.exit(f"test-image: error: {image} is not an image of Debian")
    bare = Path(f"/var/tmp/ragstone-image-{known[1]}")
    Stage(bare, known[1]).run("true")
    subprocess.run(["cp", "-a", bare, root], check=True)
    stage = Stage(root, known[1])
    stage.run("rm -rf /root/ragstone && dpkg --purge make ca-certificates")
    return stage


def copy(stage: Stage, words: list[str], stages: dict[str, Stage]) -> None:
    """COPY [--from=STAGE] SOURCE… DESTINATION."""
    source_root = ROOT
    if words[0].startswith("--from="):
        source_root = stages[words.pop(0).removeprefix("--from=")].root
    *patterns, destination = words
    target = stage.root / destination.lstrip("/")
    for pattern in patterns:
        found = [source_root] if pattern == "." else list(source_root.glob(pattern.lstrip("/")))
        if not found:
            sys.exit(f"test-image: error: COPY finds no {pattern}")
        for path in found:
            if path.is_dir():
                shutil.copytree(path, target, symlinks=True, ignore=ignored, dirs_exist_ok=True)
            else:
                folder = target if destination.endswith("/") else target.parent
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)


def ignored(folder: str, names: list[str]) -> set[str]:
    """What .dockerignore keeps out of the context."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    where = Path(folder).relative_to(ROOT) if Path(folder).is_relative_to(ROOT) else Path(folder)
    return {
        name
        for name in names
        if any(fnmatch(str(where / name), p) or fnmatch(f"./{where / name}", p) for p in patterns)
    }


def try_out(stage: Stage) -> None:
    """Start it twice: the first start makes the cluster, the second needs no password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (stage.root / "srv/documents/note.txt").write_text(FOUND)
    given = dict(re.findall(r'^ {6}(\w+): "?([^"\n]*)', (ROOT / "compose.yaml").read_text(), re.M))
    given["POSTGRES_PASSWORD"] = PASSWORD
    # A container has a network of its own; here the port must be free.
    server = f"{' '.join(stage.command)} -p {port} -c listen_addresses=127.0.0.1"
    psql = f"psql -XAtq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p {port} -U postgres $DATABASE"
    script = f"""
        set -e
        {server} >/tmp/log 2>&1 & server=$!
        trap 'kill -QUIT $server 2>/dev/null; cat /tmp/log >&2' EXIT
        for _ in $(seq 120); do {psql} -c 'select 1' >/dev/null 2>&1 && break; sleep 0.5; done
        echo "$SQL" | {psql}
        trap '' EXIT
        kill -INT $server && wait $server
    """
    for sql in (TAKES_A_DOCUMENT_IN + SEARCH, SEARCH):
        found = stage.run(script, **given, PGPASSWORD=PASSWORD, SQL=sql).splitlines()[-1:]
        if found != [FOUND]:
            sys.exit(f"test-image: error: the image found {found}")
        given.pop("POSTGRES_PASSWORD", None)
    print("test-image: the image takes a document in, finds it, and finds it after a restart")


if __name__ == "__main__":
    work = Path(tempfile.mkdtemp(prefix="ragstone-image-", dir="/var/tmp"))
    try:
        try_out(build(work))
    finally:
        shutil.rmtree(work)

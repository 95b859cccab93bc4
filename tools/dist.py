"""Make the distribution: Debian packages, META.json for PGXN and a source archive.

    dist.py --pg-config PATH --python PATH --output build/dist

The package holds the files that `make install` installs, for the same distribution and the same
Python; only the model's copy for the CPU is made when it is installed. Where the distribution has
no package of pgvector, one is built from Debian's source.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import install

ROOT = install.ROOT
MAINTAINER = "ragstone developers"
SUMMARY = "searchable passages from a table of document files"
DESCRIPTION = """\
Rows that name files go in, ranked passages come out of one SQL function.
Reading, splitting, embedding on the CPU and indexing happen inside the
server. The package brings its Python libraries and an embedding model."""
VECTOR_VERSION = "0.8.0"
# Below the first revision of a distribution's own package, which takes over when there is one.
VECTOR_REVISION = "0ragstone1"
# Fixed, so that the same sources give the same archive.
ZIP_TIME = (2026, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Server:
    """The PostgreSQL for which packages are made."""

    pg_config: str
    python: Path

    def ask(self, option: str) -> str:
        """The answer of its pg_config."""
        return output(self.pg_config, option)

    @property
    def major(self) -> str:
        """The major version: 15, 16, …"""
        return re.sub(r"^PostgreSQL (\d+).*", r"\1", self.ask("--version"))

    @property
    def pkglibdir(self) -> Path:
        """The folder for the Python packages."""
        return Path(self.ask("--pkglibdir"))

    @property
    def extensions(self) -> Path:
        """The folder for the control file and the scripts."""
        return Path(self.ask("--sharedir")) / "extension"


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package of the files below `tree`."""

    name: str
    version: str
    tree: Path
    summary: str
    description: str
    depends: Sequence[str]
    licence: str
    changelog: str
    scripts: dict[str, str] = field(default_factory=dict)
    pages: Sequence[Path] = ()
    suggests: Sequence[str] = ()

    def build(self, folder: Path, compression: str) -> Path:
        """Write the .deb into `folder`."""
        self.add_documentation()
        control = self.tree / "DEBIAN"
        shutil.rmtree(control, ignore_errors=True)
        files = regular_files(self.tree)
        control.mkdir()
        (control / "control").write_text(self.control(files))
        (control / "md5sums").write_text(
            "".join(f"{md5(self.tree / path)}  {path}\n" for path in files)
        )
        for name, script in self.scripts.items():
            (control / name).write_text(script)
            (control / name).chmod(0o755)
        target = folder / f"{self.name}_{self.version}_{architecture()}.deb"
        # By zstd 84 MB in 12 s of CPU time, pgvector included; by xz 65 MB in 126 s.
        options = [f"-Z{compression}", "--root-owner-group"]
        subprocess.run(
            ["dpkg-deb", *options, "--build", self.tree, target],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return target

    def control(self, files: Iterable[Path]) -> str:
        """The control file."""
        size = sum((self.tree / path).stat().st_size for path in files)
        lines = [
            f"Package: {self.name}",
            f"Version: {self.version}",
            f"Architecture: {architecture()}",
            f"Maintainer: {MAINTAINER}",
            f"Installed-Size: {size // 1024}",
            f"Depends: {', '.join(self.depends)}",
            *([f"Suggests: {', '.join(self.suggests)}"] if self.suggests else []),
            "Section: database",
            "Priority: optional",
            f"Description: {self.summary}",
            *(f" {line}" for line in self.description.splitlines()),
        ]
        return "\n".join(lines) + "\n"

    def add_documentation(self) -> None:
        """Add licence, changelog and pages in Debian's folders for them."""
        folder = self.tree / "usr/share/doc" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "copyright").write_text(self.licence)
        changelog = gzip.compress(self.changelog.encode(), mtime=0)
        (folder / "changelog.gz").write_bytes(changelog)
        for page in self.pages:
            (folder / page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / page, folder / page)
        for path in (self.tree, *self.tree.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)


def output(*command: str | Path) -> str:
    """The output of a program."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def architecture() -> str:
    """The architecture, such as amd64."""
    return output("dpkg", "--print-architecture")


def release() -> str:
    """The name of the distribution's release, for which packages are made."""
    text = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\S+)", text, re.MULTILINE)
    return found[1] if found else "unknown"


def md5(path: Path) -> str:
    """The hashes that dpkg --verify compares."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def regular_files(tree: Path) -> list[Path]:
    """All files of a package, relative to its root."""
    return sorted(p.relative_to(tree) for p in tree.rglob("*") if p.is_file())


# --- the package of the extension ---------------------------------------------------------


def maintainer_scripts(server: Server, version: str) -> dict[str, str]:
    """The scripts that run when the package is installed, upgraded and removed."""
    values = {
        "home": str(server.pkglibdir / install.NAME),
        "version": version,
        "python": str(server.python),
    }
    scripts = sorted((ROOT / "tools" / "debian").iterdir())
    return {p.name: install_values(p.read_text(), values) for p in scripts}


def install_values(text: str, values: dict[str, str]) -> str:
    """Fill in every @name@."""
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], text)


def stage(server: Server, tree: Path) -> None:
    """Install below `tree`, and keep files that have not changed."""
    tree.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(tree / "usr/share/doc", ignore_errors=True)
    shutil.rmtree(tree / "DEBIAN", ignore_errors=True)
    install.install(server.pkglibdir, server.extensions, tree)
    home = tree / (server.pkglibdir / install.NAME).relative_to("/")
    (home / ".lock").unlink()
    for other in set(home.iterdir()) - {home / install.version()}:
        shutil.rmtree(other)


def extension_package(server: Server, tree: Path) -> Package:
    """The staged files as a package."""
    version = install.version()
    return Package(
        name=f"postgresql-{server.major}-{install.NAME}",
        version=f"{version}-1~{release()}",
        tree=tree,
        summary=SUMMARY,
        description=DESCRIPTION,
        depends=[
            f"postgresql-{server.major}",
            f"postgresql-plpython3-{server.major}",
            f"postgresql-{server.major}-cron",
            f"postgresql-{server.major}-pgvector (>= {VECTOR_VERSION})",
            server.python.name,
        ],
        licence=(ROOT / "LICENSE").read_text(),
        changelog=(ROOT / "CHANGELOG.md").read_text(),
        scripts=maintainer_scripts(server, version),
        pages=pages(),
        suggests=["tesseract-ocr"],
    )


def pages() -> list[Path]:
    """Files for servers without the sources: README, docs and examples."""
    return [
        path
        for path in source_files()
        if path == Path("README.md") or path.parts[0] in ("docs", "examples")
    ]


# --- pgvector -----------------------------------------------------------------------------


def is_offered(package: str) -> bool:
    """Whether the distribution has a package of that name."""
    return "Candidate: (none)" not in output("apt-cache", "policy", package) and bool(
        output("apt-cache", "policy", package)
    )


def vector_package(server: Server, work: Path) -> Package:
    """pgvector, built from Debian's source."""
    tree = work / "pgvector"
    tree.mkdir()
    environment = os.environ | {"PG_CONFIG": server.pg_config}
    subprocess.run([ROOT / "tools/deps.sh", "vector", tree], check=True, env=environment)
    control = next(tree.rglob("vector.control")).read_text()
    found = re.search(r"default_version = '([^']+)'", control)
    assert found
    licence, changelog = (tree / name for name in ("LICENSE", "CHANGELOG.md"))
    texts = [path.read_text() for path in (licence, changelog)]
    licence.unlink()
    changelog.unlink()
    return Package(
        name=f"postgresql-{server.major}-pgvector",
        version=f"{found[1]}-{VECTOR_REVISION}",
        tree=tree,
        summary="vector similarity search",
        description="Built from Debian's source package, for releases that have no package of it.",
        depends=[f"postgresql-{server.major}"],
        licence=texts[0],
        changelog=texts[1],
    )


# --- for PGXN and for those who build themselves ------------------------------------------


def meta() -> str:
    """META.json."""
    version = install.version()
    return (
        json.dumps(
            {
                "name": install.NAME,
                "abstract": SUMMARY,
                "description": DESCRIPTION.replace("\n", " "),
                "version": version,
                "maintainer": MAINTAINER,
                "license": "postgresql",
                "provides": {
                    install.NAME: {
                        "abstract": SUMMARY,
                        "file": f"extension/{install.CONTROL.name}",
                        "docfile": "README.md",
                        "version": version,
                    }
                },
                "prereqs": {
                    "runtime": {
                        "requires": {"PostgreSQL": "15.0.0", "plpython3u": 0, "vector": "0.8.0"},
                        "recommends": {"pg_cron": "1.4.0"},
                    }
                },
                "release_status": "stable",
                "tags": ["search", "rag", "embeddings", "bm25", "documents"],
                "meta-spec": {"version": "1.0.0"},
            },
            indent=2,
        )
        + "\n"
    )


def source_files() -> list[Path]:
    """What belongs to the source, relative to its root."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = output("git", "-C", ROOT, "ls-files", "-z")
        return sorted(Path(name) for name in listed.split("\0") if name)
    built = {"build", "__pycache__"}
    return sorted(
        path
        for path in (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
        if not built & set(path.parts) and not path.parts[0].startswith((".venv", ".cluster"))
    )


def source_archive(folder: Path) -> Path:
    """The sources with META.json, as PGXN takes them."""
    name = f"{install.NAME}-{install.version()}"
    target = folder / f"{name}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(path: Path, content: bytes, mode: int) -> None:
            entry = zipfile.ZipInfo(f"{name}/{path}", ZIP_TIME)
            entry.external_attr = (0o100000 | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)

        add(Path("META.json"), meta().encode(), 0o644)
        for path in source_files():
            add(path, (ROOT / path).read_bytes(), (ROOT / path).stat().st_mode & 0o777)
    return target


# --- the whole ----------------------------------------------------------------------------


def dist(server: Server, folder: Path, compression: str) -> list[Path]:
    """Write all of it into `folder` and return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("*.deb"), *folder.glob("*.zip")):
        stale.unlink()
    (folder / "META.json").write_text(meta())
    made = [folder / "META.json", source_archive(folder)]
    # The tree stays for the next time.
    tree = folder / "tree"
    stage(server, tree)
    made.append(extension_package(server, tree).build(folder, compression))
    if not is_offered(f"postgresql-{server.major}-pgvector"):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made.append(vector_package(server, Path(work)).build(folder, compression))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Make everything and say what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pg-config", required=True)
    parser.add_argument("--python", type=Path, required=True, help="that plpython3 is linked to")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--compression", default="zstd", help="of the packages (default: zstd)")
    options = parser.parse_args(arguments)
    os.umask(0o022)
    try:
        server = Server(options.pg_config, options.python)
        for path in dist(server, options.output.resolve(), options.compression):
            print(f"{path.stat().st_size / 1e6:7.1f} MB  {os.path.relpath(path)}")
    except install.InstallError as error:
        install.say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Assemble the extension's SQL from migrations/ and sql/.

    assemble.py build --model build/model/model.json --output build/extension
    assemble.py freeze --model build/model/model.json

`build` writes the install script, an update script from each earlier release, and the frozen
install scripts of those releases. `freeze`, run at a release, keeps its install script and its
Python package in a compressed archive in extension/, and the hashes of that archive and of the
migrations in extension/released.sha256. A test checks that none changes.

A file whose name ends in .extension.sql needs PL/Python or a superuser.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "ragstone"
RELEASED = "extension/released.sha256"
ARCHIVE = ".tar.xz"
PLACEHOLDER = re.compile(r"@([a-z][a-z0-9_]*)@")
# The package lies beside the PL/Python that runs the function. Its folder must not be written into
# the function: pg_upgrade takes functions over as they are, to a server that has another folder and
# maybe another Python. Arguments of the function have the names that are not used here.
BOOT = """\
import sys
if "ragstone @version@" not in GD:
    with open("/proc/self/maps", errors="surrogateescape") as _maps:
        _line = next(_line for _line in _maps if "/plpython3.so" in _line)
    GD["ragstone @version@"] = _line[_line.index("/") : _line.rindex("/")] + "/ragstone/@version@"
sys.path[:1] == [GD["ragstone @version@"]] or sys.path.insert(0, GD["ragstone @version@"])
import ragstone; ragstone.require("@version@", plpy)"""
# PostgreSQL fills these in while it runs the script.
POSTGRESQL_PLACEHOLDERS = frozenset({"extschema", "extowner"})
HEADER = """\
-- {name}, assembled by tools/assemble.py: edit migrations/ and sql/ instead.
-- search_path is pinned by {command}: {schema}, then the schemas of the required
-- extensions, pg_temp last. Functions do not inherit it: each sets its own.
\\echo Use "{statement}" to load this file. \\quit
"""


class AssembleError(Exception):
    """The SQL cannot be assembled. The text says what to change."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A release number, ordered as numbers: 0.10.0 comes after 0.9.0."""

    numbers: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Version:
        """Raises AssembleError unless `text` is numbers separated by dots."""
        if not re.fullmatch(r"\d+(\.\d+)*", text):
            raise AssembleError(f"{text!r} is not a version such as 0.1.0")
        return cls(tuple(int(number) for number in text.split(".")))

    def __str__(self) -> str:
        return ".".join(map(str, self.numbers))


@dataclass(frozen=True, slots=True)
class Control:
    """The contents of ragstone.control."""

    version: Version
    schema: str

    @classmethod
    def read(cls, path: Path) -> Control:
        """Raises AssembleError if a value is missing."""
        values = dict(re.findall(r"^(\w+)\s*=\s*'([^']*)'", path.read_text(), re.MULTILINE))
        try:
            return cls(Version.parse(values["default_version"]), values["schema"])
        except KeyError as error:
            raise AssembleError(f"{path} sets no {error.args[0]}") from None


def substitute(text: str, values: Mapping[str, str], origin: str) -> str:
    """Fill in every @name@ of `text`; lines of @boot@ keep the indentation of the first.

    Raises AssembleError for a name that is not in `values`.
    """

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name in POSTGRESQL_PLACEHOLDERS:
            return match[0]
        if name not in values:
            line = match.string.count("\n", 0, match.start()) + 1
            raise AssembleError(
                f"{origin}:{line}: unknown placeholder {match[0]}; "
                f"known are {', '.join(sorted(values))}"
            )
        return values[name]

    def indent(match: re.Match[str]) -> str:
        return "\n".join(match[1] + line for line in values["boot"].splitlines())

    if "boot" in values:
        text = re.sub(r"^([ \t]*)@boot@", indent, text, flags=re.MULTILINE)
    return PLACEHOLDER.sub(fill, text)


def model_values(card: Path) -> dict[str, str]:
    """One value for each entry of model.json: @model_dimension@, @model_sha256@ and so on."""
    entries: dict[str, object] = json.loads(card.read_text())
    return {
        f"model_{key.removeprefix('model_')}": str(value).lower()
        if isinstance(value, bool)
        else str(value)
        for key, value in entries.items()
    }


@dataclass(frozen=True, slots=True)
class Sources:
    """The repository's SQL."""

    root: Path

    @property
    def control(self) -> Control:
        """The control file, the only place that states the version."""
        return Control.read(self.root / "extension" / f"{NAME}.control")

    def migrations(self, after: Version | None = None) -> list[Path]:
        """The migrations after a version, in order of version.

        Raises AssembleError for one that is newer than the control file says.
        """
        found = sorted(
            (Version.parse(p.stem.removesuffix(".extension")), p.stem, p)
            for p in self.root.glob("migrations/*.sql")
        )
        newest = self.control.version
        for version, _, path in found:
            if version > newest:
                raise AssembleError(
                    f"{path.name} is newer than default_version {newest} in {NAME}.control"
                )
        return [path for version, _, path in found if after is None or version > after]

    def released(self) -> dict[Version, Path]:
        """The archives of the earlier releases."""
        archives = (self.root / "extension").glob(f"{NAME}--*{ARCHIVE}")
        versions = ((p.name.removeprefix(f"{NAME}--").removesuffix(ARCHIVE), p) for p in archives)
        frozen = sorted((Version.parse(version), p) for version, p in versions)
        return {version: p for version, p in frozen if version != self.control.version}

    def archive(self, version: Version) -> Path:
        """Where the release of that version is kept."""
        return self.root / "extension" / f"{NAME}--{version}{ARCHIVE}"

    def script(self, values: Mapping[str, str], after: Version | None = None) -> str:
        """The install script, or the update script from `after`."""
        control = self.control
        statement = f"create extension {NAME} cascade"
        if after is not None:
            statement = f"alter extension {NAME} update to '{control.version}'"
        command = " ".join(statement.split()[:2])
        parts = [
            HEADER.format(name=NAME, command=command, schema=control.schema, statement=statement)
        ]
        for path in [*self.migrations(after), *sorted(self.root.glob("sql/*.sql"))]:
            origin = str(path.relative_to(self.root))
            body = substitute(path.read_text(), values, origin)
            parts.append(f"-- {origin}\n\n{body.rstrip()}\n")
        return "\n".join(parts)


def values_for(control: Control, card: Path) -> dict[str, str]:
    """The values of all placeholders."""
    own = {"version": str(control.version)}
    return {**model_values(card), **own, "boot": substitute(BOOT, own, "boot snippet")}


def build(sources: Sources, card: Path, output: Path) -> None:
    """Write all scripts into `output`, and remove everything else there."""
    control = sources.control
    values = values_for(control, card)
    scripts = {f"{NAME}--{control.version}.sql": sources.script(values)}
    for version, archive in sources.released().items():
        scripts[f"{NAME}--{version}.sql"] = released_script(archive)
        scripts[f"{NAME}--{version}--{control.version}.sql"] = sources.script(values, version)
    output.mkdir(parents=True, exist_ok=True)
    for stale in set(output.glob(f"{NAME}--*.sql")) - {output / name for name in scripts}:
        stale.unlink()
    for name, text in scripts.items():
        write(output / name, text)


def freeze(sources: Sources, card: Path) -> Path:
    """Keep this version's install script and package in extension/ and return the archive's path.

    Raises AssembleError if it is there already: a release never changes.
    """
    control = sources.control
    target = sources.archive(control.version)
    if target.exists():
        raise AssembleError(f"{target.name} is released; raise default_version in {NAME}.control")
    files = {f"{NAME}--{control.version}.sql": sources.script(values_for(control, card)).encode()}
    for path in sorted((sources.root / "plpy_lib").rglob("*.py")):
        files[str(path.relative_to(sources.root / "plpy_lib"))] = path.read_bytes()
    with tarfile.open(target, "w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    frozen = [*sources.migrations(), *sources.root.glob(f"extension/{NAME}--*{ARCHIVE}")]
    names = sorted(str(path.relative_to(sources.root)) for path in frozen)
    hashes = "".join(f"{sha256(sources.root / name)}  {name}\n" for name in names)
    write(sources.root / RELEASED, hashes)
    return target


def released_script(archive: Path) -> str:
    """The install script in the archive of a release."""
    with tarfile.open(archive) as files:
        (name,) = (n for n in files.getnames() if n.endswith(".sql"))
        script = files.extractfile(name)
        assert script is not None
        return script.read().decode()


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changed_since_release(root: Path) -> list[str]:
    """Released files that are gone or differ, and archives without a hash."""
    listed: dict[str, str] = {}
    if (root / RELEASED).exists():
        for line in (root / RELEASED).read_text().splitlines():
            digest, name = line.split("  ")
            listed[name] = digest
    differing = [
        name
        for name, digest in listed.items()
        if not (root / name).is_file() or sha256(root / name) != digest
    ]
    archives = {str(p.relative_to(root)) for p in root.glob(f"extension/{NAME}--*{ARCHIVE}")}
    return sorted({*differing, *(archives - listed.keys())})


def write(path: Path, text: str) -> None:
    """Replace `path` in one step, unless nothing changed."""
    if path.exists() and path.read_text() == text:
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).rename(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 with a message on standard error if it can't be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="write install and update scripts")
    builder.add_argument("--output", type=Path, required=True)
    freezer = commands.add_parser("freeze", help="keep this version's install script for good")
    for command in (builder, freezer):
        command.add_argument("--model", type=Path, required=True, help="model.json")
    options = parser.parse_args(arguments)
    sources = Sources(Path(__file__).resolve().parents[1])
    try:
        if options.command == "build":
            build(sources, options.model, options.output)
        else:
            print(freeze(sources, options.model))
    except AssembleError as error:
        print(f"assemble.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Install the extension into a server, or remove it. Runs as root, with the standard library only.

    install.py install --pkglibdir DIR --sharedir DIR [--destdir DIR]
    install.py uninstall --pkglibdir DIR --sharedir DIR

The Python package of a version, its libraries and its model go to PKGLIBDIR/ragstone/VERSION. That
folder is finished beside its place and renamed into it, and only the parts that changed are made
anew. With --destdir all of it goes below that folder, to be packed up for machines like this one:
the model is then not prepacked, which depends on the CPU.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.dont_write_bytecode = True  # the tree may belong to another user
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "plpy_lib"))

from ragstone.models.onnx import cpu_fingerprint  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NAME = "ragstone"
PACKAGES = ROOT / "build" / "site"
MODEL = ROOT / "build" / "model"
SCRIPTS = ROOT / "build" / "extension"
CONTROL = ROOT / "extension" / f"{NAME}.control"
PACKAGE = ROOT / "plpy_lib" / NAME
MODEL_FILES = ("model.onnx", "tokenizer.json", "model.json")
MANIFEST = "installed.json"
Manifest = dict[str, str]


class InstallError(Exception):
    """It can't be installed; the text says what to do."""


def say(message: str) -> None:
    """One line for a step that takes a while."""
    print(f"{NAME}: {message}", file=sys.stderr)


def digest(items: Iterable[bytes]) -> str:
    """One hash over all items, their borders included."""
    whole = hashlib.sha256()
    for item in items:
        whole.update(hashlib.sha256(item).digest())
    return whole.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """The source files below `folder`, in order."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def wanted_manifest(*, for_this_cpu: bool) -> Manifest:
    """A digest of the sources of each part.

    Raises InstallError if something has not been built.
    """
    for built in (PACKAGES, MODEL / "model.json", SCRIPTS):
        if not built.exists():
            raise InstallError(f"{built} is missing; type: make build")
    packages = digest(p.name.encode() for p in sorted(PACKAGES.glob(".installed-*")))
    prepacked = cpu_fingerprint().encode() if for_this_cpu else b""
    model = digest([(MODEL / "model.json").read_bytes(), packages.encode(), prepacked])
    sources = files_of(PACKAGE)
    code = digest(b for p in sources for b in (bytes(p.relative_to(PACKAGE)), p.read_bytes()))
    return {"packages": packages, "models": model, NAME: code}


def installed_manifest(target: Path) -> Manifest:
    """What is there now; nothing if it can't be told."""
    try:
        manifest: Manifest = json.loads((target / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return manifest


@dataclass(frozen=True, slots=True)
class Tree:
    """The folder of one version while it is being made in `folder`, to end up as `target`.

    `destination` is where the server will find it: `target`, unless that is to be packed up.
    """

    folder: Path
    target: Path
    destination: Path

    def make(self, wanted: Manifest, present: Manifest) -> None:
        """Make each part, or link the installed one if that is what is wanted."""
        makers: dict[str, Callable[[], None]] = {
            "packages": self.make_packages,
            "models": self.make_model,
            NAME: self.make_package,
        }
        self.folder.mkdir()
        for part, make in makers.items():
            if present.get(part) == wanted[part]:
                self.link(part)
            else:
                make()
        (self.folder / MANIFEST).write_text(json.dumps(wanted, indent=2) + "\n")
        open_for_reading(self.folder)

    def link(self, part: str) -> None:
        """Take over a part that has not changed."""
        own = {NAME, "models", MANIFEST}
        names = {p.name for p in self.target.iterdir()} - own if part == "packages" else {part}
        for name in names:
            source = self.target / name
            if source.is_dir():
                shutil.copytree(source, self.folder / name, copy_function=os.link)
            else:
                os.link(source, self.folder / name)

    def make_packages(self) -> None:
        """Copy the third-party packages and compile them."""
        say("installing the server's Python packages")
        shutil.copytree(PACKAGES, self.folder, dirs_exist_ok=True)
        self.compile(self.folder, check=False)

    def make_model(self) -> None:
        """Copy the model and, where it stays, write its copy for this machine's CPU."""
        name = json.loads((MODEL / "model.json").read_text())["name"]
        folder = self.folder / "models" / name
        folder.mkdir(parents=True)
        for file in MODEL_FILES:
            shutil.copy(MODEL / file, folder)
        if self.target != self.destination:
            return
        say("prepacking the model for this CPU")
        environment = {"PATH": os.defpath, "PYTHONPATH": str(self.folder)}
        command = [sys.executable, "-B", ROOT / "tools" / "build_model.py", "prepack", folder]
        run(command, environment)

    def make_package(self) -> None:
        """Copy our own package and compile it."""
        target = self.folder / NAME
        shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
        self.compile(target, check=True)

    def compile(self, folder: Path, *, check: bool) -> None:
        """Write .pyc files that are used without looking at the source: the server's account
        could not replace them. Third-party packages may hold files for other Pythons.
        """
        options = ["-j", "0", "--invalidation-mode", "unchecked-hash", "-qq"]
        paths = ["-s", self.folder, "-p", self.destination]
        command = [sys.executable, "-m", "compileall", *options, *paths, folder]
        run(command, {"PATH": os.defpath}, check=check)

    def swap_in(self) -> None:
        """Put the finished folder in its place."""
        old = self.folder.with_suffix(".old")
        if self.target.exists():
            self.target.rename(old)
        self.folder.rename(self.target)
        shutil.rmtree(old, ignore_errors=True)


def run(command: Sequence[str | Path], environment: dict[str, str], *, check: bool = True) -> None:
    """Run a program whose output matters only when it fails.

    Raises InstallError with its last lines.
    """
    process = subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    if check and process.returncode != 0:
        last = "\n".join((process.stdout + process.stderr).splitlines()[-15:])
        raise InstallError(f"{' '.join(map(str, command))} failed:\n{last}")


def open_for_reading(folder: Path) -> None:
    """Readable for all and writable for the owner only, whatever the builder's umask was."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second installation waiting."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def copy_changed(source: Path, target: Path) -> bool:
    """Replace `target` in one step if it differs; whether it did."""
    if target.exists() and target.read_bytes() == source.read_bytes():
        return False
    temporary = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, temporary)
    temporary.chmod(0o644)
    temporary.rename(target)
    return True


def install_scripts(folder: Path) -> bool:
    """Copy the control file and the SQL scripts; whether any changed."""
    scripts = sorted(SCRIPTS.glob(f"{NAME}--*.sql"))
    for stale in set(folder.glob(f"{NAME}--*.sql")) - {folder / p.name for p in scripts}:
        stale.unlink()
    changed = [copy_changed(path, folder / path.name) for path in [*scripts, CONTROL]]
    return any(changed)


def version() -> str:
    """The version that the control file says."""
    for line in CONTROL.read_text().splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "default_version":
            return value.strip().strip("'")
    raise InstallError(f"{CONTROL} sets no default_version")


def install(pkglibdir: Path, extensions: Path, destdir: Path | None = None) -> None:
    """Install what changed, below `destdir` if that is given."""
    destination = pkglibdir / NAME / version()
    if destdir:
        pkglibdir, extensions = (destdir / p.relative_to("/") for p in (pkglibdir, extensions))
        for folder in (pkglibdir, extensions):
            folder.mkdir(parents=True, exist_ok=True)
    home = pkglibdir / NAME
    home.mkdir(mode=0o755, exist_ok=True)
    with locked(home):
        target = home / version()
        wanted = wanted_manifest(for_this_cpu=destdir is None)
        present = installed_manifest(target)
        changed = wanted != present
        if changed:
            tree = Tree(home / ".new", target, destination)
            shutil.rmtree(tree.folder, ignore_errors=True)
            tree.make(wanted, present)
            tree.swap_in()
        # Scripts come last: they must not name a package that is not there yet.
        if install_scripts(extensions) or changed:
            say(f"installed {version()} in {target}")


def uninstall(pkglibdir: Path, extensions: Path) -> None:
    """Remove every version."""
    for path in [extensions / CONTROL.name, *extensions.glob(f"{NAME}--*.sql")]:
        path.unlink(missing_ok=True)
    shutil.rmtree(pkglibdir / NAME, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 with a message on standard error if it can't be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["install", "uninstall"])
    parser.add_argument("--pkglibdir", type=Path, required=True, help="pg_config --pkglibdir")
    parser.add_argument("--sharedir", type=Path, required=True, help="pg_config --sharedir")
    parser.add_argument("--destdir", type=Path, help="install below this folder, to be packed up")
    options = parser.parse_args(arguments)
    os.umask(0o022)
    try:
        extensions = options.sharedir / "extension"
        if options.command == "install":
            install(options.pkglibdir, extensions, options.destdir)
        else:
            uninstall(options.pkglibdir, extensions)
    except InstallError as error:
        say(f"error: {error}")
        return 1
    except PermissionError as error:
        say(f"error: {error.filename} is not writable; run this as root")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What rag.check() asks of Python and of the machine, each as one finding that never raises."""

from __future__ import annotations

import importlib
import os
import platform
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ragstone
from ragstone.db.catalog import Catalog
from ragstone.db.connection import Connection
from ragstone.errors import DocumentError
from ragstone.extract import tesseract
from ragstone.extract.options import Limits
from ragstone.memory import available_bytes
from ragstone.models import providers
from ragstone.models.onnx import quiet_libraries, signals_blocked
from ragstone.sandbox.parent import Sandbox
from ragstone.sandbox.protocol import ExtractRequest
from ragstone.stores.column import OpenContent

REINSTALL = "Install ragstone again: make install, or apt-get install --reinstall of its package"
REINSTALL_TESSERACT = "Install it again: apt-get install --reinstall tesseract-ocr libtesseract5"

_WIDTH, _HEIGHT = 200, 100
_WHITE_PICTURE = (
    struct.pack("<2sI4xI", b"BM", 54 + 3 * _WIDTH * _HEIGHT, 54)
    + struct.pack("<IiiHH24x", 40, _WIDTH, _HEIGHT, 1, 24)
    + b"\xff" * (3 * _WIDTH * _HEIGHT)
)

_DOCUMENT = b"# A heading\n\nA sentence to be found.\n"

# Imported by the backend; what only the child imports is tried there.
LIBRARIES = {"numpy": "numpy", "onnxruntime": "onnxruntime", "tokenizers": "tokenizers"}

# Instructions without which int8 arithmetic is several times slower, by machine.
WANTED_CPU_FLAGS = {"x86_64": ("avx2",), "aarch64": ("asimddp",)}
NOTABLE_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")

MEMORY_PER_WORKER_BYTES = 300 << 20
"""The model's private memory, numpy and a batch; the child's limit comes on top."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of rag.check() without its name; `ok` is None where it could not be told."""

    ok: bool | None
    detail: str
    hint: str | None = None


def run(connection: Connection, name: str) -> dict[str, Any]:
    """Body of the function rag._check_in_python()."""
    return asdict(CHECKS[name](connection))


def package(connection: Connection) -> Finding:
    """That the package is the one that belongs to these SQL functions was seen by the caller."""
    writable = [
        str(p) for p in (ragstone.INSTALL_DIR, Path(__file__).parent) if os.access(p, os.W_OK)
    ]
    if writable and os.geteuid() != 0:
        return Finding(
            False,
            f"the server's account can write to {writable[0]}",
            "It belongs to root, so that a session cannot replace code: " + REINSTALL,
        )
    return Finding(True, f"{ragstone.__version__} on Python {platform.python_version()}")


def libraries(connection: Connection) -> Finding:
    """What embedding needs can be imported, from the installed folder and from nowhere else."""
    versions = []
    quiet_libraries()
    for module_name, distribution in LIBRARIES.items():
        try:
            with signals_blocked():
                module = importlib.import_module(module_name)
        except Exception as error:  # a broken library can raise anything
            return Finding(
                False, f"{module_name} cannot be imported: {_first_line(error)}", REINSTALL
            )
        origin = Path(getattr(module, "__file__", None) or "?")
        if ragstone.INSTALL_DIR not in origin.parents:
            return Finding(
                False,
                f"{module_name} comes from {origin.parent}, not from {ragstone.INSTALL_DIR}",
                "Something in this session imported another one first: reconnect, and look for"
                " other PL/Python code.",
            )
        versions.append(f"{distribution} {metadata.version(distribution)}")
    return Finding(True, ", ".join(versions))


def cpu(connection: Connection) -> Finding:
    flags = _cpu_flags()
    if flags is None:
        return Finding(None, "/proc/cpuinfo cannot be read")
    machine = platform.machine()
    missing = [f for f in WANTED_CPU_FLAGS.get(machine, ()) if f not in flags]
    seen = [f for f in NOTABLE_CPU_FLAGS if f in flags]
    detail = f"{machine}, {os.cpu_count()} CPUs, {' '.join(seen) or 'no vector instructions'}"
    if missing:
        return Finding(
            False,
            f"{detail}; {', '.join(missing)} is missing: embedding is several times slower",
            "In a virtual machine, have the host pass its CPU through.",
        )
    return Finding(True, detail)


def model(connection: Connection) -> Finding:
    """The files of the models in use are the ones that were registered."""
    models = Catalog(connection).models_in_use()
    for each in models:
        if problem := providers.provider(each).problem(each, connection.check):
            return Finding(False, f"{each.name}: {problem}", REINSTALL)
    return Finding(True, ", ".join(f"{each.name} as registered" for each in models))


def prepacked(connection: Connection) -> Finding:
    """The models in use cost no more than they must."""
    models = Catalog(connection).models_in_use()
    for each in models:
        if drawback := providers.provider(each).drawback(each):
            return Finding(False, f"{each.name}: {drawback}", REINSTALL)
    return Finding(True, ", ".join(each.name for each in models))


def extraction(connection: Connection) -> Finding:
    """A document goes through the child, with all that confines it."""
    model = next(iter(Catalog(connection).models_in_use()), None)
    if model is None:
        return Finding(None, "there is no pipeline")
    request = ExtractRequest("check.md", model)
    try:
        with (
            OpenContent(_DOCUMENT).snapshot(1_000, connection.check) as source,
            Sandbox() as sandbox,
        ):
            sandbox.submit(request, source.fd, connection.check)
            chunks = sandbox.result(connection.check).chunks
            protections = sandbox.protections
    except DocumentError as error:
        return Finding(
            False, f"the child failed: {error.message}. {error.detail}", error.hint or REINSTALL
        )
    if not chunks:
        return Finding(False, "the child found no text in a document that has some", REINSTALL)
    return confinement(protections)


def confinement(protections: Sequence[str]) -> Finding:
    """Whether a parser that is taken over could do harm, by what the child said it is bound by."""
    active = ", ".join(protections)
    if not any(name.startswith("seccomp") for name in protections):
        return Finding(
            False,
            f"the child runs without a filter of system calls; it has {active}",
            "The kernel or the container forbids seccomp: allow prctl(PR_SET_SECCOMP).",
        )
    if not any(name.startswith("landlock") for name in protections):
        return Finding(
            False,
            f"the child can read what the server's account can read; it has {active}",
            "Landlock is missing: it needs Linux 5.13, and its name in /sys/kernel/security/lsm;"
            " boot with lsm=landlock,… before the others. In a container, allow the calls"
            " landlock_create_ruleset, landlock_add_rule and landlock_restrict_self.",
        )
    return Finding(True, active)


def ocr(connection: Connection) -> Finding:
    """The library loads in the child with the languages of the pipelines, where one wants any."""
    catalog = Catalog(connection)
    folder = tesseract.data_folder()
    there = ", ".join(tesseract.installed(folder))
    wanted = catalog.languages_of_ocr()
    if not wanted:
        if folder is None:
            return Finding(
                None,
                "off; Tesseract is not installed",
                f"To read scans: apt-get install {tesseract.packages(['eng'])};"
                " then: select rag.set_ocr('eng');",
            )
        return Finding(
            None, f"off; Tesseract has {there}", "To turn it on: select rag.set_ocr('eng');"
        )
    for languages in wanted:
        if found := tesseract.problem(languages, folder):
            return Finding(False, *found)
        if reason := _cannot_recognise(connection, languages):
            return Finding(False, f"{languages}: {reason}", REINSTALL_TESSERACT)
    return Finding(True, f"on for {', '.join(wanted)}; Tesseract has {there}")


def _cannot_recognise(connection: Connection, languages: str) -> str | None:
    """What the child says to a picture without words, None where it is that there are none."""
    model = Catalog(connection).models_in_use()[0]
    request = ExtractRequest("check.bmp", model, Limits(), ocr=tesseract.ocr(languages))
    document = OpenContent(_WHITE_PICTURE)
    try:
        with document.snapshot(100_000, connection.check) as source, Sandbox() as sandbox:
            sandbox.submit(request, source.fd, connection.check)
            sandbox.result(connection.check)
    except DocumentError as error:
        if error.code == "no_text" and "has found no words" in error.detail:
            return None
        return f"{error.message}. {error.detail}"
    return None


def memory(connection: Connection) -> Finding:
    catalog = Catalog(connection)
    available = available_bytes()
    if available is None:
        return Finding(None, "/proc/meminfo cannot be read")
    workers = max(catalog.scheduled_workers(), 1)
    child = int(catalog.settings(None)["extraction_memory_bytes"] or 0)
    wanted = workers * MEMORY_PER_WORKER_BYTES + child
    detail = (
        f"{available >> 20} MB available, {wanted >> 20} MB wanted"
        f" for {workers} worker{'s' * (workers > 1)} and one large document"
    )
    if available < wanted:
        return Finding(
            False,
            detail,
            "Start fewer workers, or lower extraction_memory_bytes, or shared_buffers.",
        )
    return Finding(True, detail)


CHECKS: dict[str, Callable[[Connection], Finding]] = {
    "package": package,
    "libraries": libraries,
    "cpu": cpu,
    "model": model,
    "prepacked": prepacked,
    "extraction": extraction,
    "ocr": ocr,
    "memory": memory,
}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _cpu_flags() -> set[str] | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()

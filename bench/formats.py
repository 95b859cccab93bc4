"""Which files of a folder give text, why the others do not, and how fast; needs no server.

Each file goes through the confined child as a worker sends it, and is split without overlap, so that
its words can be counted against those of a truth text.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import BenchError, Report, Row, Server
from ragstone.errors import DocumentError
from ragstone.extract import tesseract
from ragstone.extract.options import Limits
from ragstone.models.port import ModelSpec
from ragstone.reading.chunk import ChunkSpec
from ragstone.reading.passages import Extraction
from ragstone.sandbox.parent import Sandbox
from ragstone.sandbox.protocol import ExtractRequest
from ragstone.stores.column import OpenContent

MODEL = ModelSpec(
    "built",
    "onnx",
    str(Path(__file__).resolve().parents[1] / "build" / "model"),
    dimension=384,
    max_tokens=256,
)
# The limits that an installation has by default.
LIMITS = Limits(cpu_seconds=60, wall_seconds=120)
# Codes that are a fault of ragstone, or say nothing of the document.
UNEXPLAINED = frozenset(("internal", "crashed", "sandbox_failed"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--folder", type=Path, required=True, help="files of any kind, in folders")
    parser.add_argument(
        "--truth", nargs=2, type=Path, action="append", default=[], metavar=("FILE", "TEXT"),
        help="a document and a text file of what it says, whose words are to be found",
    )  # fmt: skip
    parser.add_argument("--ocr", default="off", help="recognise pictures in these languages: eng")
    parser.add_argument("--rounds", type=int, default=1, help="read each so often; the best counts")
    parser.add_argument(
        "--each", action="store_true", help="print a line for each file without text"
    )


@dataclass(frozen=True)
class _Read:
    """What came of one file."""

    path: Path
    seconds: float
    found: Extraction | None = None
    error: DocumentError | None = None


def run(server: Server, options: argparse.Namespace) -> Report:
    """Read and report."""
    if not MODEL.exists():
        raise BenchError(f"there is no model in {MODEL.parent}: make build")
    files = sorted(path for path in options.folder.rglob("*") if path.is_file())
    if not files:
        raise BenchError(f"there is no file in {options.folder}")
    report = Report("formats", vars(options))
    with Sandbox() as sandbox:
        _read(sandbox, MODEL, "off")  # starts the child
        reads = [
            min(
                (_read(sandbox, path, options.ocr) for _ in range(options.rounds)),
                key=lambda read: read.seconds,
            )
            for path in files
        ]
        truths = [_recall(sandbox, *pair, options.ocr) for pair in options.truth]
    report.table(f"{len(reads)} files, by the end of their name", _rows(reads))
    if errors := [read for read in reads if read.error]:
        report.table("reasons of those without text", _reasons(errors))
    if partial := [read for read in reads if read.found and read.found.partial]:
        report.table("read in part", [_partial(read) for read in partial])
    if truths:
        report.table("words of a truth text that were found", truths)
    for read in errors if options.each else ():
        assert read.error
        print(
            f"  {read.path.relative_to(options.folder)}: {read.error.message}. {read.error.detail}"
        )
    return report


def _read(sandbox: Sandbox, path: Path, languages: str) -> _Read:
    spec = ChunkSpec(overlap=0)
    request = ExtractRequest(path.name, MODEL, LIMITS, spec, ocr=tesseract.ocr(languages))
    document = OpenContent(path.read_bytes())
    with document.snapshot(LIMITS.max_file_bytes, lambda: None) as source:
        started = time.perf_counter()
        try:
            sandbox.submit(request, source.fd, lambda: None)
            found = sandbox.result(lambda: None)
        except DocumentError as error:
            return _Read(path, time.perf_counter() - started, error=error)
        return _Read(path, time.perf_counter() - started, found)


def _rows(reads: Sequence[_Read]) -> list[Row]:
    groups: defaultdict[str, list[_Read]] = defaultdict(list)
    for read in reads:
        groups[read.path.suffix.lower().lstrip(".") or "none"].append(read)
    groups = defaultdict(list, sorted(groups.items()))
    return [_row(name, group) for name, group in [*groups.items(), ("all", list(reads))]]


def _row(name: str, reads: Sequence[_Read]) -> Row:
    good = [read for read in reads if read.found]
    pages = sum((read.found.pages or 1) for read in good if read.found)
    seconds = sum(read.seconds for read in good)
    codes = Counter(read.error.code for read in reads if read.error)
    unexplained = sum(count for code, count in codes.items() if code in UNEXPLAINED)
    return {
        "name": name,
        "files": len(reads),
        "text": len(good),
        "without": sum(codes.values()) - unexplained,
        "unexplained": unexplained,
        "pages": pages,
        "pages/s": pages / seconds if good else None,
    }


def _reasons(reads: Sequence[_Read]) -> list[Row]:
    """By code and kind of file, with the first one's sentence."""
    groups: defaultdict[tuple[str, str], list[DocumentError]] = defaultdict(list)
    for read in reads:
        assert read.error
        groups[read.error.code, read.path.suffix.lower()].append(read.error)
    return [
        {"code": code, "name": name, "files": len(errors), "the first says": errors[0].detail[:90]}
        for (code, name), errors in sorted(groups.items())
    ]


def _partial(read: _Read) -> Row:
    assert read.found
    return {"file": read.path.name, "what is missing": read.found.partial}


def _recall(sandbox: Sandbox, path: Path, truth: Path, languages: str) -> Row:
    r"""The share of the truth's words, as a multiset of \w+, that the passages hold."""
    read = _read(sandbox, path, languages)
    if read.found is None:
        raise BenchError(f"{path.name} gave no text: {read.error}")
    wanted = _words(truth.read_text(encoding="utf-8"))
    found = _words("\n".join(chunk.content for chunk in read.found.chunks))
    return {
        "document": path.name,
        "pages": read.found.pages,
        "words": wanted.total(),
        "recall": (wanted & found).total() / wanted.total(),
        "precision": (wanted & found).total() / max(1, found.total()),
    }


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text))

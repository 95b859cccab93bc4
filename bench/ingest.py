"""How fast documents become searchable, and in how much memory.

Text files and PDFs go through the queue with one worker; its tokens per second are divided by those
of plain ONNX Runtime on the very same chunks, one thread, in turns with it. Then the latency from
one insert to its being found, with a warm worker.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tokenizers
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.platypus import Paragraph, SimpleDocTemplate

from bench.harness import (
    BenchError,
    Connection,
    Database,
    Report,
    Server,
    Stopwatch,
    Usage,
    Watch,
    attach_folder,
    drain,
    insert_paths,
    latency_row,
    library_texts,
    one,
    shared_folder,
)

# The worker's own: padded tokens in one run of the model.
BATCH_TOKENS = 512
TARGETS = {"text": 0.85, "pdf": 0.7}
LATENCY_TARGET_MS = 2_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--size", type=int, default=800_000, help="bytes of generated text")
    parser.add_argument("--rounds", type=int, default=3, help="times to repeat, in turns")
    parser.add_argument("--inserts", type=int, default=40, help="inserts timed for the latency")
    parser.add_argument(
        "--kind", choices=["text", "pdf", "latency"], action="append", help="only this, repeatable"
    )
    parser.add_argument("--files", type=Path, help="measure this folder's files instead")


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    report = Report("ingest", vars(options))
    kinds = options.kind or ["text", "pdf", "latency"]
    with ExitStack() as stack:
        if options.files:
            throughput(server, report, "files", options.files, options.rounds)
            return report
        texts = library_texts(options.size)
        for kind, write in (("text", write_texts), ("pdf", write_pdfs)):
            if kind in kinds:
                folder = stack.enter_context(shared_folder())
                write(folder, texts)
                throughput(server, report, kind, folder, options.rounds)
    if "latency" in kinds:
        seconds = insert_latency(server, options.inserts)
        row = latency_row("insert to searchable, warm worker", seconds, LATENCY_TARGET_MS)
        report.table("latency of one document", [row])
    return report


# --- documents ---------------------------------------------------------------------------------


def write_texts(folder: Path, texts: Sequence[str]) -> None:
    """One .txt a text."""
    for number, text in enumerate(texts):
        (folder / f"{number:05}.txt").write_text(text, encoding="utf-8")


def write_pdfs(folder: Path, texts: Sequence[str]) -> None:
    """One .pdf a text: flowing paragraphs on A4, as word processors export them."""
    style = getSampleStyleSheet()["BodyText"]
    for number, text in enumerate(texts):
        document = SimpleDocTemplate(str(folder / f"{number:05}.pdf"), pagesize=A4, invariant=1)
        paragraphs = [part for part in text.split("\n\n") if part.strip()]
        document.build([Paragraph(_escaped(part), style) for part in paragraphs])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- throughput --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drained:
    """What one worker did with one folder."""

    seconds: float
    chunks: list[str]
    tokens: int
    usage: dict[str, Usage]

    @property
    def rate(self) -> float:
        """Tokens per second from the insert until the queue was empty."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Round:
    """The queue, and right after it the plain model on what the queue stored.

    The ratio of rates is what a user gets, reading, storing and waiting included. Beside it the
    ratio of CPU seconds, plain model to worker and children together: it moves less when the
    machine is busy.
    """

    queue: Drained
    plain_seconds: float
    plain_cpu_seconds: float

    def figures(self) -> tuple[float, ...]:
        """In the order of ROUND_COLUMNS."""
        return (
            self.queue.rate,
            self.queue.tokens / self.plain_seconds,
            self.plain_seconds / self.queue.seconds,
            *(self.queue.usage[name].cpu_seconds for name in PROCESSES),
            self.plain_cpu_seconds,
            self.plain_cpu_seconds
            / max(sum(usage.cpu_seconds for usage in self.queue.usage.values()), 1e-9),
        )


PROCESSES = ("worker", "extract", "embed")
ROUND_COLUMNS = (
    "queue tokens/s",
    "plain tokens/s",
    "ratio",
    *(f"{name} cpu s" for name in PROCESSES),
    "plain cpu s",
    "cpu ratio",
)


def throughput(server: Server, report: Report, kind: str, folder: Path, rounds: int) -> None:
    """Queue and plain model in turns; adds two tables."""
    paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    if not paths:
        raise BenchError(f"no files in {folder}")
    measured: list[Round] = []
    model: PlainModel | None = None
    for _ in range(rounds):
        with server.database() as database:
            model = model or PlainModel(database.model_folder())
            drained = drain_folder(database, folder, paths)
        measured.append(Round(drained, *model.embed(drained.chunks)))
    figures = [one_round.figures() for one_round in measured]
    rows = [_row(str(number), line) for number, line in enumerate(figures, 1)]
    medians = [statistics.median(column) for column in zip(*figures, strict=True)]
    rows.append(_row("median", medians) | {"target ratio": TARGETS.get(kind)})
    size_mb = sum((folder / path).stat().st_size for path in paths) / 2**20
    title = f"{len(paths)} documents, {size_mb:.1f} MB, {measured[0].queue.tokens:,} tokens"
    report.table(f"ingest of {kind}: {title}", rows)
    peaks = {
        name: max((r.queue.usage[name] for r in measured), key=lambda usage: usage.rss)
        for name in PROCESSES
    }
    rows = [usage.row(name) for name, usage in peaks.items()]
    report.table(f"peak memory during ingest of {kind}", rows)


def _row(name: str, figures: Sequence[float]) -> dict[str, Any]:
    return {"round": name, **dict(zip(ROUND_COLUMNS, figures, strict=True)), "target ratio": None}


def drain_folder(database: Database, folder: Path, paths: Sequence[str]) -> Drained:
    """From the insert of all paths until the queue is empty, in a new session."""
    with database.connect() as connection:
        attach_folder(connection, folder)
        with Watch(connection.info.backend_pid) as watch, Stopwatch() as watched:
            insert_paths(connection, paths)
            drain(connection)
        rows = connection.execute(
            "select content, token_count from rag.document_chunks order by document_id, chunk_index"
        ).fetchall()
    return Drained(
        seconds=watched.seconds,
        chunks=[content for content, _ in rows],
        tokens=sum(tokens for _, tokens in rows),
        usage={"worker": watch.backend, **watch.children},
    )


class PlainModel:
    """ONNX Runtime and nothing else: one thread, longest texts first, batches within the budget.

    Sorted over the whole corpus, which a worker that takes documents as they come cannot do.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.embed(["warm up"])

    def embed(self, texts: Sequence[str]) -> tuple[float, float]:
        """Wall and CPU seconds, tokenizing included."""
        cpu_before = time.process_time()
        with Stopwatch() as watch:
            rows = [self._tokenizer.encode(text).ids for text in texts]
            rows.sort(key=len, reverse=True)
            while rows:
                fitting = max(1, BATCH_TOKENS // len(rows[0]))
                self._run(rows[:fitting])
                rows = rows[fitting:]
        return watch.seconds, time.process_time() - cpu_before

    def _run(self, rows: Sequence[Sequence[int]]) -> None:
        ids = np.zeros((len(rows), len(rows[0])), dtype=np.int32)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        self._session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})


# --- latency -----------------------------------------------------------------------------------


def insert_latency(server: Server, inserts: int) -> list[float]:
    """Seconds from before each insert until a search finds the document."""
    (text,) = library_texts(1)
    seconds: list[float] = []
    with server.database() as database, shared_folder() as folder, database.connect() as connection:
        attach_folder(connection, folder)
        with Worker(database):
            for number in range(inserts + 1):
                marker = f"marker{number}x"
                (folder / f"{number}.txt").write_text(f"{marker}\n\n{text[:3_000]}")
                time.sleep(random.uniform(0, 0.5))
                seconds.append(_seconds_until_found(connection, number, marker))
    return seconds[1:]  # the first one loaded the model


def _seconds_until_found(connection: Connection, number: int, marker: str) -> float:
    search = "select document_id from rag.search_documents(%s, 1, semantic_weight => 0)"
    with Stopwatch() as watch:
        connection.execute("insert into documents values (%s, %s)", [number, f"{number}.txt"])
        deadline = time.perf_counter() + 60
        while connection.execute(search, [marker]).fetchone() != (number,):
            if time.perf_counter() > deadline:
                raise BenchError("a document was not searchable after a minute")
            time.sleep(0.005)
    return watch.seconds


class Worker:
    """A worker in a session of its own, while in the context."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread = threading.Thread(target=self._drain, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        with self._database.connect() as connection:
            one(connection, "select rag.stop_workers()")
        self._thread.join()

    def _drain(self) -> None:
        with self._database.connect() as connection:
            connection.execute("call rag.drain(run_for => '1 hour')")

"""From an empty database to ranked answers: the steps that a user takes, one by one.

Usage: demo.py [FOLDER]

Connects as libpq would (PGHOST, PGPORT, PGUSER, PGDATABASE). FOLDER is where the server may read
the sample documents, by default `documents` beside its data directory. What is done already is not
done again, so a second run goes straight to the answers.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import class_row, namedtuple_row
from tqdm import tqdm

SAMPLES = Path(__file__).resolve().parent / "documents"
QUESTIONS = (
    "How humid should the air in the paper store be?",
    "What does fault code E-17 mean?",
    "Who pays the insurance when we lend an object to another museum?",
)
WIDTH = 98
WORD = re.compile(r"\w+-\d+|\w{4,}")
# pg_cron starts a worker at a full minute: two chances, and some time to load.
WORKER_TIMEOUT_S = 135
STALL_TIMEOUT_S = 300

ATTACHED = """
    select count(*) > 0 from rag.sources where relation = '"TblDocumentFiles"'::regclass"""
SCHEDULED = """
    select count(*) > 0 from cron.job
     where jobname like 'ragstone worker %' and database = current_database() and active"""
PROGRESS = """
    select count(*) filter (where status = 'completed') as searchable,
           count(*) filter (where status = 'failed')    as failed,
           count(*)                                     as documents,
           (select count(*) from rag.worker_activity)   as workers,
           ceil(60 - extract(second from clock_timestamp()))::integer as to_full_minute_s,
           clock_timestamp() as now
      from rag.ingestion_log
     where source = 'TblDocumentFiles'"""
LAST_RUN = """
    select r.status, r.return_message
      from cron.job_run_details r
      join cron.job j on j.jobid = r.jobid
     where j.jobname like 'ragstone worker %%' and (r.start_time >= %s or r.start_time is null)
     order by r.runid desc
     limit 1"""


@dataclass(frozen=True)
class Progress:
    """How far the documents are."""

    searchable: int
    failed: int
    documents: int
    workers: int
    to_full_minute_s: int
    now: datetime

    @property
    def done(self) -> int:
        return self.searchable + self.failed


class DemoError(Exception):
    """What went wrong, in a line, and in further ones what to do."""


def main() -> None:
    demo = Demo(connect())
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else demo.default_folder()
    demo.prepare(folder)
    demo.wait()
    demo.show_failed()
    for number, question in enumerate(QUESTIONS, start=1):
        demo.ask(number, question)
    print(bold("Your own question:"), "make psql", sep="\n\n    ")
    print("    select title, page_number, section, content")
    print("      from rag.search_documents('your question', match_count => 3);\n")


@dataclass
class Demo:
    """The steps, in one session."""

    connection: psycopg.Connection[Any]

    def prepare(self, folder: Path) -> None:
        """Everything up to documents in the queue."""
        if not self._value("select count(*) > 0 from pg_extension where extname = 'ragstone'"):
            self._run("create extension if not exists ragstone cascade")
        root = self._value("select rag.get('document_root')")
        if root not in (None, str(folder)):
            raise DemoError(
                f"this database has a document root already: {root}\n"
                "The demo is for a database of its own, such as that of: make demo"
            )
        changed = copy_samples(folder)
        if root is None:
            self._run("select rag.set('document_root', %s)", str(folder))

        if self._value("""select to_regclass('"TblDocumentFiles"')""") is None:
            self._run("""
                create table "TblDocumentFiles" (
                  "DocumentID"       integer generated always as identity primary key,
                  "DocumentFilePath" text not null,
                  "Title"            text
                )""")
        if not self._value(ATTACHED):
            self._run("""
                select rag.attach_source('"TblDocumentFiles"', path_column => 'DocumentFilePath',
                                         title_column => 'Title')""")
        if self._value("select to_regclass('cron.job')") is None or not self._value(SCHEDULED):
            self._run("select rag.start_workers(1)")

        known = {row[0] for row in self._rows('select "DocumentFilePath" from "TblDocumentFiles"')}
        new = [sample.name for sample in samples() if sample.name not in known]
        if new:
            self._insert(new)
        if set(changed) - set(new):
            # A file is another, but its row is as it was: no trigger has told of it.
            self._run("""select rag.enqueue_existing('"TblDocumentFiles"')""")

    def wait(self) -> None:
        """Show a progress bar until every document is searchable or failed."""
        state = self._progress()
        if state.done < state.documents:
            if not sys.stderr.isatty():
                print(f"Waiting for {state.documents} documents …")
            layout = "{desc}  {bar}  {n_fmt} of {total_fmt} documents"
            with tqdm(total=state.documents, ncols=WIDTH, bar_format=layout, disable=None) as bar:
                state = self._follow(state, bar)
        print(f"{state.searchable} documents are searchable, {state.failed} failed.\n")

    def show_failed(self) -> None:
        """Print the documents that could not be brought in, each with its reason."""
        failed = self._rows("""
            select file_path, last_error, error_hint
              from rag.ingestion_log
             where status = 'failed' and source = 'TblDocumentFiles'
             order by file_path""")
        if not failed:
            return
        show_sql("""select file_path, last_error, error_hint
  from rag.ingestion_log
 where status = 'failed'""")
        for row in failed:
            print(f"    {bold(row.file_path)}")
            for text in filter(None, (row.last_error, row.error_hint)):
                print(indented(textwrap.wrap(text, WIDTH - 7)))
        print()

    def ask(self, number: int, question: str) -> None:
        """Print the three best passages for a question."""
        print(bold(f"Question {number}: {question}") + "\n")
        started = time.perf_counter()
        answers = self._run(
            "select * from rag.search_documents(\n  %s, match_count => 3)", question
        )
        duration_ms = 1000 * (time.perf_counter() - started)
        for rank, answer in enumerate(answers, start=1):
            page = f", page {answer.page_number}" if answer.page_number else ""
            left = f"{rank}. {answer.title}{page}"
            right = f"{answer.file_path}  score {answer.hybrid_score:.2f}"
            print("    " + bold(left) + right.rjust(WIDTH - 4 - len(left)))
            if answer.section:
                print(indented([dim(answer.section)]))
            print(indented(excerpt(answer.content, answer.section or "", question)) + "\n")
        print(dim(f"    {duration_ms:.0f} ms") + "\n")

    def default_folder(self) -> Path:
        return Path(str(self._value("show data_directory"))).parent / "documents"

    def _insert(self, names: list[str]) -> None:
        statement = 'insert into "TblDocumentFiles" ("DocumentFilePath", "Title") values'
        cursor = psycopg.ClientCursor(self.connection)
        rows = [cursor.mogrify("(%s, %s)", (name, title(name))) for name in names]
        shown = [*rows[:2], f"… {len(rows) - 2} more"] if len(rows) > 3 else rows
        show_sql("\n  ".join([statement, ",\n  ".join(shown)]))
        cursor.execute(f"{statement} {', '.join(rows)}")

    def _follow(self, state: Progress, bar: tqdm[Any]) -> Progress:
        started = state.now
        seen_worker = moved = time.monotonic()
        while state.done < state.documents:
            if state.workers:
                seen_worker = time.monotonic()
                bar.set_description_str("Reading, splitting, embedding")
            else:
                self._check_worker_start(started, seen_worker)
                bar.set_description_str(
                    f"pg_cron starts the worker at the full minute ({state.to_full_minute_s:2} s)"
                )
            time.sleep(0.25)
            before, state = state, self._progress()
            bar.n, bar.total = state.done, state.documents
            if state.done != before.done or not state.workers:
                moved = time.monotonic()
            if time.monotonic() - moved > STALL_TIMEOUT_S:
                raise DemoError(
                    f"no document was finished for {STALL_TIMEOUT_S} s, though a worker runs\n"
                    "See what it is at: make psql, then select * from rag.ingestion_queue;"
                )
        bar.set_description_str("Done")
        return state

    def _check_worker_start(self, started: datetime, seen_worker: float) -> None:
        run = next(iter(self._rows(LAST_RUN, started)), None)
        if run and run.status == "failed":
            reason = " ".join((run.return_message or "no reason given").split())
            raise DemoError(f"pg_cron could not run the worker: {reason}\n{BY_HAND}")
        if time.monotonic() - seen_worker > WORKER_TIMEOUT_S:
            last = f"its last run: {run.status}" if run else "it has not tried"
            raise DemoError(
                f"pg_cron started no worker for {WORKER_TIMEOUT_S} s; {last}\n{BY_HAND}"
            )

    def _progress(self) -> Progress:
        with self.connection.cursor(row_factory=class_row(Progress)) as cursor:
            (progress,) = cursor.execute(PROGRESS).fetchall()
            return progress

    def _run(self, statement: str, *values: object) -> list[Any]:
        """Execute a statement that the reader shall see."""
        statement = textwrap.dedent(statement).strip()
        with psycopg.ClientCursor(self.connection, row_factory=namedtuple_row) as cursor:
            show_sql(cursor.mogrify(statement, values) if values else statement)
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self.connection.cursor(row_factory=namedtuple_row) as cursor:
            return cursor.execute(query, values or None).fetchall()

    def _value(self, query: str) -> object:
        return self._rows(query)[0][0]


BY_HAND = """\
It has to be in shared_preload_libraries, with cron.use_background_workers = on, and
max_worker_processes has to leave room. To do its work by hand: make psql, then call rag.drain();"""


def connect() -> psycopg.Connection[Any]:
    try:
        connection = psycopg.connect(autocommit=True, connect_timeout=10)
    except psycopg.OperationalError as error:
        reason = str(error).removeprefix("connection is bad: ").strip()
        raise DemoError(f"{reason}\nStart the private server with: make cluster") from None
    connection.add_notice_handler(lambda notice: print(f"   {notice.message_primary}\n"))
    return connection


def samples() -> Iterator[Path]:
    return (path for path in sorted(SAMPLES.iterdir()) if not path.name.startswith("."))


def copy_samples(folder: Path) -> list[str]:
    """Put the samples where the server may read them; returns the names of new and changed ones."""
    changed = []
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    for sample in samples():
        copy = folder / sample.name
        if not copy.exists() or copy.read_bytes() != sample.read_bytes():
            shutil.copyfile(sample, copy)
            copy.chmod(0o644)
            changed.append(sample.name)
    return changed


def title(file_name: str) -> str:
    return re.sub(r"[-_]", " ", Path(file_name).stem).capitalize()


def excerpt(content: str, section: str, question: str, lines: int = 3) -> list[str]:
    """The passage without its heading, wrapped; of a long one the part nearest to the question."""
    text = " ".join(content.removeprefix(section.rpartition(" > ")[2]).split())
    width = WIDTH - 7
    if len(text) > lines * width:
        sentences = re.split(r"(?<=[.!?]) ", text)
        tails = [" ".join(sentences[start:]) for start in range(len(sentences))]
        words = set(WORD.findall(question.lower()))
        shared = [len(words & set(WORD.findall(tail[: lines * width].lower()))) for tail in tails]
        if best := max(shared):
            # The last start that loses none of them: what matters stands in front.
            start = max(index for index, count in enumerate(shared) if count == best)
            text = ("… " if start else "") + tails[start]
    return textwrap.wrap(text, width, max_lines=lines, placeholder=" …")


def show_sql(statement: str) -> None:
    first, *rest = f"{statement};".splitlines()
    print(cyan("\n".join([f"=> {first}", *(f"   {line}" for line in rest)])) + "\n")


def indented(lines: list[str]) -> str:
    return "\n".join(f"       {line}" for line in lines)


def cyan(text: str) -> str:
    return _styled(36, text)


def bold(text: str) -> str:
    return _styled(1, text)


def dim(text: str) -> str:
    return _styled(2, text)


def _styled(code: int, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() else text


def explain(error: psycopg.Error) -> str:
    diag = error.diag
    parts = (diag.message_primary or str(error), diag.message_detail, diag.message_hint)
    return "\n".join(part.strip() for part in parts if part)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nStopped. The queue is worked off all the same; make demo goes on from here.")
    except psycopg.Error as error:
        sys.exit(f"demo: {explain(error)}")
    except (DemoError, OSError) as error:
        sys.exit(f"demo: {error}")

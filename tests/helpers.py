"""What most tests need."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import psutil
import psycopg
import pytest

from ragstone.db.psycopg import Psycopg
from ragstone.db.queue import Queue
from ragstone.db.rows import Job

# PostgreSQL refuses root.
AS_SERVER = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []


def rows(connection: psycopg.Connection, sql: str, *parameters: object) -> list[tuple]:
    return connection.execute(sql, parameters or None).fetchall()


def value(connection: psycopg.Connection, sql: str, *parameters: object) -> object:
    """The only value of the only row."""
    ((only,),) = rows(connection, sql, *parameters)
    return only


def claim(connection: psycopg.Connection, worker_id: int, max_jobs: int = 16) -> list[dict]:
    """What a worker's claim does, one step at a time: the claimed jobs, by column."""
    connection.execute("select rag._expand_changes(0::smallint)")
    queue = Queue(Psycopg(connection), worker_id)
    jobs: list[Job] = []
    for lane in queue.lanes():
        jobs += queue.claim(lane, max_jobs - len(jobs))
    return [asdict(job) for job in jobs or queue.claim_retry()]


def eventually(condition: Callable[[], object], seconds: float = 60) -> object:
    """What the condition gives once it is true; fails where it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    pytest.fail("it did not happen")


def in_background(
    connection: psycopg.Connection, sql: str
) -> tuple[threading.Thread, list[psycopg.Error]]:
    """A statement in a thread of its own, and the errors it ends with."""
    errors = []

    def run():
        try:
            connection.execute(sql)
        except psycopg.Error as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def long_text(chapters: int) -> str:
    """Some 110 tokens a chapter."""
    return "\n\n".join(
        f"Chapter {n} of a long book about subject {n * 31}. " * 10 for n in range(chapters)
    )


def children_of(pid: int, name: str | None = None) -> list[int]:
    """The backend's child processes; their names are extract and embed."""
    try:
        found = psutil.Process(pid).children()
        return [child.pid for child in found if name in (None, *child.cmdline()[-1:])]
    except psutil.NoSuchProcess:
        return []

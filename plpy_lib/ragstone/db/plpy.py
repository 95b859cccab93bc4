"""The connection of code that runs in the server, over the `plpy` that PL/Python hands it."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from ragstone.db.connection import Connection, Row

STATEMENT_TIMEOUT = 3
"""Its number in the server's enum TimeoutId, the same from PostgreSQL 15 to 18."""


class Plpy(Connection):
    """A backend's own session.

    Statements are prepared once a session, as plpy.prepare in a loop leaks. The plans are kept in a
    class variable because the same session may build several of these.
    """

    _plans: ClassVar[dict[tuple[str, ...], Any]] = {}

    def __init__(self, plpy: Any, *, commits: bool = False) -> None:
        self._plpy = plpy
        self._commits = commits
        self._is_open = False
        self._postmaster_pid = _postmaster_pid()

    @classmethod
    def of_procedure(cls, plpy: Any, name: str) -> Plpy:
        """The session of a procedure that commits as it goes.

        Raises SQLSTATE 25001, in the procedure's name, inside a transaction block.
        """
        connection = cls(plpy, commits=True)
        try:
            plpy.commit()
        except plpy.SPIError:
            connection.error(
                f"{name} cannot run inside a transaction block",
                sqlstate="25001",
                detail="It commits as it goes.",
                hint="Call it outside of begin … commit, and not from a function.",
            )
        return connection

    @classmethod
    @contextmanager
    def of_worker(cls, plpy: Any, name: str) -> Iterator[Plpy]:
        """As `of_procedure`, with what the work needs of the session's parameters, whatever the
        database or the role has set; at the end they are again what they were.
        """
        connection = cls.of_procedure(plpy, name)
        before = connection.value("rag._pin_session()")
        if before is not None and "statement_timeout" in json.loads(before):
            _stop_statement_clock()
        try:
            yield connection
        finally:
            if before is not None:
                connection.rows("select rag._unpin_session($1)", ["json"], before)

    def rows(self, sql: str, types: Sequence[str] = (), *values: Any) -> list[Row]:
        with self.transaction():
            return list(self._plpy.execute(self._plan(sql, types), list(values)))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._is_open or not self._commits:
            yield
            return
        self._is_open = True
        try:
            yield
            self._plpy.commit()
        except BaseException:
            self._plpy.rollback()
            raise
        finally:
            self._is_open = False

    def check(self) -> None:
        """A session notices the death of the postmaster only where it waits: a busy worker would
        work on and keep the server from being started again.
        """
        if os.getppid() != self._postmaster_pid:
            self.sleep(1000)
        self.rows("select 1")

    def notice(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        self._plpy.notice(message, **_given(detail=detail, hint=hint))

    def warning(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        self._plpy.warning(message, **_given(detail=detail, hint=hint))

    def log(self, message: str) -> None:
        self._plpy.log(message)

    def error(
        self, message: str, *, sqlstate: str, detail: str | None = None, hint: str | None = None
    ) -> NoReturn:
        self._plpy.error(message, **_given(sqlstate=sqlstate, detail=detail, hint=hint))
        raise AssertionError("plpy.error raises")

    def sqlstate(self, error: BaseException) -> str:
        return (isinstance(error, self._plpy.SPIError) and getattr(error, "sqlstate", None)) or ""

    def _plan(self, sql: str, types: Sequence[str]) -> Any:
        key = (sql, *types)
        if key not in self._plans:
            # A type of the same name may come first in the session's search_path.
            self._plans[key] = self._plpy.prepare(sql, [f"pg_catalog.{name}" for name in types])
        return self._plans[key]


def _stop_statement_clock() -> None:
    """End the timeout of the statement that is running: the call of the procedure itself.

    The server starts this clock before the call. A changed parameter comes too late for it, and no
    statement stops it. A worker would be cancelled in the middle of its work, each time.
    """
    stop = getattr(ctypes.CDLL(None), "disable_timeout", None)
    if stop is not None:
        stop.argtypes = [ctypes.c_int, ctypes.c_bool]
        stop.restype = None
        stop(STATEMENT_TIMEOUT, False)


def _given(**fields: str | None) -> dict[str, str]:
    return {name: text for name, text in fields.items() if text}


def _postmaster_pid() -> int:
    """From the file in the data directory, a backend's working directory.

    The parent would not do: of a session that began just before the postmaster died it is another.
    """
    try:
        return int(Path("postmaster.pid").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return os.getppid()

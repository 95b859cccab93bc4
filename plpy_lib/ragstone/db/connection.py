"""The connection port: one session of PostgreSQL, whoever holds it.

`plpy.py` is the session that runs our code, `psycopg.py` one of a process outside the server. The
calls made of statements are in `queue.py`, `catalog.py` and `maintenance.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol

Row = dict[str, Any]


class Refused(Exception):
    """What `Connection.error` raises outside the server."""

    def __init__(
        self, message: str, sqlstate: str, detail: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.sqlstate, self.detail, self.hint = sqlstate, detail, hint


class Connection(Protocol):
    """Statements, and what else a session gives.

    Each statement is a transaction of its own, unless it runs within `transaction()`; so nobody
    can forget to commit, and none is open while Python works. Only a function, which may not
    commit, leaves its statements in the transaction of its caller.

    Parameters are `$1`, `$2`, …, and `types` are their names in pg_catalog. Values and results are
    int, float, bool, str, bytes, None, and lists of them; json is a str.
    """

    @abstractmethod
    def rows(self, sql: str, types: Sequence[str] = (), *values: Any) -> list[Row]:
        """Run one statement; raises the driver's own error, see `sqlstate()`."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Statements that belong together: committed at the end, rolled back at an error."""

    @abstractmethod
    def check(self) -> None:
        """Let cancel, timeout and shutdown act; raises what they do."""

    @abstractmethod
    def notice(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        """Tell the caller."""

    @abstractmethod
    def warning(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        """Tell the caller and the log."""

    @abstractmethod
    def log(self, message: str) -> None:
        """Write a line to the log, and tell nobody else."""

    @abstractmethod
    def error(
        self, message: str, *, sqlstate: str, detail: str | None = None, hint: str | None = None
    ) -> NoReturn:
        """Refuse what the caller asked for."""

    @abstractmethod
    def sqlstate(self, error: BaseException) -> str:
        """The SQLSTATE of an error of the database, empty for any other error."""

    def is_interrupt(self, error: BaseException) -> bool:
        """Whether an error is the wish to stop (class 57), which no code may swallow."""
        return self.sqlstate(error).startswith("57")

    def value(self, expression: str, types: Sequence[str] = (), *values: Any) -> Any:
        """The value of one expression."""
        return self.rows(f"select {expression} as value", types, *values)[0]["value"]

    def sleep(self, milliseconds: int) -> None:
        """Wait, open to cancel and shutdown."""
        self.rows("select pg_catalog.pg_sleep($1)", ["float8"], milliseconds / 1000)

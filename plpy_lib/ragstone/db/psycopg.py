"""The connection of a process outside the server, over psycopg.

psycopg is imported here alone: the server needs none and has none.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import psycopg
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

from ragstone.db.connection import Connection, Refused, Row

_PARAMETER = re.compile(r"\$(\d+)")
_logger = logging.getLogger("ragstone")


class Psycopg(Connection):
    """A session of a client; what it has to say goes to the logger `ragstone`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        connection.autocommit = True
        connection.adapters.register_loader("json", TextLoader)
        self._connection = connection
        self._cursor = psycopg.RawCursor(connection, row_factory=dict_row)

    def rows(self, sql: str, types: Sequence[str] = (), *values: Any) -> list[Row]:
        typed = _PARAMETER.sub(lambda p: f"{p[0]}::pg_catalog.{types[int(p[1]) - 1]}", sql)
        # As bytes: psycopg takes a str for a query only where it is a literal in the source.
        self._cursor.execute(typed.encode(), values or None)
        return self._cursor.fetchall() if self._cursor.description else []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._connection.transaction():
            yield

    def check(self) -> None:
        """Notice a server that has hung up, without asking it anything."""
        self._connection.pgconn.consume_input()

    def notice(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        _logger.info("%s", _sentence(message, detail, hint))

    def warning(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        _logger.warning("%s", _sentence(message, detail, hint))

    def log(self, message: str) -> None:
        _logger.info("%s", message)

    def error(
        self, message: str, *, sqlstate: str, detail: str | None = None, hint: str | None = None
    ) -> NoReturn:
        raise Refused(message, sqlstate, detail, hint)

    def sqlstate(self, error: BaseException) -> str:
        return (isinstance(error, psycopg.Error) and error.sqlstate) or ""

    def is_interrupt(self, error: BaseException) -> bool:
        """A connection that is lost is one, too: nothing more can be done over it."""
        return super().is_interrupt(error) or (
            isinstance(error, psycopg.Error) and self._connection.broken
        )


def _sentence(message: str, detail: str | None, hint: str | None) -> str:
    return " ".join([f"{message}." if detail or hint else message, *filter(None, (detail, hint))])

"""What most tests need."""

from __future__ import annotations

import psycopg


def rows(connection: psycopg.Connection, sql: str, *parameters: object) -> list[tuple]:
    return connection.execute(sql, parameters or None).fetchall()


def value(connection: psycopg.Connection, sql: str, *parameters: object) -> object:
    """The only value of the only row."""
    ((only,),) = rows(connection, sql, *parameters)
    return only

"""Roles with each level of rag.grant_usage(), and one that was given nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import psycopg
import pytest

LEVELS = ("search", "ingest", "operate", "admin")


@pytest.fixture
def role(db, cluster) -> Iterator[Callable[..., str]]:
    """Makes a role with the given levels; roles belong to the cluster, so they are dropped at the end."""
    made: list[str] = []

    def make(*levels: str) -> str:
        name = f"ragstone_{os.getpid()}_{len(made)}"
        made.append(name)
        db.execute(f"create role {name}")
        for level in levels:
            db.execute("select rag.grant_usage(%s, level => %s)", [name, level])
        return name

    yield make
    for name in made:
        db.execute(f"drop owned by {name}")
        db.execute(f"drop role {name}")


@pytest.fixture
def session_of(role, connect) -> Callable[..., psycopg.Connection]:
    """Opens a session of a new role with the given levels."""

    def open_(*levels: str) -> psycopg.Connection:
        session = connect()
        session.execute(f"set role {role(*levels)}")
        return session

    return open_

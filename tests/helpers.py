"""What most tests need."""

from __future__ import annotations

import psycopg


def rows(connection: psycopg.Connection, sql: str, *parameters: object) -> list[tuple]:
    return connection.execute(sql, parameters or None).fetchall()


def value(connection: psycopg.Connection, sql: str, *parameters: object) -> object:
    """The only value of the only row."""
    ((only,),) = rows(connection, sql, *parameters)
    return only


def claim(connection: psycopg.Connection, worker_id: int, max_jobs: int = 16) -> list[dict]:
    """What a worker's claim does, one step at a time: the claimed jobs, by column."""
    connection.execute("select rag._free_jobs_of_dead_workers()")
    jobs: list[int] = []
    for priority, tenant, job in rows(connection, "select * from rag._lanes()"):
        wanted = max_jobs - len(jobs)
        lane = "select rag._claim_jobs(%s, %s::smallint, %s, %s, %s)"
        jobs += value(connection, lane, worker_id, priority, tenant, job, wanted) or []
    jobs = jobs or value(connection, "select rag._claim_retry(%s)", worker_id) or []
    cursor = connection.execute("select * from rag._claimed_jobs(%s::bigint[])", [jobs])
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

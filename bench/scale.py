"""How search grows with the number of chunks: by mode, behind filters, and beside the seed design.

Chunks are synthetic: vectors around a thousand centres, as embeddings of subjects are, and words by
Zipf's law. Questions are made the same way and come with their vector, so that no time of the model
is in the figures. The seed design is what the system replaces: 0.7 · cosine + 0.3 · ts_rank over all
rows, and plainto_tsquery.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.harness import (
    BenchError,
    Connection,
    Database,
    Report,
    Row,
    Server,
    Stopwatch,
    one,
    percentile,
)

DIMENSION = 384
WORDS = 60
VOCABULARY = 200_000
SELECTIVITIES = (0.0001, 0.001, 0.01, 0.1, 0.5, 1.0)
SEED = """
select c.chunk_id, 0.7 * (1 - (c.embedding <=> %(vector)s::vector))
       + 0.3 * ts_rank(c.content_tsv, plainto_tsquery('simple', %(text)s)) as score
  from rag.document_chunks c
 order by score desc
 limit 10
"""
SEARCH = "select chunk_id from rag.search_documents(%(vector)s::vector, %(text)s{})"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=50, help="of each kind")
    parser.add_argument("--clients", type=int, default=8, help="connections of pgbench")
    parser.add_argument("--seconds", type=int, default=10, help="of pgbench, each kind")


@dataclass(frozen=True)
class Question:
    """A text and its vector."""

    text: str
    vector: str


class Maker:
    """Texts and vectors, the same each time."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)
        self._centres = self._random.normal(size=(1000, DIMENSION))

    def vectors(self, count: int) -> Iterator[str]:
        """Of length 1, in pgvector's text form."""
        for _ in range(count):
            vector = self._centres[self._random.integers(1000)] + self._random.normal(
                size=DIMENSION
            )
            vector /= np.linalg.norm(vector)
            yield str(vector.round(5).tolist())

    def text(self, words: int) -> str:
        """Words by Zipf's law."""
        ranks = self._random.zipf(1.2, words) % VOCABULARY
        return " ".join(f"w{rank}" for rank in ranks)

    def questions(self, count: int) -> list[Question]:
        """Of six words."""
        return [Question(self.text(6), vector) for vector in self.vectors(count)]


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    report = Report("scale", vars(options))
    for count in options.chunks:
        with server.database() as database, database.connect() as connection:
            maker = Maker()
            report.table(f"{count:,} chunks: what they take", [load(connection, maker, count)])
            questions = maker.questions(options.queries)
            report.table(f"{count:,} chunks: latency", list(by_mode(connection, questions)))
            report.table(
                f"{count:,} chunks: a filter that lets through a share",
                list(by_selectivity(connection, questions, count)),
            )
            recall, index_ms, exact_ms = one(
                connection, "select recall, index_ms, exact_ms from rag.ann_recall(50)"
            )
            report.table(
                f"{count:,} chunks: vector index beside exact search",
                [
                    {
                        "what": "recall@10",
                        "recall": recall,
                        "index ms": index_ms,
                        "exact ms": exact_ms,
                    }
                ],
            )
            report.table(
                f"{count:,} chunks: {options.clients} connections at once, by pgbench",
                list(by_pgbench(database, connection, questions, options)),
            )
    return report


def load(connection: Connection, maker: Maker, count: int) -> Row:
    """One chunk a document, past the queue; tags t0.0001 to t1.0 are on that share of them.

    Returns what table and indexes take, and how long the vector index took to build.
    """
    connection.execute("create table documents (id integer primary key, content text)")
    connection.execute("select rag.attach_source('documents', content_column => 'content')")
    connection.execute("create temp table made (id serial, content text, embedding vector)")
    connection.execute("update rag._pipeline_statistics set average_length = %s", [WORDS])
    with connection.cursor().copy("copy made (content, embedding) from stdin") as copy:
        for vector in maker.vectors(count):
            copy.write_row((maker.text(WORDS), vector))
    connection.execute(
        """
        with source as (select s.source_id from rag.sources s)
        insert into rag.documents (source_id, document_id, source_key, status)
        select s.source_id, m.id, m.id, 'completed' from made m, source s
        """
    )
    connection.execute("select rag.defer_index()")
    shares = ",".join(str(s) for s in SELECTIVITIES)
    connection.execute(
        f"""
        with stored as (
          insert into rag.document_chunks
            (pipeline_id, source_id, document_id, chunk_index, content, char_count, token_count,
             content_tsv, content_bm25, embedding, tags, content_hash)
          select 1, 1, m.id, 0, m.content, length(m.content), {WORDS}, t.tsv,
                 rag._bm25_weights(t.tsv, 'simple', {WORDS}), m.embedding,
                 array(select 't' || s from unnest(array[{shares}]) s
                       where m.id % round(1 / s)::integer = 0), ''
            from made m, lateral (select to_tsvector('simple', m.content) as tsv) t
          returning pipeline_id, text_search_config, content_tsv
        )
        insert into rag._lexeme_changes (pipeline_id, text_search_config, sign, content_tsv)
        select pipeline_id, text_search_config, 1, content_tsv from stored
        """
    )
    with Stopwatch() as building:
        connection.execute("select rag.build_index()")
    for _ in range(count // 5000 + 1):
        connection.execute("select rag._refresh_statistics()")
    connection.execute("vacuum analyze")
    sizes = one(
        connection,
        """
        select pg_table_size(p.relid), pg_relation_size(v.index), pg_indexes_size(p.relid) - pg_relation_size(v.index)
          from pg_partition_tree('rag.document_chunks') p,
               lateral (select to_regclass('rag.' || rag._vector_index(1)) as index) v
         where p.isleaf
        """,
    )
    named = dict(zip(("table MB", "vector index MB", "other indexes MB"), sizes, strict=True))
    return (
        {"what": "one chunk a document"}
        | {k: v / 2**20 for k, v in named.items()}
        | {"vector index built in s": building.seconds}
    )


def by_mode(connection: Connection, questions: list[Question]) -> Iterator[Row]:
    """Each mode, and the seed design, in turns."""
    kinds = {
        "hybrid": SEARCH.format(""),
        "semantic": SEARCH.format(", mode => 'semantic'"),
        "text": SEARCH.format(", mode => 'text'"),
        "hybrid, a page of each document": SEARCH.format(", max_per_document => 1"),
        "seed design": SEED,
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    # Ten of a kind, since after the seed design, which reads everything, no cache of the CPU is left.
    for start in range(0, len(questions), 10):
        for name, sql in kinds.items():
            for question in questions[start : start + 10]:
                seconds[name].append(timed(connection, sql, question)[0])
    for name, values in seconds.items():
        yield {"what": name} | percentiles(values)


def by_selectivity(connection: Connection, questions: list[Question], count: int) -> Iterator[Row]:
    """How many rows come back of those that could, at worst and in what time."""
    for share in SELECTIVITIES:
        sql = SEARCH.format(f", tags_filter => '{{t{share}}}'")
        measured = [timed(connection, sql, question) for question in questions]
        exist = one(
            connection, "select count(*) from rag.document_chunks where tags && %s", [f"t{share}"]
        )[0]
        yield {
            "share": f"{share:.2%}",
            "match": exist,
            "rows promised": min(10, exist),
            "fewest rows": min(rows for _, rows in measured),
        } | percentiles([seconds for seconds, _ in measured])


def by_pgbench(
    database: Database,
    connection: Connection,
    questions: list[Question],
    options: argparse.Namespace,
) -> Iterator[Row]:
    """Queries per second."""
    connection.execute(
        "create table questions as select n, q ->> 0 as text, (q ->> 1)::vector as vector"
        " from jsonb_array_elements(%s) with ordinality u (q, n)",
        [json.dumps([[q.text, q.vector] for q in questions])],
    )
    kinds = {
        "hybrid": SEARCH.format(""),
        "text": SEARCH.format(", mode => 'text'"),
        "seed design": SEED,
    }
    for name, sql in kinds.items():
        asked = sql.replace("%(vector)s::vector", "q.vector").replace("%(text)s", "q.text")
        asked = " ".join(asked.split())
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
            file.write(
                f"\\set n random(1, {len(questions)})\n"
                f"select r.* from (select * from questions where n = :n) q, lateral ({asked}) r;\n"
            )
            file.flush()
            said = subprocess.run(
                [pgbench(connection), "-n", "-M", "simple", "-f", file.name, "-c", str(options.clients), "-j", "2",
                 "-T", str(options.seconds), database.name],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        found = re.search(r"tps = ([\d.]+)", said.stdout)
        latency = re.search(r"latency average = ([\d.]+)", said.stdout)
        if said.returncode or not found or not latency:
            raise BenchError(f"pgbench: {said.stderr or said.stdout}")
        yield {
            "what": name,
            "per second": float(found[1]),
            "mean ms": float(latency[1]),
        }


def pgbench(connection: Connection) -> str:
    """That of the server's version, where it is installed here."""
    (bindir,) = one(connection, "select setting from pg_config() where name = 'BINDIR'")
    path = Path(bindir, "pgbench")
    return str(path) if path.exists() else "pgbench"


def timed(connection: Connection, sql: str, question: Question) -> tuple[float, int]:
    """Seconds, and the number of rows."""
    with Stopwatch() as watch:
        found = connection.execute(
            sql, {"text": question.text, "vector": question.vector}
        ).fetchall()
    return watch.seconds, len(found)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    return {f"p{p} ms": 1000 * percentile(seconds, p) for p in (50, 95, 99)}

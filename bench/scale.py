"""How search grows with the number of chunks: by mode, behind filters, and beside the seed design.

Chunks are synthetic, as near as that comes to real ones (see `Synthetic`), or given: a file with one
passage a line. Questions come with their vector, so that no time of the model is in the figures. The
seed design is what the system replaces: 0.7 · cosine + 0.3 · ts_rank over all rows, and
plainto_tsquery.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bench.harness import (
    BenchError,
    Connection,
    Database,
    Report,
    Row,
    Server,
    Stopwatch,
    built_model,
    one,
    percentile,
    pgbench,
)
from ragstone.models.port import vector_literal

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
EXACT = "select chunk_id from rag.document_chunks order by (embedding <=> %(vector)s::vector) + 0 limit 11"
SEARCH = "select chunk_id from rag.search_documents(%(vector)s::vector, %(text)s{})"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--passages", type=Path, metavar="FILE", help="real ones, one a line, instead of synthetic"
    )
    parser.add_argument("--queries", type=int, default=50, help="of each kind")
    parser.add_argument("--clients", type=int, default=8, help="connections of pgbench")
    parser.add_argument("--seconds", type=int, default=10, help="of pgbench, each kind")


@dataclass(frozen=True)
class Question:
    """A text and its vector."""

    text: str
    vector: str


class Corpus(Protocol):
    """Where chunks and questions come from; the same each time."""

    def passages(self, count: int) -> Iterator[tuple[str, np.ndarray]]:
        """Texts, and their vectors of length 1. Raises BenchError where there are not so many."""
        ...

    def questions(self, count: int) -> list[Question]:
        """Questions of six words; none is a passage."""
        ...


class Synthetic:
    """Words by Zipf's law, and vectors that lie as embeddings of real passages do.

    Subjects within subjects: a vector is the sum of an offset for each of the subjects it belongs to,
    LEVELS deep with BRANCHES each, and of one of its own, whose length varies. Offsets are Gaussian
    with a spectrum like that of real embeddings. The constants were fitted to how near the nearest
    passages are, and to how many of them HNSW finds, among 100,000 real ones: see bench/search.md.
    """

    BRANCHES, LEVELS = 8, 7
    COMMON, LEVEL, OWN, OWN_SPREAD = 0.085, 0.08, 0.355, 0.6

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)
        spectrum = (np.arange(DIMENSION) + 5) ** -0.9
        self._scale = np.sqrt(spectrum / spectrum.sum()).astype(np.float32)
        # A subject's offset is one of these, by its number: that of another subject elsewhere, too.
        self._offsets = self._normal(2**16)

    def _normal(self, count: int) -> np.ndarray:
        return self._scale * self._random.standard_normal((count, DIMENSION), dtype=np.float32)

    def vectors(self, count: int) -> np.ndarray:
        """Shape (count, DIMENSION), float32."""
        subject = self._random.integers(self.BRANCHES**self.LEVELS, size=count)
        spread = np.exp(self._random.normal(0, self.OWN_SPREAD, (count, 1)) - self.OWN_SPREAD**2)
        vectors = self._normal(count) * (np.sqrt(self.OWN) * spread).astype(np.float32)
        vectors[:, -1] += np.sqrt(self.COMMON)
        for level in range(self.LEVELS):
            number = subject // self.BRANCHES**level * self.LEVELS + level
            # Knuth's multiplicative hash.
            row = number * 2_654_435_761 // 2**16 % len(self._offsets)
            vectors += np.sqrt(np.float32(self.LEVEL)) * self._offsets[row]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def text(self, words: int) -> str:
        """Words by Zipf's law."""
        ranks = self._random.zipf(1.2, words) % VOCABULARY
        return " ".join(f"w{rank}" for rank in ranks)

    def passages(self, count: int) -> Iterator[tuple[str, np.ndarray]]:
        for start in range(0, count, 10_000):
            for vector in self.vectors(min(10_000, count - start)):
                yield self.text(WORDS), vector

    def questions(self, count: int) -> list[Question]:
        return [Question(self.text(6), vector_literal(vector)) for vector in self.vectors(count)]


class Given:
    """The lines of a file, in random order. Their vectors are kept beside it, in FILE.npy.

    A question is six neighbouring words of a line that is no passage.
    """

    HELD_OUT = 1000

    def __init__(self, file: Path) -> None:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        kept = file.with_name(file.name + ".npy")
        if not kept.exists():
            np.save(kept, embed(lines))
        vectors = np.load(kept, mmap_mode="r")
        if len(vectors) != len(lines):
            raise BenchError(f"{kept} belongs to another file of this name: delete it")
        self._lines, self._vectors = lines, vectors
        self._order = np.random.default_rng(1).permutation(len(lines))

    def passages(self, count: int) -> Iterator[tuple[str, np.ndarray]]:
        there = self._order[self.HELD_OUT :]
        if count > len(there):
            raise BenchError(f"the file has {len(there):,} passages: ask for no more --chunks")
        for row in there[:count]:
            yield self._lines[row], self._vectors[row]

    def questions(self, count: int) -> list[Question]:
        texts = []
        for row in self._order[: min(count, self.HELD_OUT)]:
            # Words alone: a quote or a minus would be a condition.
            words = re.findall(r"\w+", self._lines[row])
            middle = max(len(words) // 2 - 3, 0)
            texts.append(" ".join(words[middle : middle + 6]))
        return [Question(t, vector_literal(v)) for t, v in zip(texts, embed(texts), strict=True)]


def embed(texts: list[str]) -> np.ndarray:
    """Vectors of the texts, by a thread for each core."""

    def part(texts: list[str]) -> np.ndarray:
        return built_model().embed_passages(texts, truncate=True)

    cores = os.cpu_count() or 1
    size = -(-len(texts) // cores)
    with ThreadPoolExecutor(cores) as pool:
        parts = pool.map(part, [texts[i : i + size] for i in range(0, len(texts), size)])
        return np.concatenate(list(parts))


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    report = Report("scale", vars(options))
    for count in options.chunks:
        with server.database() as database, database.connect() as connection:
            corpus = Given(options.passages) if options.passages else Synthetic()
            report.table(f"{count:,} chunks: what they take", [load(connection, corpus, count)])
            questions = corpus.questions(options.queries)
            report.table(f"{count:,} chunks: latency", list(by_mode(connection, questions)))
            report.table(
                f"{count:,} chunks: a filter that lets through a share",
                list(by_selectivity(connection, questions, count)),
            )
            report.table(
                f"{count:,} chunks: vector index beside exact search",
                list(by_recall(connection, questions)),
            )
            report.table(
                f"{count:,} chunks: {options.clients} connections at once, by pgbench",
                list(by_pgbench(database, connection, questions, options)),
            )
    return report


def load(connection: Connection, corpus: Corpus, count: int) -> Row:
    """One chunk a document, past the queue; tags t0.0001 to t1.0 are on that share of them.

    Returns what table and indexes take, and how long the vector index took to build.
    """
    connection.execute("create table documents (id integer primary key, content text)")
    connection.execute("select rag.attach_source('documents', content_column => 'content')")
    connection.execute("create temp table made (id serial, content text, embedding vector)")
    with connection.cursor().copy("copy made (content, embedding) from stdin") as copy:
        for text, vector in corpus.passages(count):
            copy.write_row((text, vector_literal(vector)))
    # As it will turn out: else all weights would be made anew when it is known.
    connection.execute(
        """
        update rag._pipeline_statistics set average_length = (
          select avg(l.words)
          from (select content from made limit 1000) m,
               lateral (select sum(cardinality(u.positions)) as words from unnest(to_tsvector('simple', m.content)) u) l)
        """
    )
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
                 rag._bm25_weights(t.tsv, 'simple', p.average_length), m.embedding,
                 array(select 't' || s from unnest(array[{shares}]) s
                       where m.id % round(1 / s)::integer = 0), ''
            from made m, rag._pipeline_statistics p, lateral (select to_tsvector('simple', m.content) as tsv) t
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
            "fewest rows": min(len(rows) for _, rows in measured),
        } | percentiles([seconds for seconds, _ in measured])


def by_recall(connection: Connection, questions: list[Question]) -> Iterator[Row]:
    """What searches by meaning find of the ten nearest, and in what time, by how far the index looks.

    Asked for are the questions, and stored passages, of which each is its own nearest, and left out.
    """
    vectors = connection.execute(
        "select embedding::text from rag.document_chunks order by random() limit 200"
    ).fetchall()
    kinds = {"passages": [Question("", vector) for (vector,) in vectors], "questions": questions}
    nearest = {
        kind: [timed(connection, EXACT, question) for question in asked]
        for kind, asked in kinds.items()
    }
    search = SEARCH.format(", mode => 'semantic', match_count => 11")
    for effort in (None, 100, 200, 400, 1000):
        options = {} if effort is None else {"ef_search": effort}
        connection.execute("update rag.pipelines set index_options = %s", [json.dumps(options)])
        for kind, asked in kinds.items():
            found = [timed(connection, search, question) for question in asked]
            first = 1 if kind == "passages" else 0
            wanted = [set(rows[first : first + 10]) for _, rows in nearest[kind]]
            recalls = [
                len(w.intersection(rows)) / len(w)
                for w, (_, rows) in zip(wanted, found, strict=True)
            ]
            yield {
                "what": kind,
                "ef_search": effort or "as it is",
                "recall@10": statistics.fmean(recalls),
                "worst": min(recalls),
                "search p50 ms": 1000 * statistics.median(seconds for seconds, _ in found),
                "exact p50 ms": 1000 * statistics.median(seconds for seconds, _ in nearest[kind]),
            }
    connection.execute("update rag.pipelines set index_options = '{}'")


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
        script = (
            f"\\set n random(1, {len(questions)})\n"
            f"select r.* from (select * from questions where n = :n) q, lateral ({asked}) r;\n"
        )
        found = pgbench(connection, database, script, options.clients, "-T", str(options.seconds))
        yield {
            "what": name,
            "per second": found.per_second,
            "mean ms": found.mean_ms,
        }


def timed(connection: Connection, sql: str, question: Question) -> tuple[float, list[int]]:
    """Seconds, and the chunks found."""
    with Stopwatch() as watch:
        found = connection.execute(
            sql, {"text": question.text, "vector": question.vector}
        ).fetchall()
    return watch.seconds, [row[0] for row in found]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    return {f"p{p} ms": 1000 * percentile(seconds, p) for p in (50, 95, 99)}

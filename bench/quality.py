"""How well searches rank, on a collection with judgements, beside exact references.

The collection has the BEIR layout: corpus.jsonl, queries.jsonl, qrels/test.tsv. It goes through
the real path: one row and so one document each, chunked, embedded and stored by a worker. The
judged queries are asked of rag.search_documents; a document stands where its best chunk stands.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bm25s
import numpy as np
import psycopg
import Stemmer
from psycopg import sql

from bench.harness import BenchError, Connection, Report, Row, Server, Stopwatch, drain, one

WEIGHTS: dict[str, float | None] = {
    "hybrid, automatic weight": None,
    "hybrid, 0.7": 0.7,
    "hybrid, 0.5": 0.5,
    "dense only": 1.0,
    "text only": 0.0,
}
# By name of the collection: nDCG@10 of the hybrid with the automatic weight.
TARGETS = {"cranfield": 0.56}
K1, B = 1.2, 0.75
# 0.7 · cosine + 0.3 · ts_rank over all rows, with plainto_tsquery.
SEED = """
with question as materialized (select rag.embed(%(text)s) as vector, plainto_tsquery(p.text_search_config::regconfig, %(text)s) as words
                                 from rag.pipelines p where p.state = 'active')
select d.source_key
  from rag.document_chunks c
  join rag.documents d on d.source_id = c.source_id and d.document_id = c.document_id
 cross join question q
 order by 0.7 * (1 - (c.embedding <=> q.vector)) + 0.3 * ts_rank(c.content_tsv, q.words) desc
 limit 300
"""

Judgements = Mapping[str, Mapping[str, int]]
Ranking = Sequence[str]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--collection", type=Path, required=True, help="folder in BEIR layout")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="change the pipeline first, such as text_search_config=indonesian; repeatable",
    )
    parser.add_argument(
        "--language", help="of the documents, such as id: as their source would say it"
    )
    parser.add_argument(
        "--match-count", type=int, default=300, help="chunks asked for: enough for 100 documents"
    )


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    name = options.collection.name
    report = Report("-".join(["quality", name, *options.set]), vars(options))
    collection = read_collection(options.collection)
    with server.database() as database, database.connect() as connection:
        change_pipeline(connection, options.set)
        load(connection, collection, options.language)
        chunks = read_chunks(connection)
        rows = [
            score_row(label, asked, collection.judgements, TARGETS.get(name) if i == 0 else None)
            for i, (label, asked) in enumerate(
                searches(connection, collection, options.match_count)
            )
        ]
        rows += [
            score_row(label, asked, collection.judgements)
            for label, asked in references(connection, chunks, collection)
        ]
        rows.append(seed_row(connection, collection, rows[0]))
    report.table(
        f"{', '.join([name, *options.set])}: {len(collection.texts):,} documents,"
        f" {len(chunks.keys):,} chunks, {len(collection.queries):,} judged queries",
        rows,
    )
    return report


# --- the collection ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Collection:
    """Titles and texts (title first) by document, and the judged queries."""

    titles: dict[str, str]
    texts: dict[str, str]
    queries: dict[str, str]
    judgements: Judgements


def read_collection(folder: Path) -> Collection:
    """Raises BenchError where a file of the layout is missing."""
    try:
        documents = {d["_id"]: d for d in _lines(folder / "corpus.jsonl")}
        queries = {q["_id"]: q["text"] for q in _lines(folder / "queries.jsonl")}
        qrels = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    except (OSError, KeyError, ValueError) as error:
        raise BenchError(f"{folder} is not in BEIR layout: {error!r}") from error
    judgements: dict[str, dict[str, int]] = {}
    for line in qrels:
        query, document, relevance = line.split("\t")
        if int(relevance) > 0:
            judgements.setdefault(query, {})[document] = int(relevance)
    judged = {query: text for query, text in queries.items() if query in judgements}
    titles = {key: document.get("title", "") for key, document in documents.items()}
    texts = {key: f"{titles[key]}\n\n{d['text']}".strip() for key, d in documents.items()}
    return Collection(titles, {key: t for key, t in texts.items() if t}, judged, judgements)


def _lines(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def change_pipeline(connection: Connection, changes: Sequence[str]) -> None:
    """Set columns of the active pipeline before anything is attached."""
    for change in changes:
        column, _, value = change.partition("=")
        try:
            connection.execute(
                sql.SQL("update rag.pipelines set {} = {} where state = 'active'").format(
                    sql.Identifier(column), sql.Literal(value)
                )
            )
        except psycopg.Error as error:
            raise BenchError(f"--set {change}: {error}") from error


def load(connection: Connection, collection: Collection, language: str | None) -> None:
    """One row a document, drained in this session."""
    connection.execute(
        "create table documents (id text primary key, title text, content text, language text)"
    )
    connection.execute(
        "select rag.attach_source('documents', content_column => 'content', title_column => 'title',"
        " language_column => 'language')"
    )
    connection.execute(
        "insert into documents select *, %s from unnest(%s::text[], %s::text[], %s::text[])",
        [
            language,
            list(collection.texts),
            [collection.titles[key] for key in collection.texts],
            list(collection.texts.values()),
        ],
    )
    drain(connection)
    connection.execute("vacuum analyze")


# --- what is measured --------------------------------------------------------------------------


def searches(
    connection: Connection, collection: Collection, match_count: int
) -> Iterator[tuple[str, Asked]]:
    """All queries by each weight."""
    for label, weight in WEIGHTS.items():
        rankings, seconds = {}, []
        for query, text in collection.queries.items():
            with Stopwatch() as watch:
                found = connection.execute(
                    "select source_key from rag.search_documents("
                    "%s, match_count => %s, semantic_weight => %s)",
                    [text, match_count, weight],
                ).fetchall()
            rankings[query] = list(dict.fromkeys(key for (key,) in found))
            seconds.append(watch.seconds)
        yield label, Asked(rankings, statistics.median(seconds))


@dataclass(frozen=True)
class Asked:
    """Documents found for each query, best first, and the median seconds where that was timed."""

    rankings: Mapping[str, Ranking]
    seconds: float | None = None


def seed_row(connection: Connection, collection: Collection, hybrid: Row) -> Row:
    """What the system replaces, on the same chunks: how much better and faster the hybrid is.

    The question's own embedding is in both times.
    """
    rankings, seconds = {}, []
    for query, text in collection.queries.items():
        with Stopwatch() as watch:
            found = connection.execute(SEED, {"text": text}).fetchall()
        rankings[query] = list(dict.fromkeys(key for (key,) in found))
        seconds.append(watch.seconds)
    asked = Asked(rankings, statistics.median(seconds))
    row = score_row("seed design", asked, collection.judgements)
    print(
        f"\nhybrid beside the seed design: nDCG@10 {_ratio(hybrid, row, 'nDCG@10')} times,"
        f" time {_ratio(hybrid, row, 'p50 ms')} times"
    )
    return row


def _ratio(numerator: Row, denominator: Row, column: str) -> str:
    above, below = numerator[column], denominator[column]
    return f"{above / below:.2f}" if isinstance(above, float) and below else "-"


def score_row(label: str, asked: Asked, judgements: Judgements, target: float | None = None) -> Row:
    """Means over the judged queries."""
    ndcg = [ndcg_at(10, found, judgements[query]) for query, found in asked.rankings.items()]
    recall = [recall_at(100, found, judgements[query]) for query, found in asked.rankings.items()]
    return {
        "ranking": label,
        "nDCG@10": statistics.fmean(ndcg),
        "recall@100": statistics.fmean(recall),
        "documents": statistics.fmean(map(len, asked.rankings.values())),
        "p50 ms": None if asked.seconds is None else 1000 * asked.seconds,
        "target": target,
    }


def ndcg_at(k: int, found: Ranking, relevance: Mapping[str, int]) -> float:
    """Gains 2^rel − 1, discounts log2(rank + 1)."""
    ideal = _dcg(sorted(relevance.values(), reverse=True)[:k])
    return _dcg([relevance.get(document, 0) for document in found[:k]]) / ideal


def _dcg(relevance: Iterable[int]) -> float:
    return sum((2.0**rel - 1) / math.log2(rank + 2) for rank, rel in enumerate(relevance))


def recall_at(k: int, found: Ranking, relevance: Mapping[str, int]) -> float:
    """Share of the relevant documents among the first k."""
    return len(relevance.keys() & set(found[:k])) / len(relevance)


# --- what it is measured against ---------------------------------------------------------------


@dataclass(frozen=True)
class Chunks:
    """What the worker stored: document, text, lexemes as often as they occur, vectors."""

    keys: list[str]
    contents: list[str]
    lexemes: list[list[str]]
    vectors: np.ndarray


def read_chunks(connection: Connection) -> Chunks:
    """All of them, in memory."""
    rows = connection.execute(
        f"""
        select d.source_key, c.content, {_lexemes("c.content_tsv")}, c.embedding::text
          from rag.document_chunks c
          join rag.documents d on d.source_id = c.source_id and d.document_id = c.document_id
         order by c.document_id, c.chunk_index
        """
    ).fetchall()
    keys, contents, lexemes, vectors = (list(column) for column in zip(*rows, strict=True))
    return Chunks(keys, contents, lexemes, np.array([json.loads(v) for v in vectors], np.float32))


def _lexemes(tsvector: str) -> str:
    return f"""(select coalesce(array_agg(u.lexeme), '{{}}')
                  from unnest({tsvector}) u, unnest(u.positions))"""


def references(
    connection: Connection, chunks: Chunks, collection: Collection
) -> Iterator[tuple[str, Asked]]:
    """The same chunks ranked outside the database, every one scored."""
    queries = list(collection.queries.values())
    vectors = np.array(
        [json.loads(one(connection, "select rag.embed(%s)::text", text)[0]) for text in queries],
        np.float32,
    )
    yield "exact dense, NumPy", _ranked(chunks, collection, vectors @ chunks.vectors.T)
    (config,) = one(connection, "select distinct text_search_config from rag.document_chunks")
    asked = [
        one(connection, f"select {_lexemes('rag._analyze(%s, %s, true)')}", text, config)[0]
        for text in queries
    ]
    scores = _bm25(chunks.lexemes, asked)
    yield "BM25 of the same lexemes, bm25s", _ranked(chunks, collection, scores)
    tokenize = own_tokenizer(config)
    scores = _bm25(tokenize(chunks.contents), tokenize(queries))
    yield "BM25 with bm25s's own tokenizer", _ranked(chunks, collection, scores)


def _bm25(corpus: list[list[str]], queries: list[list[str]]) -> np.ndarray:
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index(corpus, show_progress=False)
    nothing = np.zeros(len(corpus), np.float32)
    known = [[token for token in query if token in index.vocab_dict] for query in queries]
    return np.array([index.get_scores(query) if query else nothing for query in known])


def own_tokenizer(text_search_config: str) -> Callable[[list[str]], list[list[str]]]:
    """bm25s's tokenizer, with the Snowball stemmer of that name and for English its stop words."""
    known = text_search_config in Stemmer.algorithms()
    stemmer = Stemmer.Stemmer(text_search_config) if known else None
    stopwords = "en" if text_search_config == "english" else None

    def tokenize(texts: list[str]) -> list[list[str]]:
        tokens: list[list[str]] = bm25s.tokenize(
            texts, stopwords=stopwords, stemmer=stemmer, return_ids=False, show_progress=False
        )
        return tokens

    return tokenize


def _ranked(chunks: Chunks, collection: Collection, scores: np.ndarray) -> Asked:
    order = np.argsort(-scores, axis=1, kind="stable")
    return Asked(
        {
            query: list(dict.fromkeys(chunks.keys[i] for i in row if line[i] > 0))
            for query, row, line in zip(collection.queries, order, scores, strict=True)
        }
    )

"""Which way of chunking finds the passages of long documents best; needs a collection, no server.

The collection's texts are put together, as chapters, into long documents; a chunk that is found
stands for the text that it shares most words with. Ranked by the sum of both legs, each divided by
its best score, as a search does it with a fixed weight of one half.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import bm25s
import numpy as np

from bench.harness import Report, Row, Server, built_model
from bench.quality import Asked, Collection, own_tokenizer, read_collection, score_row
from ragstone.extract import Limits, extract
from ragstone.models.onnx import Embedder
from ragstone.models.tokens import Tokenizer
from ragstone.reading.chunk import Chunk, ChunkSpec, chunk
from ragstone.reading.similarity import similarities

SETTINGS = {
    "recursive 512/50": ChunkSpec(),
    "recursive 256/25": ChunkSpec(size=256, overlap=25),
    "recursive 1000/100": ChunkSpec(size=1_000, overlap=100),
    "recursive 512/50, section": ChunkSpec(template="{section}\n{content}"),
    "structure 512/50": ChunkSpec("structure"),
    "structure 512/0": ChunkSpec("structure", overlap=0),
    "structure 1000/100": ChunkSpec("structure", size=1_000, overlap=100),
    "structure 512/50, section": ChunkSpec("structure", template="{section}\n{content}"),
    "structure 200 tokens, section": ChunkSpec(
        "structure", size=200, overlap=20, unit="tokens", template="{section}\n{content}"
    ),
    "fixed 512/50": ChunkSpec("fixed"),
    "semantic 512/50": ChunkSpec("semantic"),
    "semantic 1000/100": ChunkSpec("semantic", size=1_000, overlap=100),
    "semantic 512/50, section": ChunkSpec("semantic", template="{section}\n{content}"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this question."""
    parser.add_argument("--collection", type=Path, required=True, help="folder in BEIR layout")
    parser.add_argument("--chapters", type=int, default=20, help="texts to a long document")
    parser.add_argument("--documents", type=int, help="no more long documents than this")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="only this one")
    parser.add_argument("--language", default="english", help="stemmer of the text leg")


def run(server: Server, options: argparse.Namespace) -> Report:
    """Measure and report."""
    report = Report("chunking", vars(options))
    collection = read_collection(options.collection)
    documents = list(_documents(collection, options.chapters))[: options.documents]
    kept = {key for document in documents for key in document}
    embedder = built_model()
    tokenizer = embedder.tokenizer
    queries = {
        query: text
        for query, text in collection.queries.items()
        if kept & collection.judgements[query].keys()
    }
    vectors = embedder.embed_passages(list(queries.values()), truncate=True)
    rows = []
    for label in options.setting or SETTINGS:
        started = time.monotonic()
        passages = list(_passages(collection, documents, SETTINGS[label], tokenizer, embedder))
        asked = _search(passages, queries, vectors, embedder, options.language)
        judged = {
            query: {
                key: grade for key, grade in collection.judgements[query].items() if key in kept
            }
            for query in queries
        }
        rows.append(_row(label, asked, judged, passages, time.monotonic() - started))
        print(f"  {label}: nDCG@10 {rows[-1]['nDCG@10']:.4f}", flush=True)
    report.table(
        f"{options.collection.name}: {len(documents)} documents of {options.chapters} texts,"
        f" {len(queries)} queries",
        rows,
    )
    return report


@dataclass(frozen=True)
class _Passage:
    """A chunk and the text of the collection that it is mostly of."""

    chunk: Chunk
    key: str


def _documents(collection: Collection, chapters: int) -> Iterator[list[str]]:
    keys = list(collection.texts)
    for start in range(0, len(keys), chapters):
        yield keys[start : start + chapters]


def _passages(
    collection: Collection,
    documents: Sequence[list[str]],
    spec: ChunkSpec,
    tokenizer: Tokenizer,
    embedder: Embedder,
) -> Iterator[_Passage]:
    compare = partial(similarities, embed=partial(embedder.embed_passages, truncate=True))
    for number, keys in enumerate(documents):
        parts = []
        for key in keys:
            title = collection.titles[key].strip()
            text = collection.texts[key].removeprefix(title).strip()
            parts.append(f"# {title or key}\n\n{text}".replace("\n#", "\n"))
        found = extract("\n\n".join(parts).encode(), "book.md", Limits())
        words = {key: set(collection.texts[key].split()) for key in keys}
        for each in chunk(found.blocks, spec, tokenizer, f"Volume {number}", compare):
            content = each.content.split()
            key = max(keys, key=lambda key: sum(word in words[key] for word in content))
            yield _Passage(each, key)


def _search(
    passages: Sequence[_Passage],
    queries: dict[str, str],
    vectors: np.ndarray,
    embedder: Embedder,
    language: str,
) -> Asked:
    stored = embedder.embed_passages([passage.chunk.embed_text for passage in passages], truncate=True)
    tokenize = own_tokenizer(language)
    index = bm25s.BM25(method="lucene")
    index.index(tokenize([passage.chunk.content for passage in passages]), show_progress=False)
    rankings = {}
    for row, (query, words) in enumerate(
        zip(queries, tokenize(list(queries.values())), strict=True)
    ):
        dense = stored @ vectors[row]
        known = [word for word in words if word in index.vocab_dict]
        text = index.get_scores(known) if known else np.zeros(len(passages), np.float32)
        scores = dense / max(dense.max(), 1e-6) + text / max(text.max(), 1e-6)
        order = np.argsort(-scores, kind="stable")[:400]
        rankings[query] = list(dict.fromkeys(passages[place].key for place in order))
    return Asked(rankings)


def _row(
    label: str,
    asked: Asked,
    judged: dict[str, dict[str, int]],
    passages: Sequence[_Passage],
    seconds: float,
) -> Row:
    scored = score_row(label, asked, judged)
    return {
        "chunking": label,
        "nDCG@10": scored["nDCG@10"],
        "chunks": len(passages),
        "tokens a chunk": sum(p.chunk.token_count for p in passages) / len(passages),
        "seconds": seconds,
    }

"""Similarity of neighbouring sentences by a model, for the chunk strategy `semantic`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Books have fewer sentences. Later ones are not compared; only size decides there.
MAX_SENTENCES = 50_000
# How many sentences are embedded at once: a few seconds of work, and 3 MB of vectors.
_TOGETHER = 2_000
# The sentence next to a break counts 1, the one beyond it this much. One alone can be "He did."
_BEHIND = 0.5


def similarities(
    runs: Sequence[Sequence[str]], embed: Callable[[Sequence[str]], np.ndarray]
) -> list[list[float]]:
    """For each run of sentences, how similar the sides of each place between two of them are.

    A cosine, rounded: the last digits differ between machines and shall decide nothing. Places
    beyond MAX_SENTENCES are 0.
    """
    found: list[list[float]] = []
    for group in _groups(runs):
        texts = [sentence for run in group for sentence in run]
        if len(texts) == len(group):  # nothing to compare
            found += [[] for _ in group]
            continue
        vectors = embed(texts)
        first = 0
        for run in group:
            found.append(_along(vectors[first : first + len(run)]))
            first += len(run)
    found += [[0.0] * (len(run) - 1) for run in runs[len(found) :]]
    return found


def _groups(runs: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    group: list[Sequence[str]] = []
    total = gathered = 0
    for run in runs:
        total += len(run)
        if total > MAX_SENTENCES:
            break
        group.append(run)
        gathered += len(run)
        if gathered >= _TOGETHER:
            yield group
            group, gathered = [], 0
    if group:
        yield group


def _along(vectors: np.ndarray) -> list[float]:
    import numpy as np

    if len(vectors) < 2:
        return []
    before, after = vectors.copy(), vectors.copy()
    before[1:] += _BEHIND * vectors[:-1]
    after[:-1] += _BEHIND * vectors[1:]
    products = (before[:-1] * after[1:]).sum(axis=1)
    norms = np.linalg.norm(before[:-1], axis=1) * np.linalg.norm(after[1:], axis=1)
    return [round(float(value), 3) for value in products / np.maximum(norms, 1e-9)]

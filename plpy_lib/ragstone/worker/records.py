"""A document on its way from claim to store, a class for each place where it waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ragstone.db.rows import Job, StoredDocument
from ragstone.reading.chunk import Chunk
from ragstone.stores.port import Snapshot


@dataclass(frozen=True, slots=True)
class InChild:
    """A document whose answer the child owes."""

    job: Job
    source: Snapshot


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document as chunks, between the child and the model.

    `hashes` are those of all chunks, `stored` those that the document has with their vectors.
    """

    job: Job
    document: StoredDocument
    chunks: Sequence[Chunk]
    hashes: Sequence[str]
    stored: frozenset[str]
    seconds_left: float

    @property
    def new_chunks(self) -> list[Chunk]:
        """The chunks that must be embedded."""
        pairs = zip(self.chunks, self.hashes, strict=True)
        return [chunk for chunk, hash_ in pairs if hash_ not in self.stored]


@dataclass(frozen=True, slots=True)
class InModel:
    """Documents whose vectors the model's process owes, if they have new chunks at all."""

    documents: Sequence[Prepared]
    is_sent: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that is over for now, with what its line in the log says of it."""

    outcome: str
    facts: Mapping[str, object]


@dataclass(slots=True)
class Tally:
    """What was done since the last report."""

    documents: int = 0
    chunks: int = 0
    tokens: int = 0

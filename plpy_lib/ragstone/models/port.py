"""The model port: what the rest of ragstone knows of a model, wherever and by whatever it is run.

Each provider is a module beside this one and a line in providers.py. Importing this module is
cheap: the first search of a session waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ragstone.errors import DocumentError, Stage

if TYPE_CHECKING:
    import numpy as np

Check = Callable[[], None]
"""Called before each step that cannot be interrupted; what it raises passes through."""


def no_check() -> None:
    """For callers that nobody cancels."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A row of rag.models: all that is needed to run the model, in whichever process.

    What `location` and `options` mean is the provider's alone. `sha256` is in hexadecimal.
    """

    name: str
    provider: str
    location: str
    dimension: int
    max_tokens: int
    passage_prefix: str = ""
    sha256: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """The form in which it is sent to a child."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        return cls(**data)


class ModelError(Exception):
    """A model did not give what was asked for; the text says why and names no folder.

    The class says what that means: ModelUnavailable to wait, ModelRefused never to try this again,
    TextTooLong to ask with less text.
    """

    code = "model_failed"
    permanent = False


class ModelUnavailable(ModelError):
    """Wait: the model cannot be used now, whatever it is asked; the same may work later."""


class ModelRefused(ModelError):
    """Never: the model works, and the same request would fail again."""

    code = "model_refused"
    permanent = True


class TextTooLong(ModelError):
    """A text has more tokens than the model reads; `tokens` may be a lower bound."""

    code = "text_too_long"
    permanent = True

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"text has at least {tokens} tokens, the model reads {limit}")
        self.tokens = tokens
        self.limit = limit


def document_error(error: ModelError, model: ModelSpec, stage: Stage) -> DocumentError:
    """What a model's error means for the document whose text it was asked about."""
    return DocumentError(
        error.code,
        f'the model "{model.name}" cannot be used',
        detail=f"{error}. Its location is {model.location}.",
        hint="This is a fault of the installation or of ragstone: select * from rag.check();",
        permanent=error.permanent,
        stage=stage,
    )


class TokenCounter(Protocol):
    """Measures text as a model does; the chunker needs nothing else of one.

    Where the provider does not publish its tokenizer this may be another's, which must never count
    fewer tokens than the model.
    """

    def count(self, text: str) -> int:
        """Number of tokens, special tokens included, however long the text is."""

    def split_to_fit(self, text: str, max_tokens: int) -> list[str]:
        """Consecutive pieces of at most `max_tokens` tokens each; joined they are the text.

        Raises ValueError where `max_tokens` leaves no room for a piece.
        """


@dataclass(frozen=True, slots=True)
class EmbeddedQuestion:
    """`is_cut` says that the model has read only the question's beginning."""

    vector: np.ndarray
    is_cut: bool


class EmbeddingModel(Protocol):
    """Texts to vectors. Texts come with the prefix that rag.models has for them.

    Raises ModelError as its subclasses say.
    """

    @property
    def dimension(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...

    def embed_passages(
        self, texts: Sequence[str], *, check: Check = no_check, truncate: bool = False
    ) -> np.ndarray:
        """Vectors of the texts in their order: float32 (n, dimension).

        A text over the limit raises TextTooLong, or with `truncate` counts by its beginning.
        """

    def embed_question(self, text: str, *, check: Check = no_check) -> EmbeddedQuestion:
        """The vector of a question; a long one is cut."""


class RerankingModel(Protocol):
    """Question and passage to a score, higher is better. Raises ModelError."""

    def scores(
        self, question: str, passages: Sequence[str], *, check: Check = no_check
    ) -> list[float]:
        """One score a passage, in their order."""


class Provider(Protocol):
    """What runs models of one kind. Loading may take long; models/providers.py does it once."""

    def embedder(self, model: ModelSpec) -> EmbeddingModel:
        """Raises ModelUnavailable."""

    def reranker(self, model: ModelSpec) -> RerankingModel:
        """Raises ModelUnavailable."""

    def token_counter(self, model: ModelSpec) -> TokenCounter:
        """Raises ModelUnavailable."""

    def files(self, model: ModelSpec) -> Sequence[Path]:
        """Files and folders that a process must be able to read to run the model."""

    def token_files(self, model: ModelSpec) -> Sequence[Path]:
        """The part of them that is enough to count its tokens."""

    def problem(self, model: ModelSpec, check: Check) -> str | None:
        """Why the model is not the one that was registered, None where it is."""

    def drawback(self, model: ModelSpec) -> str | None:
        """What makes the model dearer here than it need be, None where nothing does.

        Raises ModelUnavailable.
        """


def vector_literal(row: np.ndarray) -> str:
    """A vector in pgvector's text form, to six significant digits.

    What is lost changes a cosine by less than 1e-6, a thousandth of what int8 arithmetic does;
    the shortest digits that give the same float32 take four times as long.
    """
    values = row.tolist()
    return f"[{','.join(['%.6g'] * len(values)) % tuple(values)}]"

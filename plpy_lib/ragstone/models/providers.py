"""Which provider runs a model. A new provider is a module beside this one and a line here."""

from __future__ import annotations

from functools import cache

from ragstone.models.onnx import OnnxProvider
from ragstone.models.port import (
    EmbeddingModel,
    ModelSpec,
    ModelUnavailable,
    Provider,
    RerankingModel,
    TokenCounter,
)

PROVIDERS: dict[str, Provider] = {
    "onnx": OnnxProvider(),
}
"""By rag.models.provider."""


@cache
def embedder(model: ModelSpec) -> EmbeddingModel:
    """The model, loaded once a process. Raises ModelUnavailable."""
    return provider(model).embedder(model)


@cache
def reranker(model: ModelSpec) -> RerankingModel:
    """The model, loaded once a process. Raises ModelUnavailable."""
    return provider(model).reranker(model)


@cache
def token_counter(model: ModelSpec) -> TokenCounter:
    """What counts the model's tokens, loaded once a process. Raises ModelUnavailable."""
    return provider(model).token_counter(model)


def provider(model: ModelSpec) -> Provider:
    """What runs the model. Raises ModelUnavailable where there is no such provider."""
    try:
        return PROVIDERS[model.provider]
    except KeyError:
        known = ", ".join(sorted(PROVIDERS))
        raise ModelUnavailable(f'there is no provider "{model.provider}", only {known}') from None

"""Counting a model's tokens and splitting text by them, without onnxruntime.

Importing this module is cheap; the `tokenizers` library is loaded by `Tokenizer.load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

# No piece is longer, however few tokens it has. The library needs hundreds of bytes for a
# character, and the child that splits has 512 MB.
SPLIT_WINDOW_CHARACTERS = 65_536

# One Hangul syllable is up to three tokens after normalization; with less room than
# this beside the special tokens a piece could not hold even one character.
MIN_PIECE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer.json, with the truncation and padding saved in it switched off."""

    _tokenizer: tokenizers.Tokenizer
    special_tokens: int

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json; `path` is the file.

        Raises OSError if it can't be read, ValueError if it is not a tokenizer.
        """
        # Its thread pool would outlive the call and, in a backend, receive the server's signals.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import tokenizers

        content = path.read_text(encoding="utf-8")
        try:
            tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}") from error
        # The file carries truncation at 128 and fixed padding to 128.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, tokenizer.num_special_tokens_to_add(is_pair=False))

    def encode(self, text: str) -> list[int]:
        """Token ids, special tokens included, however long the text is."""
        return list(self._tokenizer.encode(_encodable(text)).ids)

    def encode_pair(self, first: str, second: str, max_tokens: int) -> tuple[list[int], list[int]]:
        """Token ids of both with special tokens, and which of the two each belongs to.

        Of a pair over `max_tokens` the longer text is cut first.
        """
        pair = self._tokenizer.encode(_encodable(first), _encodable(second))
        if len(pair.ids) > max_tokens:
            self._tokenizer.enable_truncation(max_tokens, strategy="longest_first")
            try:
                pair = self._tokenizer.encode(_encodable(first), _encodable(second))
            finally:
                self._tokenizer.no_truncation()
        return list(pair.ids), list(pair.type_ids)

    def count(self, text: str) -> int:
        """Number of tokens, special tokens included, however long the text is."""
        return len(self._tokenizer.encode(_encodable(text)))

    def split_to_fit(self, text: str, max_tokens: int) -> list[str]:
        """Split into consecutive pieces of at most `max_tokens` tokens, special ones included.

        No piece exceeds SPLIT_WINDOW_CHARACTERS characters either. The pieces joined are the
        text. Cuts fall before a token, where possible after whitespace, else between words.
        The empty text has no pieces.

        Raises ValueError if `max_tokens` is below MIN_PIECE_TOKENS.
        """
        if max_tokens < MIN_PIECE_TOKENS:
            raise ValueError(f"max_tokens is {max_tokens}, must be at least {MIN_PIECE_TOKENS}")
        return [
            piece
            for start, end in self._spans(text, max_tokens - self.special_tokens)
            for piece in self._halve(text[start:end], max_tokens)
        ]

    def _spans(self, text: str, budget: int) -> Iterator[tuple[int, int]]:
        start = 0
        while start < len(text):
            end = min(len(text), start + SPLIT_WINDOW_CHARACTERS)
            cuts = [start + cut for cut in self._cuts(text[start:end], budget)]
            if end == len(text) or not cuts:
                cuts.append(end)
            edges = [start, *cuts]
            yield from pairwise(edges)
            start = edges[-1]

    def _cuts(self, text: str, budget: int) -> list[int]:
        """Offsets at which to cut so that every piece but the last is full."""
        encoding = self._tokenizer.encode(_encodable(text), add_special_tokens=False)
        offsets, words = encoding.offsets, encoding.word_ids
        cuts: list[int] = []
        first = 0
        while len(offsets) - first > budget:
            first = _best_cut(offsets, words, first, first + budget)
            cuts.append(offsets[first][0])
        return cuts

    def _halve(self, text: str, max_tokens: int) -> list[str]:
        """The text, in halves if a cut inside a word gave it more tokens than it had in place."""
        if len(text) < 2 or self.count(text) <= max_tokens:
            return [text]
        middle = len(text) // 2
        return [
            *self._halve(text[:middle], max_tokens),
            *self._halve(text[middle:], max_tokens),
        ]


def _best_cut(
    offsets: Sequence[tuple[int, int]], words: Sequence[int | None], first: int, limit: int
) -> int:
    """The token before which to cut: the last in the second half of the piece after a gap."""
    earliest = first + (limit - first) // 2
    for index in range(limit, earliest, -1):
        if offsets[index][0] > offsets[index - 1][1]:
            return index
    for index in range(limit, earliest, -1):
        if words[index] != words[index - 1] and offsets[index][0] > offsets[index - 1][0]:
            return index
    for index in range(limit, first, -1):
        if offsets[index][0] > offsets[index - 1][0]:
            return index
    return limit


def _encodable(text: str) -> str:
    """The text with lone surrogates, which the library refuses, replaced one for one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text

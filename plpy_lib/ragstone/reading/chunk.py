"""Split a document's blocks into passages of a size that a model and a reader can take."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from typing import Literal

from ragstone.extract.model import Block
from ragstone.models.port import TokenCounter

# The time of semantic-text-splitter grows with the square of a text without line breaks (measured:
# 0.06 s for 100 kB, 5.4 s for 1 MB). So it gets this much at a time.
_WINDOW = 4_096
# A title or section path longer than this is shortened in the text that is embedded.
_MAX_LABEL = 200
# The smallest size to which any text can be split.
_MIN_ROOM = 8
# One in this many places between sentences counts as a drop in similarity.
_DROPS_ONE_IN = 4
_SHORT_COSTS = 0.5
_BREAK_COSTS = 0.05
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])(?<!\b[A-Za-z]\.)(?<!\b(?:Mr|Dr|St|vs|Nr|No)\.)(?P<closing>[\"'”’»)\]]*)\s+"
    r"(?=[^\s\da-zà-ÿ])|(?<=[。！？])|\n\n+"
)


@dataclass(frozen=True)
class ChunkSpec:
    """How to split. `size` and `overlap` count `unit`s of content; `max_tokens` is the model's.

    The defaults of 512 characters with 50 overlap are those of the system this one replaces.
    `template` makes the text to embed from `{title}`, `{section}` and `{content}`. Raises
    ValueError for values that make no sense.
    """

    strategy: str = "recursive"
    size: int = 512
    overlap: int = 50
    unit: Literal["characters", "tokens"] = "characters"
    max_tokens: int = 256
    template: str = "{content}"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"unknown chunk strategy {self.strategy!r}; there are {', '.join(STRATEGIES)}"
            )
        if self.unit not in ("characters", "tokens"):
            raise ValueError(f"unit is characters or tokens, not {self.unit!r}")
        if self.strategy == "fixed" and self.unit != "characters":
            raise ValueError("the strategy fixed counts characters")
        if self.size < 16 or not 0 <= self.overlap <= self.size // 2:
            raise ValueError("size must be at least 16, overlap between 0 and half of size")
        if self.max_tokens < 16:
            raise ValueError("max_tokens must be at least 16")
        if "{content}" not in self.template:
            raise ValueError("template must hold {content}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage. `content` is the text of the document, `embed_text` the text for the model.

    `char_count` is of `content`; `token_count` is of `embed_text` as the model sees it, special
    tokens included. Page and section are those of where the content starts.
    """

    content: str
    embed_text: str
    char_count: int
    token_count: int
    page_number: int | None
    section: str | None


@dataclass(frozen=True)
class _Passage:
    """A piece of a stretch. `prefix` is put before it, a text from elsewhere in the document."""

    stretch: _Stretch
    start: int
    text: str
    prefix: str = ""


class _Stretch:
    """Blocks joined into one text that remembers which block each place came from.

    `view` is the text as the splitter shall see it, place for place: a heading there runs on into
    its first sentence, since a break after it would leave it a passage of its own.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        parts: list[str] = []
        seen: list[str] = []
        self.starts: list[int] = []
        position = 0
        previous: Block | None = None
        for block in blocks:
            glue = "" if previous is None else _glue(previous, block)
            position += len(glue)
            self.starts.append(position)
            parts += (glue, block.text)
            runs_on = previous is not None and previous.kind == "heading"
            seen += (" " * len(glue) if runs_on else glue, block.text)
            position += len(block.text)
            previous = block
        self.text = "".join(parts)
        self.view = "".join(seen)

    def between(self, first: int, last: int) -> str:
        """The text of blocks `first` to `last`."""
        return self.text[self.starts[first] : self.starts[last] + len(self.blocks[last].text)]

    def block_at(self, position: int) -> Block:
        """The block at a place; for a heading the one below it, whose section is fuller."""
        index = max(0, bisect_right(self.starts, position) - 1)
        while self.blocks[index].kind == "heading" and index + 1 < len(self.blocks):
            index += 1
        return self.blocks[index]


Similarities = Callable[[Sequence[Sequence[str]]], list[list[float]]]
"""For each run of sentences, how similar neighbours in it are: one number fewer than sentences."""


def chunk(
    blocks: Sequence[Block],
    spec: ChunkSpec,
    tokenizer: TokenCounter,
    title: str | None,
    similarities: Similarities | None = None,
) -> list[Chunk]:
    """Split `blocks` as `spec` says. Every word of every block is in at least one chunk.

    A chunk whose text to embed would exceed `max_tokens` is split further. Takes time linear in
    the text. Raises ValueError where the strategy is semantic and `similarities` are not given.
    """
    strategy = STRATEGIES[spec.strategy]
    if strategy is _semantic:
        strategy = partial(_semantic, similarities=similarities)
    chunks: list[Chunk] = []
    for passage in strategy(blocks, spec, tokenizer):
        chunks += _fit(passage, spec, tokenizer, title)
    return chunks


def _recursive(
    blocks: Sequence[Block], spec: ChunkSpec, tokenizer: TokenCounter
) -> Iterator[_Passage]:
    """Split at the strongest break that fits: paragraph, line, sentence, word, character."""
    split, window = _splitter(spec, tokenizer)
    for stretch in _stretches(blocks):
        if len(stretch.text) <= spec.size and spec.unit == "characters":
            yield _Passage(stretch, 0, stretch.text)
            continue
        for start, piece in _in_windows(stretch.view, split, window):
            yield _Passage(stretch, start, stretch.text[start : start + len(piece)])


_Split = Callable[[str], list[tuple[int, str]]]


def _splitter(spec: ChunkSpec, tokenizer: TokenCounter) -> tuple[_Split, int]:
    """Return the splitter, and how many characters to give it at a time."""
    from semantic_text_splitter import TextSplitter

    overlap = min(spec.overlap, spec.size // 2)
    if spec.unit == "characters":
        return TextSplitter(spec.size, overlap).chunk_indices, max(_WINDOW, 8 * spec.size)
    splitter = TextSplitter.from_callback(tokenizer.count, spec.size, overlap)
    return splitter.chunk_indices, max(_WINDOW, 64 * spec.size)


def _fixed(blocks: Sequence[Block], spec: ChunkSpec, _: TokenCounter) -> Iterator[_Passage]:
    """Split after a fixed number of characters, also within words and across headings."""
    stretch = _Stretch(blocks)
    step = spec.size - spec.overlap
    for start in range(0, max(1, len(stretch.text) - spec.overlap), step):
        piece = stretch.text[start : start + spec.size]
        if text := piece.strip():
            yield _Passage(stretch, start + len(piece) - len(piece.lstrip()), text)


def _structure(
    blocks: Sequence[Block], spec: ChunkSpec, tokenizer: TokenCounter
) -> Iterator[_Passage]:
    """Split between paragraphs, lists, tables and listings; within one only if it is too long.

    A part of a table begins with the names of its columns. Only running text overlaps.
    """
    size_of = len if spec.unit == "characters" else tokenizer.count
    for stretch in _stretches(blocks):
        if len(stretch.text) <= spec.size or size_of(stretch.text) <= spec.size:
            yield _Passage(stretch, 0, stretch.text)
        else:
            yield from _packed(stretch, _parts(stretch), spec, tokenizer)


def _code(blocks: Sequence[Block], spec: ChunkSpec, tokenizer: TokenCounter) -> Iterator[_Passage]:
    """Keep definitions whole and those of one class together; split long ones at blank lines."""
    for _, group in groupby(blocks, lambda block: (block.section or "").split(" > ")[0]):
        stretch = _Stretch(list(group))
        yield from _packed(stretch, _definitions(stretch), spec, tokenizer)


def _auto(blocks: Sequence[Block], spec: ChunkSpec, tokenizer: TokenCounter) -> Iterator[_Passage]:
    """Split source code by its definitions, everything else by its structure."""
    is_code = all(block.kind == "code" for block in blocks)
    return (_code if is_code else _structure)(blocks, spec, tokenizer)


def _semantic(
    blocks: Sequence[Block],
    spec: ChunkSpec,
    tokenizer: TokenCounter,
    similarities: Similarities | None = None,
) -> Iterator[_Passage]:
    """Split where the meaning of sentences changes; lists, tables and listings as `structure`.

    Of all ways to break a stretch into passages that fit, the one whose breaks are between the
    least similar sentences: see `_best_begins`.
    """
    if similarities is None:
        raise ValueError("the strategy semantic needs a model")
    pieces = [p for stretch in _stretches(blocks) for p in _runs(stretch, spec, tokenizer)]
    runs = [piece for piece in pieces if isinstance(piece, _Run)]
    found = similarities([run.texts() for run in runs])
    known = sorted(similarity for each in found for similarity in each)
    usual = known[len(known) // _DROPS_ONE_IN] if known else 0.0
    drops = iter(found)
    for piece in pieces:
        if isinstance(piece, _Run):
            yield from _joined(piece, [s - usual for s in next(drops)], spec)
        else:
            yield piece


_Strategy = Callable[[Sequence[Block], ChunkSpec, TokenCounter], Iterator[_Passage]]
STRATEGIES: dict[str, _Strategy] = {
    "recursive": _recursive,
    "structure": _structure,
    "code": _code,
    "auto": _auto,
    "semantic": _semantic,
    "fixed": _fixed,
}


@dataclass(frozen=True)
class _Part:
    """Blocks `first` to `last` of a stretch, which belong together."""

    first: int
    last: int


def _parts(stretch: _Stretch) -> list[_Part]:
    """Group list items, rows or lines of code, and headings with the text below them."""
    parts: list[_Part] = []
    blocks = stretch.blocks
    for index, block in enumerate(blocks):
        before = blocks[index - 1] if index else None
        joins = before is not None and (
            before.kind == "heading"
            or block.continues
            or (block.kind == before.kind and block.kind in ("list", "table", "code"))
            or (block.kind in ("list", "table", "code") and before.text.endswith(":"))
        )
        if joins and parts:
            parts[-1] = _Part(parts[-1].first, index)
        else:
            parts.append(_Part(index, index))
    return parts


def _definitions(stretch: _Stretch) -> list[_Part]:
    """Neighbouring blocks of the same definition."""
    parts: list[_Part] = []
    for index, block in enumerate(stretch.blocks):
        if parts and stretch.blocks[index - 1].section == block.section:
            parts[-1] = _Part(parts[-1].first, index)
        else:
            parts.append(_Part(index, index))
    return parts


def _packed(
    stretch: _Stretch, parts: Sequence[_Part], spec: ChunkSpec, tokenizer: TokenCounter
) -> Iterator[_Passage]:
    """Join as many neighbouring parts as there is room for."""
    fits = _fits(spec, tokenizer)
    open_part: _Part | None = None
    for part in parts:
        wider = part if open_part is None else _Part(open_part.first, part.last)
        if fits(stretch.between(wider.first, wider.last)):
            open_part = wider
            continue
        if open_part is not None:
            yield _passage(stretch, open_part)
        open_part = part if fits(stretch.between(part.first, part.last)) else None
        if open_part is None:
            yield from _broken(stretch, part, spec, tokenizer)
    if open_part is not None:
        yield _passage(stretch, open_part)


# --- by meaning --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """Sentences of one stretch that follow each other: their places in its text, their sizes.

    Where sizes are in tokens they add up; in characters what is between sentences counts, too.
    """

    stretch: _Stretch
    places: list[tuple[int, int]]
    tokens: list[int] | None

    def text(self, first: int, last: int) -> str:
        """The text of sentences `first` to `last`."""
        return self.stretch.text[self.places[first][0] : self.places[last][1]]

    def texts(self) -> list[str]:
        return [self.stretch.text[start:end] for start, end in self.places]

    def size(self, first: int, last: int) -> int:
        if self.tokens is not None:
            return sum(self.tokens[first : last + 1])
        return self.places[last][1] - self.places[first][0]


def _runs(stretch: _Stretch, spec: ChunkSpec, tokenizer: TokenCounter) -> Iterator[_Run | _Passage]:
    """The stretch as runs of sentences; other text that does not fit comes as passages."""
    fits = _fits(spec, tokenizer)
    places: list[tuple[int, int]] = []
    for part in _parts(stretch):
        start, text = stretch.starts[part.first], stretch.between(part.first, part.last)
        if stretch.blocks[part.last].kind in ("paragraph", "heading"):
            for first, last in _sentences(text):
                places += _bounded(stretch, start + first, start + last, spec, tokenizer)
        elif fits(text):
            places.append((start, start + len(text)))
        else:
            if places:
                yield _run(stretch, places, spec, tokenizer)
            places = []
            yield from _broken(stretch, part, spec, tokenizer)
    if places:
        yield _run(stretch, places, spec, tokenizer)


def _run(
    stretch: _Stretch, places: list[tuple[int, int]], spec: ChunkSpec, tokenizer: TokenCounter
) -> _Run:
    if spec.unit == "characters":
        return _Run(stretch, places, None)
    return _Run(stretch, places, [tokenizer.count(stretch.text[a:b]) for a, b in places])


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Where each sentence begins and ends. A heading's line belongs to its first sentence."""
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if match.end() < len(text):
            yield start, match.end("closing") if match["closing"] else match.start()
            start = match.end()
    if text[start:].strip():
        yield start, len(text)


def _bounded(
    stretch: _Stretch,
    start: int,
    end: int,
    spec: ChunkSpec,
    tokenizer: TokenCounter,
) -> Iterator[tuple[int, int]]:
    """A sentence, or its pieces without overlap if it is too long for a chunk."""
    if _fits(spec, tokenizer)(stretch.text[start:end]):
        yield start, end
        return
    split, window = _splitter(replace(spec, overlap=0), tokenizer)
    for offset, piece in _in_windows(stretch.view[start:end], split, window):
        yield start + offset, start + offset + len(piece)


def _joined(run: _Run, drops: Sequence[float], spec: ChunkSpec) -> Iterator[_Passage]:
    """The passages of a run, each with the sentences that it repeats if there is room for them."""
    leads = [_lead(run, begin, drops, spec) for begin in range(len(run.places))]
    begins = _best_begins(run, leads, drops, spec)
    for begin, after in pairwise([*begins, len(run.places)]):
        first = leads[begin] if run.size(leads[begin], after - 1) <= spec.size else begin
        yield _Passage(run.stretch, run.places[first][0], run.text(first, after - 1))


def _lead(run: _Run, begin: int, drops: Sequence[float], spec: ChunkSpec) -> int:
    """The first sentence that a passage repeats: none where the meaning changes before it."""
    first = begin
    if begin and drops[begin - 1] >= 0:
        while first and run.size(first - 1, begin - 1) <= spec.overlap:
            first -= 1
    return first


def _best_begins(
    run: _Run, leads: Sequence[int], drops: Sequence[float], spec: ChunkSpec
) -> list[int]:
    """The sentences at which passages begin, so that their total cost is smallest.

    A break costs by how much its sides are more similar than at the document's larger drops, and
    is worth something where they are less; and each costs a little, since a reader is better off
    with the whole; a passage below a quarter of the size costs, too, since it says little. Found
    from the front: for each sentence the best way to end there.
    """
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(run.places) + 1):
        options: list[tuple[float, int]] = []
        for begin in range(end - 1, -1, -1):
            if begin < end - 1 and run.size(begin, end - 1) > spec.size:
                break
            size = run.size(leads[begin], end - 1)
            if begin < end - 1 and size > spec.size:
                continue
            cost = best[begin][0] + _SHORT_COSTS * max(0.0, 1 - 4 * size / spec.size)
            if begin:
                cost += _BREAK_COSTS + drops[begin - 1]
            options.append((round(cost, 6), begin))
        best.append(min(options))
    begins = []
    place = len(run.places)
    while place > 0:
        place = best[place][1]
        begins.append(place)
    return begins[::-1]


def _fits(spec: ChunkSpec, tokenizer: TokenCounter) -> Callable[[str], bool]:
    if spec.unit == "characters":
        return lambda text: len(text) <= spec.size
    # A token has few characters. So a text that is far too long need not be counted.
    return lambda text: len(text) <= 16 * spec.size and tokenizer.count(text) <= spec.size


def _passage(stretch: _Stretch, part: _Part) -> _Passage:
    return _Passage(stretch, stretch.starts[part.first], stretch.between(part.first, part.last))


def _broken(
    stretch: _Stretch, part: _Part, spec: ChunkSpec, tokenizer: TokenCounter
) -> Iterator[_Passage]:
    """Split a part that is too long for one chunk, by its blocks or within a block by sentences."""
    if part.first == part.last:
        yield from _by_sentences(stretch, part.first, spec, tokenizer)
        return
    header = stretch.blocks[part.last].header
    header = header if header and 4 * len(header) <= spec.size else None
    room = replace(spec, size=spec.size - len(header) - 1) if header else spec
    first, last = part.first, part.last
    while first < last and stretch.blocks[first].kind == "heading":
        first += 1  # a heading stays with what comes after it
    single = [
        _Part(part.first, first),
        *(_Part(index, index) for index in range(first + 1, last + 1)),
    ]
    for passage in _packed_singly(stretch, single, room, tokenizer):
        lead = stretch.block_at(passage.start).header
        repeats = header is not None and lead is not None
        yield replace(passage, prefix=f"{header}\n") if repeats else passage


def _packed_singly(
    stretch: _Stretch, parts: Sequence[_Part], spec: ChunkSpec, tokenizer: TokenCounter
) -> Iterator[_Passage]:
    """Like `_packed`, for parts that can only be broken by sentences."""
    fits = _fits(spec, tokenizer)
    gathered: list[_Part] = []
    for part in parts:
        if gathered and fits(stretch.between(gathered[0].first, part.last)):
            gathered.append(part)
            continue
        if gathered:
            yield _passage(stretch, _Part(gathered[0].first, gathered[-1].last))
        gathered = [part] if fits(stretch.between(part.first, part.last)) else []
        if not gathered:
            yield from _by_sentences(stretch, part.first, spec, tokenizer, part.last)
    if gathered:
        yield _passage(stretch, _Part(gathered[0].first, gathered[-1].last))


def _by_sentences(
    stretch: _Stretch, first: int, spec: ChunkSpec, tokenizer: TokenCounter, last: int | None = None
) -> Iterator[_Passage]:
    split, window = _splitter(spec, tokenizer)
    start = stretch.starts[first]
    text = stretch.between(first, first if last is None else last)
    view = stretch.view[start : start + len(text)]
    for offset, piece in _in_windows(view, split, window):
        yield _Passage(stretch, start + offset, text[offset : offset + len(piece)])


def _stretches(blocks: Sequence[Block]) -> Iterator[_Stretch]:
    """What may share a chunk: blocks of one section and page.

    A passage about two subjects is found by neither, and one that is cited for a page must be on
    it. Only a sentence may run over a page break, and a heading goes with what comes after it.
    """
    gathered: list[Block] = []
    for block in blocks:
        before = gathered[-1] if gathered else None
        if before is not None and not _belong_together(before, block):
            yield _Stretch(gathered)
            gathered = []
        gathered.append(block)
    if gathered:
        yield _Stretch(gathered)


def _belong_together(before: Block, after: Block) -> bool:
    if before.kind == "heading" or after.continues:
        return True
    return (before.section, before.page) == (after.section, after.page)


def _glue(before: Block, after: Block) -> str:
    if after.continues:
        return " "
    same = before.kind == after.kind
    if same and after.kind in ("list", "table", "code"):
        return "\n"
    return "\n" if before.kind == "heading" else "\n\n"


def _in_windows(text: str, split: _Split, window: int) -> Iterator[tuple[int, str]]:
    """The pieces that `split` makes of `text`, without ever giving it more than a window.

    The last piece of a window was cut by the window's end, so the next window starts with it.
    """
    position = 0
    while position < len(text):
        pieces = split(text[position : position + window])
        if position + window >= len(text) or len(pieces) < 2:
            kept, advance = pieces, window
        else:
            kept, advance = pieces[:-1], pieces[-1][0]
        for start, piece in kept:
            yield position + start, piece
        position += max(1, advance)


def _fit(
    passage: _Passage, spec: ChunkSpec, tokenizer: TokenCounter, title: str | None
) -> Iterator[Chunk]:
    """The passage as chunks: several if it is too long for the model."""
    render = _renderer(spec, tokenizer, title, passage.stretch.block_at(passage.start).section)
    pending = [(passage.start, passage.text)]
    while pending:
        start, content = pending.pop()
        content = passage.prefix + content
        embed_text = render(content)
        tokens = tokenizer.count(embed_text)
        if tokens > spec.max_tokens:
            room = max(_MIN_ROOM, spec.max_tokens - tokens + tokenizer.count(content))
            pieces = _split_content(content, room, tokenizer)
            if len(pieces) > 1:
                pending += reversed(list(_located(pieces, content, start - len(passage.prefix))))
                passage = replace(passage, prefix="")
                continue
        block = passage.stretch.block_at(start)
        yield Chunk(content, embed_text, len(content), tokens, block.page, block.section)


def keep_cut(
    blocks: Sequence[Block], spec: ChunkSpec, tokenizer: TokenCounter, title: str | None
) -> list[Chunk] | None:
    """A chunk for each block, which was split before; None if one is too long for the model."""
    chunks = []
    for block in blocks:
        embed_text = _renderer(spec, tokenizer, title, block.section)(block.text)
        tokens = tokenizer.count(embed_text)
        if tokens > spec.max_tokens:
            return None
        size = len(block.text)
        chunks.append(Chunk(block.text, embed_text, size, tokens, block.page, block.section))
    return chunks


def _located(pieces: list[str], content: str, start: int) -> Iterator[tuple[int, str]]:
    """Each piece with its position in the stretch, from which its page is taken."""
    position = 0
    for piece in pieces:
        found = content.find(piece, position)
        position = found if found >= 0 else position
        yield start + position, piece
        position += len(piece)


def _split_content(content: str, room: int, tokenizer: TokenCounter) -> list[str]:
    pieces = [piece for part in tokenizer.split_to_fit(content, room) if (piece := part.strip())]
    if len(pieces) > 1 or len(content) < 2:
        return pieces or [content]
    # Tokens can merge differently where template and text meet. Then the text is halved.
    middle = content.rfind(" ", 1, len(content) // 2 + 1)
    middle = middle if middle > 0 else len(content) // 2
    return [piece for part in (content[:middle], content[middle:]) if (piece := part.strip())]


_FIELD = re.compile(r"\{(title|section|content)\}")


def _renderer(
    spec: ChunkSpec, tokenizer: TokenCounter, title: str | None, section: str | None
) -> Callable[[str], str]:
    """Make the text to embed. Labels that would leave too little room for content are left out."""
    if spec.template == "{content}":
        return lambda content: content
    labels = {"title": (title or "")[:_MAX_LABEL], "section": (section or "")[-_MAX_LABEL:]}

    def render(content: str) -> str:
        # The first passage mostly begins with the title, which need not be repeated.
        shown = {name: "" if content.startswith(label) else label for name, label in labels.items()}
        values = {**shown, "content": content}
        return _FIELD.sub(lambda match: values[match[1]], spec.template).strip()

    for label in ("title", "section"):
        if tokenizer.count(render("")) > spec.max_tokens // 2:
            labels[label] = ""
    if tokenizer.count(render("")) > spec.max_tokens // 2:
        return lambda content: content
    return render

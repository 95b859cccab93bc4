"""Splitting into passages: nothing lost, nothing too long, each with its page and section."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Sequence

import pytest

from ragstone.extract.model import Block
from ragstone.reading.chunk import Chunk, ChunkSpec, _sentences, chunk


class WordTokenizer:
    """Words and punctuation are tokens, a long word is one for every eight letters; plus two."""

    _token = re.compile(r"\w{1,8}|[^\w\s]")

    def count(self, text: str) -> int:
        return len(self._token.findall(text)) + 2

    def split_to_fit(self, text: str, max_tokens: int) -> list[str]:
        starts = [match.start() for match in self._token.finditer(text)][:: max_tokens - 2]
        edges = [0, *starts[1:], len(text)]
        return [text[a:b] for a, b in itertools.pairwise(edges)]


def split(blocks: Sequence[Block], spec: ChunkSpec | None = None, title: str = "") -> list[Chunk]:
    return chunk(blocks, spec or ChunkSpec(), WordTokenizer(), title or None, shared_words)


def shared_words(runs: Sequence[Sequence[str]]) -> list[list[float]]:
    """In place of a model: the share of words that neighbouring sentences have in common."""
    sets = [[set(re.findall(r"[a-z]+", text.lower())) for text in run] for run in runs]
    return [
        [len(one & other) / max(1, len(one | other)) for one, other in itertools.pairwise(run)]
        for run in sets
    ]


def sentences(count: int, seed: int = 1) -> str:
    pick = random.Random(seed)
    words = ["river", "stone", "harbour", "light", "winter", "signal", "copper", "meadow"]
    return " ".join(
        " ".join(pick.choices(words, k=9)).capitalize() + f" {number}." for number in range(count)
    )


def test_a_short_document_is_one_chunk_as_it_stands() -> None:
    (only,) = split([Block("One."), Block("Two.")])
    assert only.content == only.embed_text == "One.\n\nTwo."
    assert (only.char_count, only.token_count) == (10, 6)


@pytest.mark.parametrize(
    "strategy", ["recursive", "structure", "code", "auto", "semantic", "fixed"]
)
@pytest.mark.parametrize("size", [64, 512, 3_000])
def test_no_word_is_lost_and_no_chunk_is_too_long(strategy: str, size: int) -> None:
    blocks = [Block(sentences(count, count)) for count in (1, 40, 3, 200)]
    spec = ChunkSpec(strategy, size=size, overlap=size // 10, max_tokens=100)
    chunks = split(blocks, spec)
    whole = " ".join(chunk.content for chunk in chunks)
    for number in range(200) if strategy != "fixed" else ():
        assert re.search(rf"\b{number}\b", whole)
    letters = re.sub(r"\s", "", blocks[1].text)
    assert letters[:30] in re.sub(r"\s", "", whole)
    assert all(len(each.content) <= size for each in chunks)
    assert all(each.token_count <= 100 for each in chunks)
    assert all(each.char_count == len(each.content) for each in chunks)


def test_neighbouring_chunks_overlap() -> None:
    chunks = split([Block(sentences(100))], ChunkSpec(overlap=100))
    overlaps = [a.content[-20:] in b.content for a, b in itertools.pairwise(chunks)]
    assert sum(overlaps) > 0.8 * len(overlaps)


def test_a_chunk_has_the_page_on_which_it_starts() -> None:
    blocks = [Block(f"START{page} " + sentences(12, page), page=page) for page in range(1, 9)]
    for each in split(blocks):
        if match := re.match(r"START(\d)", each.content):
            assert each.page_number == int(match[1])
    assert {each.page_number for each in split(blocks)} == set(range(1, 9))


def test_the_page_is_right_too_where_the_model_forces_a_split() -> None:
    blocks = [Block(f"START{page} " + sentences(6, page), page=page) for page in range(1, 9)]
    chunks = split(blocks, ChunkSpec(size=20_000, overlap=0, max_tokens=60))
    assert {each.page_number for each in chunks} == set(range(1, 9))


def test_a_section_ends_its_chunk() -> None:
    blocks = [
        Block(sentences(5, 1), section="A"),
        Block("B", section="B", kind="heading", level=1),
        Block(sentences(5, 2), section="B"),
    ]
    chunks = split(blocks)
    assert [each.section for each in chunks] == ["A", "B"]
    assert chunks[1].content.startswith("B\nR") or chunks[1].content.startswith("B\n")


def test_a_passage_is_cited_for_its_own_section_and_page_however_short() -> None:
    blocks = []
    for page, name in enumerate("ABC", start=1):
        blocks.append(Block(name, page=page, section=name, kind="heading", level=1))
        blocks.append(Block(f"Just a line on {name}.", page=page, section=name))
    chunks = split(blocks)
    assert [(c.section, c.page_number) for c in chunks] == [("A", 1), ("B", 2), ("C", 3)]


@pytest.mark.parametrize("count", [1, 5, 12, 100])
def test_a_heading_is_never_a_passage_of_its_own(count: int) -> None:
    blocks = [
        Block("2 Materials", section="2 Materials", kind="heading", level=1),
        Block("2.1 Copper", section="2 Materials > 2.1 Copper", kind="heading", level=2),
        Block(sentences(count), section="2 Materials > 2.1 Copper"),
    ]
    first = split(blocks)[0]
    assert first.content.startswith("2 Materials\n2.1 Copper\n")
    assert first.section == "2 Materials > 2.1 Copper"
    assert len(first.content) > 60


def test_a_paragraph_carried_over_a_page_reads_on() -> None:
    blocks = [Block("The end of", page=1), Block("the sentence.", page=2, continues=True)]
    assert split(blocks)[0].content == "The end of the sentence."


def test_rows_and_items_stay_lines() -> None:
    blocks = [Block("a | b", kind="table"), Block("c | d", kind="table"), Block("- x", kind="list")]
    assert split(blocks)[0].content == "a | b\nc | d\n\n- x"


def test_the_template_decides_what_is_embedded_not_what_is_stored() -> None:
    spec = ChunkSpec(template="{title}: {section}\n{content}")
    (only,) = split([Block("Text {title}.", section="S")], spec, title="T {content}")
    assert only.content == "Text {title}."
    assert only.embed_text == "T {content}: S\nText {title}."
    assert only.token_count == WordTokenizer().count(only.embed_text)


def test_a_huge_title_does_not_crowd_out_the_content() -> None:
    spec = ChunkSpec(template="{title}\n{content}", max_tokens=32)
    chunks = split([Block(sentences(30))], spec, title="x! " * 500)
    assert all(each.token_count <= 32 for each in chunks)
    assert "river" in "".join(each.embed_text.lower() for each in chunks)


# --- by structure ------------------------------------------------------------------------------


def table(rows: int) -> list[Block]:
    header = "lamp | state"
    body = [Block(f"lamp {n} | whole", kind="table", header=header) for n in range(rows)]
    return [Block(header, kind="table"), *body]


def test_every_part_of_a_table_names_its_columns() -> None:
    chunks = split(table(100), ChunkSpec("structure", size=200))
    assert len(chunks) > 5
    assert all(each.content.startswith("lamp | state\n") for each in chunks)
    assert all(len(each.content) <= 200 for each in chunks)
    rows = [line for each in chunks for line in each.content.splitlines()[1:]]
    assert rows == [f"lamp {n} | whole" for n in range(100)]


def test_a_list_stays_with_the_sentence_that_announces_it() -> None:
    blocks = [
        Block(sentences(6)),
        Block("Bring these:"),
        *(Block(f"- thing number {n}", kind="list") for n in range(8)),
    ]
    chunks = split(blocks, ChunkSpec("structure"))
    assert chunks[-1].content.startswith("Bring these:")
    assert chunks[-1].content.count("- thing") == 8


def test_a_listing_is_not_torn_where_it_fits() -> None:
    code = "\n".join(f"    step({n})" for n in range(20))
    blocks = [Block(sentences(8)), Block(code, kind="code"), Block(sentences(8, 2))]
    chunks = split(blocks, ChunkSpec("structure"))
    assert any(code.strip() in each.content for each in chunks)


def test_a_heading_goes_with_the_rows_below_it() -> None:
    blocks = [Block("Lamps", kind="heading", level=1, section="Lamps"), *table(60)]
    blocks = [Block(b.text, None, "Lamps", b.kind, b.level, False, b.header) for b in blocks]
    first = split(blocks, ChunkSpec("structure", size=200))[0]
    assert first.content.startswith("Lamps\nlamp | state")


def test_definitions_stay_whole() -> None:
    def function(name: str) -> list[Block]:
        body = "\n".join(f"    {name}_{n}()" for n in range(12))
        return [Block(f"def {name}():\n{body}", section=f"A > {name}", kind="code")]

    chunks = split(
        [*function("one"), *function("two"), *function("three")], ChunkSpec("auto", size=400)
    )
    assert [each.section for each in chunks] == ["A > one", "A > three"]
    assert chunks[0].content.count("def ") == 2


def test_a_row_longer_than_a_chunk_is_split_and_nothing_of_it_lost() -> None:
    blocks = [Block("a | b", kind="table")]
    blocks += [Block(sentences(40), kind="table", header="a | b"), *table(3)]
    chunks = split(blocks, ChunkSpec("structure", size=200, overlap=0))
    whole = " ".join(each.content for each in chunks)
    assert all(re.search(rf"\b{n}\.", whole) for n in range(40))
    assert all(len(each.content) <= 200 for each in chunks)


@pytest.mark.parametrize(
    "text",
    ["word " * 400_000, "x" * 2_000_000, "漢字" * 500_000, "a-b-" * 500_000, sentences(30_000)],
    ids=["words", "letters", "cjk", "hyphens", "sentences"],
)
def test_megabytes_on_one_line_take_time_linear_in_their_length(text: str) -> None:
    def seconds(part: str) -> float:
        started = time.process_time()
        assert split([Block(part)])
        return time.process_time() - started

    seconds(text[:50_000])  # loads the splitter
    small, large = seconds(text[: len(text) // 8]), seconds(text)
    assert large < 20 * small + 0.5
    assert large < 20


def test_sizes_in_tokens_are_kept() -> None:
    chunks = split([Block(sentences(100))], ChunkSpec(size=40, overlap=5, unit="tokens"))
    assert all(each.token_count <= 40 for each in chunks)
    assert max(each.token_count for each in chunks) > 25


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "magic"},
        {"unit": "pages"},
        {"size": 0},
        {"overlap": 400},
        {"overlap": -1},
        {"max_tokens": 3},
        {"template": "{title}"},
    ],
)
def test_a_senseless_specification_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ChunkSpec(**options)  # type: ignore[arg-type]


def test_nothing_gives_nothing() -> None:
    assert split([]) == []


# --- by meaning --------------------------------------------------------------------------------

LAMPS = [f"The lamp of the lighthouse burns with oil number {name}." for name in ("one", "two")] * 2
SOUP = [f"Fish soup with leek is cooked for hours by {name}." for name in ("Ann", "Bob")] * 2


def test_a_break_is_where_the_meaning_changes_though_more_would_fit() -> None:
    blocks = [Block(" ".join(LAMPS + SOUP))]
    chunks = split(blocks, ChunkSpec("semantic", size=450))
    assert [each.content for each in chunks] == [" ".join(LAMPS), " ".join(SOUP)]
    lamps = split(blocks, ChunkSpec("recursive", size=450))[0].content
    assert "Fish" in lamps


def test_what_means_the_same_stays_together_up_to_the_size_and_overlaps() -> None:
    blocks = [Block(" ".join(LAMPS * 3))]
    chunks = split(blocks, ChunkSpec("semantic", size=300, overlap=60))
    assert len(chunks) == 3
    assert all(len(each.content) <= 300 for each in chunks)
    for before, after in itertools.pairwise(chunks):
        assert after.content[:50] in before.content[-60:]


def test_a_heading_stays_with_its_sentence_and_a_section_is_not_left() -> None:
    blocks = [
        Block("Lamps", section="Lamps", kind="heading", level=1),
        Block(" ".join(LAMPS), section="Lamps"),
        Block("Oil", section="Oil", kind="heading", level=1),
        Block(LAMPS[0], section="Oil"),
    ]
    chunks = split(blocks, ChunkSpec("semantic", size=1_000))
    assert [(each.section, each.content.split("\n")[0]) for each in chunks] == [
        ("Lamps", "Lamps"),
        ("Oil", "Oil"),
    ]


def test_tables_and_listings_are_not_broken_by_meaning() -> None:
    rows = [Block(f"{n} | word {n}", kind="table", header="no | word") for n in range(60)]
    blocks = [Block(LAMPS[0]), *rows, Block(SOUP[0])]
    chunks = split(blocks, ChunkSpec("semantic", size=200, overlap=0))
    assert chunks[0].content == LAMPS[0]
    assert all("no | word" in each.content for each in chunks[2:-1])
    assert chunks[-1].content == SOUP[0]


def test_sizes_in_tokens_bound_what_is_put_together() -> None:
    chunks = split(
        [Block(sentences(60))], ChunkSpec("semantic", size=40, overlap=10, unit="tokens")
    )
    assert len(chunks) > 5
    assert all(WordTokenizer().count(each.content) <= 42 for each in chunks)


def test_without_a_model_nothing_can_be_compared() -> None:
    with pytest.raises(ValueError, match="model"):
        chunk([Block("One.")], ChunkSpec("semantic"), WordTokenizer(), None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He came. She left.", ["He came.", "She left."]),
        ("“He came.” She left.", ["“He came.”", "She left."]),
        ("Mr. Smith met J. R. Miller. Fine.", ["Mr. Smith met J. R. Miller.", "Fine."]),
        ("It is 3.5 m, e.g. here. And there.", ["It is 3.5 m, e.g. here.", "And there."]),
        ("灯台の光。海は静か。", ["灯台の光。", "海は静か。"]),
        ("No end", ["No end"]),
    ],
)
def test_sentences_end_where_a_reader_says_so(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in _sentences(text)] == expected

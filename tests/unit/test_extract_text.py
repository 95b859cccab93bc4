"""Plain text, Markdown, web pages and source code, and how a format is recognised."""

from __future__ import annotations

import pytest

from ragstone.errors import DocumentError
from ragstone.extract import Extracted, Limits, clean_text, extract


def read(data: bytes | str, name: str) -> Extracted:
    return extract(data.encode() if isinstance(data, str) else data, name, Limits())


def texts(data: bytes | str, name: str) -> list[str]:
    return [block.text for block in read(data, name).blocks]


# --- cleaning ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\x00b", "ab"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("so\u00adft", "soft"),
        ("e\u0301", "é"),
        ("a\u00a0 \t b", "a b"),
        ("a  \r\n\r\n\r\n\r\n b", "a\n\nb"),
        ("\ufeffmark", "mark"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("bell\x07", "bell"),
    ],
)
def test_text_is_what_postgresql_takes_and_a_reader_sees(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean
    assert "\x00" not in clean_text(raw, keep_indent=True)


# --- plain text --------------------------------------------------------------------------------

ENCODED = [
    ("Grüße aus Köln – über größere Straßen und schöne Häuser.\n" * 8, "utf-8"),
    ("Grüße aus Köln, über größere Straßen und schöne Häuser.\n" * 8, "utf-16"),
    ("Grüße aus Köln, über größere Straßen und schöne Häuser.\n" * 8, "utf-16-le"),
    ("Grüße aus Köln, über größere Straßen und schöne Häuser.\n" * 8, "utf-32"),
    ("Grüße aus Köln, über größere Straßen und schöne Häuser.\n" * 8, "windows-1252"),
    ("吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。\n" * 8, "shift_jis"),
    ("Все счастливые семьи похожи друг на друга, каждая по-своему.\n" * 8, "koi8-r"),
    ("Все счастливые семьи похожи друг на друга, каждая по-своему.\n" * 8, "windows-1251"),
    ("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁\n" * 8, "gb18030"),
]


@pytest.mark.parametrize(("text", "encoding"), ENCODED, ids=[item[1] for item in ENCODED])
def test_text_in_an_old_encoding_is_legible(text: str, encoding: str) -> None:
    assert texts(text.encode(encoding), "notes.txt") == [text.strip()]


def test_one_broken_byte_does_not_make_a_text_another_encoding() -> None:
    data = ("Grüße aus Köln. " * 50).encode() + b"\xff" + (" Schöne Häuser." * 50).encode()
    assert "Grüße" in texts(data, "a.txt")[0]


def test_nuls_in_a_text_do_not_lose_it() -> None:
    assert texts(b"before\x00after " * 3 + b"x" * 500, "a.txt")[0].startswith("beforeafter")


def test_form_feeds_are_pages() -> None:
    found = read("one\n\f\ntwo\n\f\nthree", "rfc.txt")
    assert [(block.text, block.page) for block in found.blocks] == [
        ("one", 1), ("two", 2), ("three", 3),
    ]  # fmt: skip
    assert found.pages == 3


@pytest.mark.parametrize("data", [bytes(range(256)) * 40, b"\x7fELF" + bytes(100)])
@pytest.mark.parametrize("name", ["a.txt", "a", "a.xyz"])
def test_binary_rubbish_is_refused(data: bytes, name: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(data, name)
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("data", [b"", b" \n\t "])
def test_an_empty_file_is_empty(data: bytes) -> None:
    with pytest.raises(DocumentError) as caught:
        read(data, "a.txt")
    assert caught.value.code == "empty"


# --- Markdown ----------------------------------------------------------------------------------

MARKDOWN = """---
title: "Harbour Notes"
author: A. Keeper
---
# 1 Intro

Some *words* with a [link](http://example.org) and `code`,
on two lines.

## 1.1 Scope

- first
- second
  1. inner

```python
def light():
    pass
```

| name | count |
|------|-------|
| lamp | 12    |
"""


def test_markdown_keeps_its_structure() -> None:
    found = read(MARKDOWN, "a.md")
    assert (found.title, found.author) == ("Harbour Notes", "A. Keeper")
    scope = "1 Intro > 1.1 Scope"
    assert [(block.text, block.kind, block.section) for block in found.blocks] == [
        ("1 Intro", "heading", "1 Intro"),
        ("Some words with a link and code, on two lines.", "paragraph", "1 Intro"),
        ("1.1 Scope", "heading", scope),
        ("- first", "list", scope),
        ("- second", "list", scope),
        ("1. inner", "list", scope),
        ("def light():\n    pass", "code", scope),
        ("name | count", "table", scope),
        ("lamp | 12", "table", scope),
    ]


# --- web pages ---------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html><html lang="en"><head><title>Harbour &amp; Light</title>
<meta name="author" content="A. Keeper"><style>p {}</style></head><body>
<nav><a href="/">Home</a></nav><script>var secret = 1;</script>
<h1>1 Intro</h1><p>Some <b>bold</b>
words<br>and more.</p><div>Loose <p>nested</p> tail</div>
<h2>1.1 Scope</h2><ul><li>first</li><li>second</li></ul>
<table><tr><th>name</th><th>count</th></tr><tr><td>lamp</td><td>12</td></tr></table>
<pre>def light():
    pass</pre><p hidden>invisible</p></body></html>"""


def test_a_web_page_is_what_a_reader_sees() -> None:
    found = read(PAGE, "a.html")
    assert (found.title, found.author, found.language) == ("Harbour & Light", "A. Keeper", "en")
    assert [(block.text, block.kind) for block in found.blocks] == [
        ("1 Intro", "heading"),
        ("Some bold words\nand more.", "paragraph"),
        ("Loose", "paragraph"),
        ("nested", "paragraph"),
        ("tail", "paragraph"),
        ("1.1 Scope", "heading"),
        ("- first", "list"),
        ("- second", "list"),
        ("name | count", "table"),
        ("lamp | 12", "table"),
        ("def light():\n    pass", "code"),
    ]
    assert found.blocks[-1].section == "1 Intro > 1.1 Scope"


def test_a_web_page_is_known_by_content_whatever_its_name() -> None:
    assert read(PAGE, "error.pdf").mime_type == "text/html"
    assert read(PAGE, "noname").mime_type == "text/html"


def test_the_declared_encoding_of_a_page_counts() -> None:
    page = '<html><head><meta charset="windows-1251"></head><body>Привет</body></html>'
    assert texts(page.encode("windows-1251"), "a.html") == ["Привет"]


def test_a_page_fetches_nothing_and_expands_nothing() -> None:
    page = '<!DOCTYPE html SYSTEM "http://localhost:1/x"><html><body>&xxe; text</body></html>'
    assert "text" in texts(page, "a.html")[0]


# --- source code -------------------------------------------------------------------------------

PYTHON = '''"""Module."""
import os


class Queue:
    """A queue."""

    def claim(self):
        return 1


@cached
def light():
    return 2
'''


def test_code_knows_the_definition_it_is_in() -> None:
    blocks = read(PYTHON, "queue.py").blocks
    assert all(block.kind == "code" for block in blocks)
    where = {block.text.strip().splitlines()[-1]: block.section for block in blocks}
    assert where["        return 1" if "        return 1" in where else "return 1"] == (
        "Queue > claim"
    )
    assert where["    return 2"] == "light"
    assert any(block.text.startswith("@cached\ndef light") for block in blocks)


@pytest.mark.parametrize(
    ("name", "code", "section"),
    [
        ("a.go", "func (q *Queue) Claim() int {\n\treturn 1\n}", "Claim"),
        ("a.rs", "pub fn claim(q: &Queue) -> i32 {\n    1\n}", "claim"),
        ("a.c", "static int claim(struct queue *q)\n{\n  return 1;\n}", "claim"),
        ("a.sql", "create or replace function rag.claim()\n  returns int as $$", "rag.claim"),
        ("a.ts", "export async function claim(q: Queue) {\n}", "claim"),
        ("a.java", "public final class Queue {\n}", "Queue"),
    ],
)
def test_definitions_of_many_languages_are_seen(name: str, code: str, section: str) -> None:
    assert read(code, name).blocks[-1].section == section


def test_a_script_without_extension_is_code() -> None:
    assert read("#!/bin/sh\necho hello\n", "run").mime_type == "text/x-source"

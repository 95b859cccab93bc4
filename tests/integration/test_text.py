"""What words find: in codes, paths and addresses, in every script, and across languages."""

from __future__ import annotations

import time

import pytest
from helpers import rows, value


@pytest.fixture
def store(db, drain):
    """Stores texts, each with its language, as documents 1, 2, …"""

    def store(*texts: tuple[str | None, str]):
        db.execute("create table texts (id integer primary key, language text, body text)")
        db.execute(
            "select rag.attach_source('texts', content_column => 'body', language_column => 'language')"
        )
        db.cursor().executemany(
            "insert into texts values (%s, %s, %s)", [(n, *text) for n, text in enumerate(texts, 1)]
        )
        drain()
        return db

    return store


def found(db, question: str, arguments: str = "mode => 'text'") -> list[int]:
    sql = f"select document_id from rag.search_documents(%s, {arguments})"
    return [document for (document,) in rows(db, sql, question)]


def notices_of(db) -> list[str]:
    notices: list[str] = []
    db.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    return notices


# --- codes, paths, addresses -------------------------------------------------------------------


def test_codes_paths_and_addresses_are_found_by_their_parts_and_as_a_whole(store):
    db = store(
        (None, "The TCP/IP stack of the unit."),
        (None, "Each input has an output in the input/output table."),
        (None, "Here the chapter ends.Next comes the glossary."),
        (None, "See config_prod.yaml for the values."),
        (None, "It lies in /etc/foo/config.d/main.conf on the server."),
        (None, "Write to <billing@acme-corp.example.com> first."),
        (None, "Since release v2.3.1 it is faster."),
        (None, "Input of the unit, and much later its output."),
        (None, "Read https://docs.example.org/files/libbar-1.2.html about it."),
        (None, "Fields: Pegawai/karyawan tetap."),
        (None, "Address 192.168.1.10 costs 3.14 or 1,000.5 euros."),
    )
    for question, answers in {
        "tcp": {1}, "ip": {1}, "TCP/IP": {1}, "tcp ip": {1}, '"tcp ip"': {1},
        "glossary": {3}, "next": {3}, "ends": {3}, "ends.Next": {3},
        "prod": {4}, "config": {4, 5}, "main": {5}, '"foo config"': {5},
        "billing": {6}, "acme": {6}, '"acme-corp.example.com"': {6}, "example": {6, 9},
        "2.3.1": {7}, "V2.3.1": {7}, "libbar": {9}, "karyawan": {10}, "pegawai": {10},
        "192.168.1.10": {11}, "3.14": {11}, "1,000.5": {11}, "168": set(), "14": set(),
        "input/output": {2, 8},
    }.items():  # fmt: skip
        assert set(found(db, question)) == answers, question
    for question, answer in {
        "input/output": 2, "acme-corp.example.com": 6, "BILLING@acme-corp.example.com": 6,
        "/etc/foo/config.d/main.conf": 5, "config_prod.yaml": 4,
        "https://docs.example.org/files/libbar-1.2.html": 9,
    }.items():  # fmt: skip
        assert found(db, question)[0] == answer, question


def test_a_code_is_kept_as_a_whole_and_not_cut_out_of_a_longer_one(db):
    assert value(
        db,
        "select rag._codes('v1.2.3-rc1 https://example.com/files/libfoo-1.2.so +49 30/8-901 3.14 10.0.0.1 well-known')",
    ) == ["30/8-901", "example.com/files/libfoo-1.2.so", "v1.2.3-rc1"]


@pytest.mark.parametrize(
    "written", ["INV‑2024‑0815", "ＩＮＶ-2024-0815", "INV-2024-\u00ad0815", "\ufeffINV-2024-0815"]
)  # fmt: skip
def test_a_code_is_the_same_however_a_word_processor_writes_it(db, written):
    assert value(
        db, "select rag._analyze(%s, 'simple') = rag._analyze('INV-2024-0815', 'simple')", written
    )


@pytest.mark.parametrize("piece", ["ab1-", "a/", "a.", "1-a", "v1.1", "/", "~", "-1", "a@b:", "北"])
def test_a_long_row_of_codes_holds_up_no_worker(db, piece):
    db.execute("set statement_timeout = '10s'")
    begun = time.monotonic()
    db.execute("select rag._parsable(t), rag._codes(t) from repeat(%s, %s) t", [piece, 200_000 // len(piece)])  # fmt: skip
    assert time.monotonic() - begun < 5


def test_an_excluded_code_takes_no_other_with_it(store):
    db = store(
        (None, "Invoice INV-2024-0815 is paid."),
        (None, "Invoice INV-2024-0816 is paid, and 0815 is the room."),
        (None, "Invoice IT-2024-01 is paid."),
        (None, "Invoice AB-2024-01 is paid."),
    )
    assert set(found(db, "invoice -INV-2024-0815")) == {2, 3, 4}
    assert set(found(db, '"nothing here" or INV-2024-0815', "match_count => 9")) == {1}
    # A part that is a stop word does not make it any code that ends like it.
    assert set(found(db, "invoice -IT-2024-01")) == {1, 2, 4}
    assert set(found(db, '"IT-2024-01"', "match_count => 9")) == {3}


def test_a_word_behind_a_tilde_is_that_word(store):
    db = store((None, "Bees make honey."), (None, "Wasps make paper."))
    assert found(db, "~honey") == [1]


# --- scripts -----------------------------------------------------------------------------------


def test_scripts_without_spaces_are_found_by_words_and_phrases(store):
    db = store(
        ("zh", "我们在北京研究人工智能技术。"),
        ("ja", "東京タワーへ行きました。猫"),
        ("ko", "서울은 큰 도시입니다."),
        ("th", "ยินดีต้อนรับสู่กรุงเทพมหานคร"),
        ("en", "The office in 北京 opened in 2024年."),
        ("km", "សួស្តីពិភពលោក"),
        ("my", "မင်္ဂလာပါကမ္ဘာ"),
        ("lo", "ສະບາຍດີຊາວໂລກ"),
    )
    for question, answers in {
        "北京": {1, 5}, "人工智能": {1}, "東京": {2}, "タワー": {2}, "猫": {2}, "서울": {3}, "도시": {3}, "กรุงเทพ": {4},
        "office 2024": {5}, '"人工智能"': {1}, '"智能人工"': set(), '"กรุงเทพ"': {4}, "พิภพ": set(),
        "ពិភព": {6}, "ကမ္ဘာ": {7}, "ຊາວໂລກ": {8}, "office -北京": set(),
    }.items():  # fmt: skip
        assert set(found(db, question)) == answers, question


@pytest.mark.parametrize("text", ["서울은", "がぎぐ", "ガギグ", "กรุงเทพ", "हिन्दी"])
def test_letters_of_other_scripts_are_not_taken_apart_as_accents(db, text):
    assert value(db, "select rag._without_accents(%s)", text) == text


def test_ligatures_are_found_by_their_two_letters(store):
    db = store(
        ("fr", "Le cœur de la ville."),
        ("en", "An old encyclopædia."),
        (None, "Lange Straße in Hamburg."),
        ("vi", "Đường phố rất đông."),
    )
    for question, answer in {"coeur": 1, "encyclopaedia": 2, "strasse": 3, "duong pho": 4, "cœur": 1, "Straße": 3}.items():  # fmt: skip
        assert found(db, question) == [answer], question


# --- languages ---------------------------------------------------------------------------------


def test_stop_words_of_a_question_find_nothing_in_another_language(store):
    db = store(
        ("vi", "Ngày cần gì, đó là bé đi in ở đó, cán bộ dò bế it to."),
        ("en", "An employee without a badge asks the office manager."),
        ("en", "Trains leave every hour."),
    )
    question = "How do I get in to the office if I can not be there?"
    assert found(db, question)[0] == 2
    assert 1 not in found(db, question)
    # Where there are no other words they are all that is asked.
    assert found(db, "can do") == [1]


def test_a_word_that_is_a_stop_word_elsewhere_is_still_asked_for_in_its_own_language(store):
    db = store(
        ("en", "The causes of the war."), ("en", "The harvest of the year."), ("de", "Es war kalt.")
    )
    assert found(db, "what caused the war") == [1]


def test_an_english_stop_word_is_a_word_in_a_question_of_another_language(store):
    db = store(
        ("vi", "Sự kiện do công ty ở Huế tổ chức vào mùa hè."), ("vi", "Sự kiện công ty."), ("en", "An event.")
    )  # fmt: skip
    assert found(db, "sự kiện do công ty")[0] == 1


def test_a_phrase_that_is_a_stop_word_in_one_language_counts_in_the_others(store):
    db = store(
        ("en", "The war ended in May."), ("en", "The summer ended in May."), ("de", "Im Mai war es kalt, may.")
    )  # fmt: skip
    notices = notices_of(db)
    assert set(found(db, "may -war")) == {2, 3}
    # In German there is no telling: 'war' is in no list of lexemes.
    assert set(found(db, 'may "war"')) == {1, 3}
    assert set(found(db, 'may "war" "summer"')) == set()
    assert set(found(db, 'may "war" or "summer"')) == {1, 2, 3}
    assert notices == []


def test_what_is_ignored_is_named_and_nothing_else_is_said(store):
    db = store(("en", "Bees make honey."))
    notices = notices_of(db)
    assert found(db, 'honey "the of" -and') == [1]
    assert found(db, 'honey "' + "x" * 3000 + '" or "honey"') == [1]
    assert found(db, "the of " + "x" * 3000) == []
    assert [n for n in notices if "x" * 3000 not in n] == [
        'ignored, because it consists of stop words: "the of", -and'
    ]


def test_the_name_of_a_language_is_its_code(store):
    db = store(
        ("English", "Bees make honeys."), ("en-GB", "Wasps make paper."), ("Vietnamese", "Ong làm mật."),
        ("Indonesian", "Lebah membuat madu."), ("Klingon", "bIQ."),
    )  # fmt: skip
    assert rows(db, "select document_id, language, text_search_config from rag.document_chunks order by 1") == [
        (1, "en", "english"), (2, "en", "english"), (3, "vi", "simple"), (4, "id", "indonesian"), (5, "klingon", "simple"),
    ]  # fmt: skip
    assert set(found(db, "make", "language => 'English'")) == {1, 2}
    assert found(db, "ong", "language => 'vi'") == found(db, "ong", "language => 'vietnamese'") == [3]  # fmt: skip
    assert rows(
        db,
        "select l, rag._language_code(l) from unnest('{chinese,japanese,korean,thai,malay,norwegian,nb,German}'::text[]) l",
    ) == [
        ("chinese", "zh"), ("japanese", "ja"), ("korean", "ko"), ("thai", "th"), ("malay", "ms"), ("norwegian", "no"),
        ("nb", "nb"), ("German", "de"),
    ]  # fmt: skip


# --- how people type ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "plain", "required", "excluded"),
    [
        ("“make honey” bees", "make honey  bees", ['"make honey"'], None),
        ("„make honey“ bees", "make honey  bees", ['"make honey"'], None),
        ("«make honey» ‟a b” bees", "make honey   a b  bees", ['"make honey"', '"a b"'], None),
        ("bees −wasps", "bees", None, "wasps"),
        ("bees –wasps", "bees", None, "wasps"),
        ("bees –“paper nests”", "bees", None, '"paper nests"'),
        ("bees\u00a0−wasps\u2003honey", "bees  honey", None, "wasps"),
        ("bees – wasps", "bees – wasps", None, None),
        ("honey\u00a0bees", "honey bees", None, None),
    ],
)
def test_quotes_minus_and_spaces_of_phones_and_word_processors(
    db, typed, plain, required, excluded
):
    assert rows(db, "select * from rag._parse_query(%s)", typed) == [(plain, required, excluded)]


# --- highlights --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "question", "marked"),
    [
        ("The café is old.", "cafe", "<mark>café</mark>"),
        ("Đường phố", "duong pho", "<mark>Đường</mark> <mark>phố</mark>"),
        ("Die Straße", "strasse", "<mark>Straße</mark>"),
        ("Paid INV-2024-0815.", "INV-2024-0815", "<mark>INV-2024-0815</mark>"),
        ("Over TCP/IP here.", "tcp", "<mark>TCP</mark>/IP"),
        ("To billing@acme.com.", "billing@acme.com", "<mark>billing@acme.com</mark>"),
        ("研究人工智能技术", "人工智能", "研究<mark>人工智能</mark>技术"),
        ("มากรุงเทพมหานคร", "กรุงเทพ", "มา<mark>กรุงเทพ</mark>มหานคร"),
        ("It's <b>\x02\"bold\"\x03</b> &amp; old", "bold old", "<mark>bold</mark>&quot;&lt;/b&gt; &amp;amp; <mark>old</mark>"),
        ("It's old \x02", "", "It&#39;s old "),
    ],
)  # fmt: skip
def test_a_snippet_marks_what_the_question_found(db, content, question, marked):
    config = "english" if content.isascii() else "simple"
    snippet = value(
        db,
        "select rag._snippet(%s, rag._parsed_question(%s, p), %s) from rag._active_pipeline() p",
        *(content, question, config),
    )
    assert marked in snippet
    assert "<" not in snippet.replace("<mark>", "").replace("</mark>", "")


# --- after an update ---------------------------------------------------------------------------


def test_what_an_earlier_version_analysed_is_analysed_anew_and_keeps_its_vectors(store):
    db = store((None, "The TCP/IP stack."), (None, "A sentence of plain words."))
    db.execute("update rag.document_versions set fingerprint = 'of an earlier version'")
    db.execute("update rag.document_chunks set content_tsv = '''tcp/ip'':2 ''stack'':3' where document_id = 1")  # fmt: skip
    before = rows(db, "select chunk_id, embedding::text from rag.document_chunks order by document_id")  # fmt: skip
    assert found(db, "TCP/IP") == [1]
    assert found(db, '"tcp/ip"', "match_count => 9") == [1]
    db.execute("call rag.maintain()")
    db.execute("call rag.drain()")
    after = rows(db, "select chunk_id, embedding::text from rag.document_chunks order by document_id")  # fmt: skip
    assert [e for _, e in after] == [e for _, e in before]
    assert rows(db, "select chunks_reused from rag.document_versions where state = 'ready'") == [(1,), (1,)]  # fmt: skip
    # What has the same lexemes is not even written.
    assert after[0][0] != before[0][0] and after[1] == before[1]
    assert found(db, "ip") == [1]

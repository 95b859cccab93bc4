"""Guess the language of a text from its most frequent words, to choose a stemmer.

A statistical model does better on single sentences, but takes 200 MB and a second of the child's
allowance; a document has hundreds of words, and a third of them are these.
"""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"[^\W\d_]+")
# With fewer words than this, or a smaller share of known ones, there is no guess.
_MIN_HITS = 5
_MIN_SHARE = 0.08
_LEAD = 1.25
_SAMPLE_CHARACTERS = 20_000

# Code: (frequent words that are all ASCII, frequent words that are not, letters beyond ASCII).
_LANGUAGES: dict[str, tuple[str, str, str]] = {
    "ca": ("de la el que i en els un una les del per amb es al no com ha dels", "és més però això",
           "àçèéíïòóúü·"),
    "cs": ("a se v na je to s z do o k i ve za jako po ale od by pro jsem", "že který při aby však",
           "áčďéěíňóřšťúůýž"),
    "da": ("og i at det er en til af den der ikke med som et de har var ham jeg kan",
           "på være også når efter så", "æøåé"),
    "de": ("der die das und in zu den ist von mit nicht sich des auf ein eine dem als auch im",
           "für über daß können wären", "äöüß"),
    "en": ("the of and to in a is that for it was on with as by be at this are from or an not "
           "which have", "", "éï"),
    "es": ("de la que el en y a los se del las un por con no una su para es al lo como sus le",
           "más también está según", "áéíñóúü¿¡ªº"),
    "et": ("ja on ei et ta see ka oli kui ning oma mis ma aga selle ole", "või üle pärast nüüd",
           "äõöüšž"),
    "fi": ("ja on ei se oli ovat joka mutta kun niin kuin sen tai hän myös ole", "että myös tämä "
           "hän ovat", "äöå"),
    "fr": ("de la le et les des en un du une que est dans qui par pour au il sur ne se pas plus "
           "avec", "été être où même à après", "àâæçéèêëîïôœùûüÿ«»"),
    "hr": ("i u je se na da su za od s kao ne što koji o bio ili ali biti to", "što više može "
           "također već", "čćđšž"),
    "hu": ("a az hogy nem is egy ez van meg de mint vagy csak volt ha el ki", "és már még után "
           "között több", "áéíóöőúüű"),
    "id": ("yang dan di dengan untuk dari ini pada itu adalah dalam tidak akan oleh sebagai ke juga"
           " atau tersebut telah", "", ""),
    "it": ("di e il la che in a per un del una della con non sono da si le dei al come alla",
           "è più perché può anche città", "àèéìíòóùú"),
    "lt": ("ir yra kad su jis tai kaip buvo iš bet o po ar jo jos nuo dar", "iš už būti jų taip",
           "ąčęėįšųūž"),
    "lv": ("un ir ar no kas par tas uz bet vai tika to pie arī ka", "arī kā tā ēkas būt nav",
           "āčēģīķļņšūž"),
    "nl": ("de het een van en in is dat te op zijn voor met die niet aan er ook als bij door naar",
           "één", "éëïóö"),
    "no": ("og i det er en til av den som ikke med et de har var jeg kan for ble seg",
           "på være også når så må", "æøåé"),
    "pl": ("w i z na do nie jest to o od a po za przez jak oraz dla ale czy", "się że który są być",
           "ąćęłńóśźż"),
    "pt": ("de a o que e do da em um para com os no se na por mais as dos como mas ao das",
           "não é à são também até", "áâãàçéêíóôõúü"),
    "ro": ("de la si in a cu pe un o care nu din este se mai pentru ce sau fost",
           "și în că să după între", "ăâîșțşţ"),
    "sk": ("a sa v na je to s z do o aby ako po ale od pre som si za", "že ktorý pri však už",
           "áäčďéíĺľňóôŕšťúýž"),
    "sl": ("in je v na se da za so pa ki z s po ne kot od bi ali tudi", "če že še več",
           "čšž"),
    "sv": ("och i att det som en av den med till har inte om ett var jag de han kan",
           "på är för från så också när", "åäöé"),
    "tr": ("ve bir bu da de ile olarak olan daha ama sonra kadar gibi ne mi en", "için çok "
           "değil gün önce göre olduğu", "çğıöşüİâî"),
    "vi": ("trong cho khi ra hay sau theo nhau anh em", "và của là có được các một những không với "
           "đã này người", "àáảãạăằắẳẵặâầấẩẫậèéẻẽẹêềếểễệìíỉĩịòóỏõọôồốổỗộơờớởỡợùúủũụưừứửữựỳýỷỹỵđ"),
    "ru": ("", "и в не на что он с как это по но из у за от так же для был его только", ""),
    "uk": ("", "і в не на що та з як це до але із від так для був його є або й", ""),
    "bg": ("", "и в на да се от за с че по е са не като това при към който", ""),
    "el": ("", "και το να του η της με που την για από είναι τα των τον οι στο θα", ""),
    "ar": ("", "في من على إلى أن التي عن هذا مع هذه ما لا كان الذي بعد", ""),
    "fa": ("", "و در به از که این را با است برای آن یک خود تا", ""),
    "he": ("", "של את על לא הוא זה עם כי גם אל היא או אם כל", ""),
    "hi": ("", "के में है की और से का को पर यह कि एक नहीं हैं", ""),
}  # fmt: skip
_SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("th", re.compile("[\u0e01-\u0e5b]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
)
_WORDS: dict[str, list[str]] = {}
for _code, (_ascii, _other, _letters) in _LANGUAGES.items():
    for _word in {*_ascii.split(), *_other.split()}:
        _WORDS.setdefault(_word, []).append(_code)

LETTERS = {code: frozenset(letters + letters.upper()) for code, (_, _, letters)
           in _LANGUAGES.items() if letters}  # fmt: skip
"""The letters beyond ASCII of languages in Latin script."""


def guess_language(text: str) -> str | None:
    """The two-letter code; None if the text is too short or too mixed to tell."""
    sample = text[:_SAMPLE_CHARACTERS]
    letters = sum(map(str.isalpha, sample))
    for code, script in _SCRIPTS:
        share = 0.05 if code == "ja" else 0.3
        if letters > 20 and len(script.findall(sample)) > share * letters:
            # Names and headings in Japanese can have no kana.
            return code if code != "zh" or letters > 60 else None
    ranked = rank_languages(sample)
    words = len(_WORD.findall(sample))
    if not ranked or ranked[0][1] < max(_MIN_HITS, _MIN_SHARE * words):
        return None
    if len(ranked) > 1 and ranked[0][1] < _LEAD * ranked[1][1]:
        return None
    return ranked[0][0]


def rank_languages(text: str) -> list[tuple[str, float]]:
    """Languages by their score. A word that many languages have counts little for each."""
    evidence: Counter[str] = Counter()
    for word, count in Counter(_WORD.findall(text.lower())).items():
        codes = _WORDS.get(word, ())
        for code in codes:
            evidence[code] += count / len(codes) ** 0.5  # type: ignore[assignment]
    return [(code, float(weight)) for code, weight in evidence.most_common()]

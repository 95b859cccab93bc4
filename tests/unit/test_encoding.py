"""Plain text in any encoding: not one letter may come out wrong."""

from __future__ import annotations

import pytest

from ragstone.extract.encoding import decode
from ragstone.extract.language import guess_language

TEXTS = {
    "ru": (
        "Смотритель маяка спустился в гавань перед зимней бурей и проверил медные провода "
        "сигнальной башни. Затем он записал в журнал, что ветер усилился и волны поднялись "
        "выше причала."
    ),
    "pl": (
        "Latarnik zszedł do portu przed zimową burzą i sprawdził miedziane przewody wieży "
        "sygnałowej. Później zapisał w dzienniku, że wiatr się wzmógł, a fale sięgały już "
        "nabrzeża. Źródło światła działało bez zarzutu."
    ),
    "cs": (
        "Strážce majáku sešel před zimní bouří do přístavu a zkontroloval měděné vodiče signální "
        "věže. Potom zapsal do deníku, že vítr zesílil a vlny už dosahovaly nábřeží."
    ),
    "de": (
        "Der Wärter des Leuchtturms ging vor dem Wintersturm zum Hafen hinunter und prüfte "
        "die Kupferdrähte. Später schrieb er ins Tagebuch, dass der Wind stärker geworden "
        "sei und die Wellen über die Mauer schlügen."
    ),
    "fr": (
        "Le gardien du phare descendit au port avant la tempête d'hiver et vérifia les câbles "
        "de cuivre. Il écrivit ensuite dans le journal que le vent s'était levé et que les "
        "vagues dépassaient déjà la jetée. Été à la façade."
    ),
    "el": (
        "Ο φύλακας του φάρου κατέβηκε στο λιμάνι πριν από τη χειμερινή καταιγίδα και έλεγξε "
        "τα χάλκινα σύρματα. Έπειτα έγραψε στο ημερολόγιο ότι ο άνεμος δυνάμωσε."
    ),
    "tr": (
        "Fener bekçisi kış fırtınasından önce limana indi ve bakır telleri kontrol etti. "
        "Sonra günlüğe rüzgârın güçlendiğini ve dalgaların iskeleyi aştığını yazdı."
    ),
    "he": (
        "שומר המגדלור ירד אל הנמל לפני סערת החורף ובדק את חוטי הנחושת. אחר כך כתב ביומן שהרוח "
        "התחזקה והגלים עלו מעל המזח."
    ),
    "ar": (
        "نزل حارس المنارة إلى الميناء قبل عاصفة الشتاء وفحص الأسلاك النحاسية. ثم كتب في السجل "
        "أن الريح اشتدت وأن الأمواج تجاوزت الرصيف."
    ),
    "lt": (
        "Švyturio prižiūrėtojas prieš žiemos audrą nusileido į uostą ir patikrino varinius "
        "laidus. Vėliau jis įrašė į žurnalą, kad vėjas sustiprėjo, o bangos siekė krantinę."
    ),
    "vi": (
        "Người gác hải đăng đi xuống bến cảng trước cơn bão mùa đông và kiểm tra dây đồng "
        "của ngọn tháp. Sau đó anh ghi vào nhật ký rằng gió đã mạnh lên và những con sóng "
        "đã cao hơn cầu tàu."
    ),
    "th": ("ผู้ดูแลประภาคารเดินลงไปที่ท่าเรือก่อนพายุฤดูหนาวและตรวจสอบสายทองแดง จากนั้นเขาเขียนในบันทึกว่าลมแรงขึ้น"),
    "ja": (
        "灯台守は冬の嵐が来る前に港へ下りて、信号塔の銅線を点検した。それから日誌に、"
        "風が強くなり、波が桟橋を越えたと書いた。カタカナの言葉もここにあります。"
    ),
    "ko": (
        "등대지기는 겨울 폭풍이 오기 전에 항구로 내려가 신호탑의 구리선을 점검했다. "
        "그리고 일지에 바람이 강해지고 파도가 부두를 넘었다고 적었다."
    ),
    "zh": (
        "灯塔看守人在冬季风暴来临之前走到港口，检查了信号塔的铜线。然后他在日志中写道"
        "，风势增强，海浪已经越过了码头。"
    ),
    "tw": (
        "燈塔看守人在冬季風暴來臨之前走到港口，檢查了信號塔的銅線。然後他在日誌中寫道"
        "，風勢增強，海浪已經越過了碼頭。"
    ),
    "uk": (
        "Доглядач маяка спустився в гавань перед зимовою бурею і перевірив мідні дроти сигнальної "
        "вежі. Потім він записав у журнал, що вітер посилився, а хвилі піднялися вище причалу. "
        "Їхній ґанок."
    ),
    "hu": (
        "A világítótorony őre a téli vihar előtt lement a kikötőbe, és ellenőrizte a rézvezetékeket. "
        "Később feljegyezte a naplóba, hogy a szél megerősödött, és a hullámok már elérték "
        "a rakpartot. Tűz, hűség."
    ),
}
OLD = {
    "ru": ("windows-1251", "koi8-r", "iso8859-5", "cp866", "mac-cyrillic"),
    "uk": ("koi8-u", "windows-1251"),
    "pl": ("windows-1250", "iso8859-2"),
    "cs": ("windows-1250", "iso8859-2"),
    "hu": ("windows-1250", "iso8859-2"),
    "de": ("windows-1252", "iso8859-1", "iso8859-15", "cp850"),
    "fr": ("windows-1252", "iso8859-15"),
    "el": ("windows-1253", "iso8859-7"),
    "tr": ("windows-1254", "iso8859-9"),
    "he": ("windows-1255", "iso8859-8"),
    "ar": ("windows-1256", "iso8859-6"),
    "lt": ("windows-1257", "iso8859-13"),
    "th": ("tis-620",),
    "ja": ("shift-jis", "euc-jp", "iso2022-jp"),
    "ko": ("euc-kr", "cp949"),
    "zh": ("gb18030", "gbk"),
    "tw": ("big5",),
}
UNICODE = (
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "utf-32-le",
    "utf-32-be",
)


@pytest.mark.parametrize(
    ("language", "encoding"), [(lang, name) for lang, names in OLD.items() for name in names]
)
def test_a_paragraph_in_an_old_encoding_is_legible(language: str, encoding: str) -> None:
    assert decode(TEXTS[language].encode(encoding))[0] == TEXTS[language]


@pytest.mark.parametrize("encoding", UNICODE)
@pytest.mark.parametrize("language", TEXTS)
def test_unicode_is_legible_with_and_without_its_mark(language: str, encoding: str) -> None:
    assert decode(TEXTS[language].encode(encoding))[0].lstrip("\ufeff") == TEXTS[language]


@pytest.mark.parametrize("language", TEXTS)
def test_the_stemmer_is_chosen_by_the_texts_own_language(language: str) -> None:
    expected = {"tw": "zh"}.get(language, language)
    assert guess_language(TEXTS[language] * 5) in (expected, "sk" if language == "cs" else expected)


@pytest.mark.parametrize("text", ["", "12 34 56", "x", "ID-4711", "Lorem ipsum dolor sit amet"])
def test_no_language_is_made_up(text: str) -> None:
    assert guess_language(text) is None

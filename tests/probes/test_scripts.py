from __future__ import annotations

import unicodedata

import pytest

from headprobe.probes.scripts import ends_sentence, fold, is_unspaced, may_cut, set_apart


@pytest.mark.parametrize("mark", ".?!。．？！｡।॥؟۔։።፧။។᙮᠃‼⁇꓿།༎")
def test_marks_that_end_sentences(mark: str) -> None:
    assert ends_sentence(f"x{mark}", 1)


@pytest.mark.parametrize("mark", ",;:…、，；·–་\u2024\u0387")
def test_marks_that_do_not(mark: str) -> None:
    assert not ends_sentence(f"x{mark}", 1)


def test_a_semicolon_is_the_question_mark_of_greek_only() -> None:
    assert ends_sentence("τι;", 2)
    assert ends_sentence("ἦν\u037e", 2)
    assert not ends_sentence("so;", 2)
    assert not ends_sentence(";", 0)


def test_scripts_without_spaces_are_told_by_their_letters() -> None:
    assert all(map(is_unspaced, "中ひカกລខကཀꀀ𠀀ꦏ々ー"))
    assert not any(map(is_unspaced, "aЖع한नአ1 。、・་៖"))


def test_folding_leaves_plain_text_alone_and_is_stable() -> None:
    for text in ("Ada’s “hat”… – 3½ °C ™ ﬁ", "naïve", "한국어", "ไทย", "नदी", "🙂"):
        assert fold(text) == unicodedata.normalize("NFC", text)
    assert fold(fold("ｶﾞ３ﺳ\u200d")) == fold("ｶﾞ３ﺳ\u200d") == "ガ3س"


def test_what_is_set_apart_is_the_text_without_its_spaces() -> None:
    for text in ("Adaは3匹、蜂。", "มีนาชอบ red หิน", "क्ष है", ""):
        assert set_apart(text).replace(" ", "") == text.replace(" ", "")
    assert set_apart("มีนา red").split() == ["มี", "น", "า", "red"]


@pytest.mark.parametrize(
    ("whole", "name"),
    [
        ("กี่", "Thai vowel and tone"), ("เก", "Thai leading vowel"), ("กำ", "Thai sara am"), ("ກຳ", "Lao am"),
        ("ក្ក", "Khmer subscript"), ("က္က", "Burmese stack"), ("ཀྲ", "Tibetan subjoined"), ("क्षि", "Devanagari conjunct"),
        ("e\u0301", "accent"), ("\u1100\u1161\u11a8", "Hangul jamo"), ("🇩🇪", "flag"), ("👍🏽", "skin tone"),
        ("👩\u200d🚀", "joined emoji"), ("❤\ufe0f", "variation selector"), ("שָׁ", "Hebrew points"),
    ],
)  # fmt: skip
def test_no_letter_is_cut_in_two(whole: str, name: str) -> None:
    assert [place for place in range(1, len(whole)) if may_cut(whole, place)] == [], name
    assert may_cut(whole, 0)
    assert may_cut(whole, len(whole))


def test_between_letters_a_text_may_be_cut() -> None:
    for text in ("中文字", "กขค", "ひら", "abc", "ကခ"):
        assert all(may_cut(text, place) for place in range(len(text) + 1))


def test_a_word_may_be_cut_off_behind_its_last_mark() -> None:
    assert may_cut("သည် မြ", 3)
    assert may_cut("သည်မြ", 3)
    assert may_cut("भगवान् है", 6)

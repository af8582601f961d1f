from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from headprobe.probes.answer import chosen_sentence, exact_match, normalize, rouge1_recall, token_f1
from headprobe.probes.needle import Needle


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat, an owl & a dog!", "cat owl dog"),
        ("Ada's  hat\n", "adas hat"),
        ("Ada’s “hat”…", "adas hat"),
        ("theatre anthem", "theatre anthem"),
        ("...", ""),
    ],
)
def test_normalize_drops_case_punctuation_and_articles(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("Ada keeps a red hen.", "Ada keeps a red hen.", 1.0),
        ("a red hen", "Ada keeps the red hen", 2 * 1.0 * 0.5 / 1.5),
        ("hen hen hen", "hen", 2 * (1 / 3) / (4 / 3)),
        ("Bo", "Ada", 0.0),
        ("", "Ada", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_token_f1_counts_words_as_bags(response: str, answer: str, expected: float) -> None:
    assert token_f1(response, answer) == pytest.approx(expected)


def test_token_f1_is_symmetric_and_agrees_with_precision_and_recall() -> None:
    random.seed(0)
    for _ in range(200):
        left, right = (random.choices("bcdef", k=random.randint(1, 8)) for _ in "ab")
        common = sum(min(left.count(c), right.count(c)) for c in set(left))
        precision, recall = common / len(left), common / len(right)
        expected = 2 * precision * recall / (precision + recall) if common else 0.0
        assert token_f1(" ".join(left), " ".join(right)) == pytest.approx(expected)
        assert token_f1(" ".join(left), " ".join(right)) == token_f1(" ".join(right), " ".join(left))


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("The red hen, and more.", "the red hen", 1.0),
        ("red", "the red red hen", 0.25),
        ("Ada's", "Ada's hen", 2 / 3),
        ("anything", "...", 0.0),
    ],
)
def test_rouge1_recall_is_the_share_of_the_answers_words(response: str, answer: str, expected: float) -> None:
    assert rouge1_recall(response, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Ada keeps a red hen.", True),
        ("\n  Ada  keeps a red hen. Bo keeps cats.", True),
        ("Ada keeps a red hen.\n\nQuestion: why", True),
        ("Ada keeps a red hen", False),
        ("ada keeps a red hen.", False),
        ("Well, Ada keeps a red hen.", False),
        ("Ada keeps a red hen.s", False),
        ("", False),
    ],
)
def test_exact_match_wants_the_very_sentence_first(response: str, expected: bool) -> None:
    assert exact_match(response, "Ada keeps a red hen.") is expected


def test_exact_match_of_an_answer_without_a_stop_allows_one() -> None:
    assert exact_match("a red hen. It is", "a red hen")
    assert not exact_match("a red hen house", "a red hen")
    assert not exact_match("", "")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Ada keeps a red hen.", "answer"),
        ("Ada keeps a red cats.", "answer"),
        ("Bo keeps cats", "distractor"),
        ("nothing at all", "other"),
        ("", "other"),
    ],
)
def test_chosen_sentence_is_the_closer_one(make_needle: Callable[..., Needle], response: str, expected: str) -> None:
    assert chosen_sentence(response, make_needle()) == expected


def test_equal_closeness_is_neither(make_needle: Callable[..., Needle]) -> None:
    needle = make_needle(facts=("Ada sings.", "Bo hums."), answer="Ada sings.", distractor="Bo hums.")
    assert chosen_sentence("Ada hums.", needle) == "other"


def test_without_a_distractor_any_shared_word_is_the_answer(make_needle: Callable[..., Needle]) -> None:
    needle = make_needle(distractor=None)
    assert chosen_sentence("a hen", needle) == "answer"
    assert chosen_sentence("a goose", needle) == "other"

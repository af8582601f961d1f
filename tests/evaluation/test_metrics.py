"""What answers are worth, counted by hand."""

from __future__ import annotations

import pytest

from headprobe.errors import OptionError
from headprobe.evaluation import extras
from headprobe.evaluation.metrics import METRICS, metric_named


def score(metric: str, response: str, *answers: str, classes: tuple[str, ...] = ()) -> float:
    return METRICS[metric].score(response, answers, classes)


@pytest.mark.parametrize(
    ("metric", "response", "answers", "value"),
    [
        ("qa_f1", "The Town Hall, of course.", ("town hall",), 2 * 0.5 * 1 / 1.5),
        ("qa_f1", "a an the", ("town hall",), 0.0),
        ("qa_f1", "", ("town hall",), 0.0),
        ("qa_f1", "town", ("hall", "town"), 1.0),  # the best of the answers
        ("characters_f1", "是小明。", ("小明",), 0.8),
        ("rouge_l", "", ("a b",), 0.0),
        ("rouge_l", "a b c", ("a b c",), 1.0),
        ("rouge_l", "a c b", ("a b",), 0.8),
        ("rouge_l", "a x. y b", ("a b.",), 2 / 3),  # `a` with the first sentence, `b` with the second
        ("count", "There are 4, no, 5.", ("5",), 0.5),
        ("count", "none", ("5",), 0.0),
        ("retrieval", "Paragraph 12 or 3", ("Paragraph 12",), 0.5),
        ("retrieval", "12", ("paragraph twelve",), 0.0),
        ("retrieval_zh", "段落7", ("段落7",), 1.0),
        ("code_sim", "\n\n# a note\n  return x", ("  return x",), 1.0),
        ("code_sim", "```", ("return x",), 0.0),
        ("string_match_all", "12 and 34", ("12", "34", "56", "78"), 0.5),
        ("string_match_part", "the HOUSE", ("house", "garden"), 1.0),
        ("string_match_part", "nothing", ("house",), 0.0),
        ("first_number", "about 7.50 of 8", ("7.5",), 1.0),
        ("first_number", "8, not 7", ("7",), 0.0),
        ("last_number", "it is: -5.", ("-5",), 1.0),
        ("last_number", "5 it is", ("5",), 0.0),
        ("first_digits", "key 0071.", ("0071",), 1.0),
        ("first_digits", "key 71.", ("0071",), 0.0),
        ("numbers_in_order", "4, 5, 7, 7", ("4", "5", "6", "7"), 0.5),
        ("numbers_in_order", "", ("4",), 0.0),
        ("one_word", 'It is "ada"!', ("ADA",), 1.0),
        ("one_word", "adamant", ("ada",), 0.0),
        ("choice", "C", ("C", "The cat"), 1.0),
        ("choice", "The answer is: The cat sat", ("C", "The cat"), 1.0),
        ("choice", "Dogs, so B", ("B",), 1.0),
        ("choice", "", ("B",), 0.0),
        ("cloze", "{'<mask-0>': 'Ada'}", ("<mask-0>: Ada", "<mask-1>: Bo"), 0.5),
        ("cloze", "__import__('os').getcwd()", ("<mask-0>: Ada",), 0.0),
        ("cloze", "Ada", ("<mask-0>: Ada",), 0.0),
        ("exact_match", "Ada keeps bees. She is old.", ("Ada keeps bees.",), 1.0),
    ],
)
def test_an_answer_is_worth_what_the_rule_says(
    metric: str, response: str, answers: tuple[str, ...], value: float
) -> None:
    assert score(metric, response, *answers) == pytest.approx(value, abs=1e-7)


def test_a_class_counts_where_no_other_is_named() -> None:
    classes = ("Animal", "Plant", "Abbreviation")
    assert score("classification", "Plant", "Plant", classes=classes) == 1.0
    assert score("classification", "Plant or Animal", "Plant", classes=classes) == 0.5
    assert score("classification", "Animal", "Plant", classes=classes) == 0.0
    # `Other` is a part of the right name and does not count as a second one
    assert score("classification", "Other location", "Other location", classes=("Other location", "Other")) == 1.0


def test_a_label_counts_only_alone_and_in_the_first_sentence() -> None:
    classes = ("garden", "office", "kitchen")
    assert score("only_label", "In the Garden. Not the office.", "garden", classes=classes) == 1.0
    assert score("only_label", "garden or office", "garden", classes=classes) == 0.0
    assert score("only_label", "I do not know", "garden", classes=classes) == 0.0
    assert score("only_label", "milk and apple", "milk,apple", classes=("milk", "apple", "ball")) == 1.0
    assert score("only_label", "milk", "milk,apple", classes=("milk", "apple", "ball")) == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_worth_more_than_one_and_silence_is_worth_nothing(name: str) -> None:
    if METRICS[name].needs is not None:
        pytest.importorskip(str(METRICS[name].needs))
    answers = ("<mask-0>: 7 段落3 Paragraph 3",)
    for response in ("", " ", "7 7 7", "Paragraph 3 段落3", "{", "A. B. C."):
        value = METRICS[name].score(response, answers, ("3",))
        assert 0.0 <= value <= 1.0
        assert response.strip() or value == 0.0


def test_an_unknown_metric_and_a_missing_package_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="unknown metric 'bleu': known are exact_match"):
        metric_named("bleu")
    with pytest.raises(OptionError, match="a metric is a name such as qa_f1, not 7"):
        metric_named(7)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"the metric rouge_zh needs the package jieba: `pip install 'headprobe\[ev"):
        metric_named("rouge_zh")

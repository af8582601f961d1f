"""The sets that come along keep what their README promises."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import headprobe.home as shipped
from headprobe.errors import FileFormatError
from headprobe.probes.needle import Needle, load_needles

SETS = ("retrieval", "reasoning", "nonliteral")
FEWEST = {"age": 10, "time": 6, "size": 6, "place": 4, "possession": 4}
LARGER = re.compile(r"older|later|last|taller|larger|bigger|heavier")
SMALLER = re.compile(r"younger|earlier|first|shorter|smaller|lighter")
STOP_WORDS = set(
    "a an the is are was were has have had does did do who whose which what where in on of at by to and with for from "
    "her his its their them there this that has not never always just seems used use be becomes became would".split()
)


def reasoning() -> tuple[Needle, ...]:
    return load_needles("reasoning").needles


def subject(sentence: str) -> str:
    found = re.match(r"(?:The best thing to do in )?([A-Z]\w+(?: [A-Z]\w+)?)", sentence)
    assert found, sentence
    return found[1]


def content_words(text: str) -> set[str]:
    words = re.findall(r"[a-z]+", text.lower())
    return {re.sub(r"(?:ing|ed|es|s)$", "", word) for word in words if word not in STOP_WORDS and len(word) > 1}


def test_the_three_sets_are_listed_in_order() -> None:
    assert tuple(shipped.shipped_needle_sets())[:3] == SETS


@pytest.mark.parametrize("name", SETS)
def test_a_set_holds_at_least_24_needles_of_its_kind(name: str) -> None:
    needles = load_needles(name).needles
    assert len(needles) >= 24
    assert {needle.kind for needle in needles} == {name}
    assert len({needle.relation for needle in needles}) >= 5


@pytest.mark.parametrize("name", SETS)
def test_answers_and_distractors_are_whole_facts_and_no_sentence_comes_twice(name: str) -> None:
    needles = load_needles(name).needles
    for needle in needles:
        assert needle.answer in needle.facts
        assert needle.distractor is None or needle.distractor in needle.facts
        assert needle.question.endswith("?")
        assert all(fact.endswith(".") for fact in needle.facts)
    facts = Counter(fact for needle in needles for fact in needle.facts)
    assert facts.most_common(1)[0][1] == 1


def test_no_subject_is_used_in_two_needles() -> None:
    subjects = Counter(s for n in reasoning() for s in {subject(fact) for fact in n.facts})
    subjects.update(subject(fact) for needle in load_needles("retrieval").needles for fact in needle.facts)
    assert [name for name, count in subjects.items() if count > 1] == []


def test_reasoning_needles_cover_every_relation() -> None:
    counts = Counter(needle.relation for needle in reasoning())
    assert set(counts) == set(FEWEST)
    assert all(counts[relation] >= fewest for relation, fewest in FEWEST.items())


def test_reasoning_needles_introduce_two_subjects_and_tell_a_fact_of_each() -> None:
    for needle in reasoning():
        introduced, told = [subject(f) for f in needle.facts[:2]], [subject(f) for f in needle.facts[2:]]
        assert len(needle.facts) == 4
        assert sorted(introduced) == sorted(told)
        assert introduced[0][0] != introduced[1][0]
        assert {needle.answer, needle.distractor} == set(needle.facts[2:])


def test_the_answer_is_the_one_that_the_numbers_decide() -> None:
    for needle in reasoning():
        if needle.relation not in ("age", "time", "size"):
            continue
        numbers = {subject(fact): int(re.findall(r"\d+", fact)[0]) for fact in needle.facts[:2]}
        low, high = sorted(numbers, key=lambda name: numbers[name])
        assert numbers[high] - numbers[low] >= 5
        wants_high = bool(LARGER.search(needle.question))
        assert wants_high != bool(SMALLER.search(needle.question)), needle.question
        assert subject(needle.answer) == (high if wants_high else low), needle.id


def test_the_answer_is_the_one_that_the_attribute_points_at() -> None:
    for needle in reasoning():
        if needle.relation not in ("place", "possession"):
            continue
        wanted, other = sorted(needle.facts[:2], key=lambda fact: subject(fact) != subject(needle.answer))
        assert wanted.split(" ", 2)[2].rstrip(".").split(" the ")[-1].split()[-1] in needle.question
        assert other.rstrip(".").split()[-1] not in needle.question


def test_order_and_side_of_the_answer_tell_nothing() -> None:
    rows = [(n.facts.index(n.answer), subject(n.facts[0]) == subject(n.answer)) for n in reasoning()]
    assert set(Counter(rows).values()) == {len(rows) // 4}
    sides = Counter(bool(LARGER.search(n.question)) for n in reasoning() if n.relation in ("age", "time", "size"))
    assert sides[True] == sides[False]


def test_a_favourite_thing_of_the_older_or_younger_is_among_them() -> None:
    found = [n for n in reasoning() if n.relation == "age" and "favourite thing to do" in n.question]
    assert {bool(re.search("older", needle.question)) for needle in found} == {True, False}


def test_retrieval_questions_name_the_subject_and_half_have_a_distractor() -> None:
    needles = load_needles("retrieval").needles
    assert all(subject(needle.answer) in needle.question for needle in needles)
    assert all(n.distractor is None or subject(n.distractor) not in n.question for n in needles)
    assert 0.4 <= sum(n.distractor is not None for n in needles) / len(needles) <= 0.6


def test_nonliteral_questions_share_no_content_word_with_the_facts() -> None:
    for needle in load_needles("nonliteral").needles:
        assert content_words(needle.question) & content_words(needle.text) == set(), needle.id


def test_names_do_not_occur_in_the_shipped_haystacks() -> None:
    files = [file for folder in shipped.shipped_haystacks().values() for file in folder.glob("*.txt")]
    words = set(re.findall(r"\w+", " ".join(file.read_text(encoding="utf-8") for file in files)))
    names = {
        w
        for name in ("retrieval", "reasoning")
        for n in load_needles(name).needles
        for w in subject(n.facts[0]).split()
    }
    buildings = {"Tower", "Hall", "Mill", "House", "Bridge", "Castle", "School", "Inn", "Port", "Copper", "Little"}
    assert (names - buildings) & words == set()


def test_a_wheel_finds_its_data_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "headprobe"
    (package / "_data" / "needles").mkdir(parents=True)
    (package / "_data" / "needles" / "mine.jsonl").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    assert shipped.shipped_folder("needles") == package / "_data" / "needles"
    assert list(shipped.shipped_needle_sets()) == ["mine"]


def test_a_broken_installation_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "headprobe")
    with pytest.raises(FileFormatError, match="the shipped haystacks are missing: neither .*_data.haystacks nor"):
        shipped.shipped_folder("haystacks")

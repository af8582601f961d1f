from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import FileFormatError
from headprobe.scores.any_scores import read_any
from headprobe.scores.checks import Suspect
from headprobe.scores.head_scores import Method
from headprobe.scores.provenance import COUNT, MASS, METHODS, UNKNOWN, MethodFacts, facts_of
from headprobe.scores.score_file import read_score_file, write_score_file
from headprobe.scores.validation import validate, validate_file

BELOW = "a score of -0.5; `theirs` never gives less than 0"
ABOVE = "1 head scores above 2 in 1 of 1 trials, up to 2.5"


def theirs(**facts: Any) -> Method:
    return Method("theirs", "", 1, {"scores": {"least": None, "most": None, "kind": None} | facts})


def detail(path: Path, check: str) -> str | None:
    return next((found.detail for found in validate_file(path).findings if found.check == check), None)


def test_facts_of_our_methods_go_by_the_name_whatever_a_file_states() -> None:
    assert facts_of("r2", {"scores": {"least": -5, "most": 9, "kind": "count"}}) == METHODS["r2"]
    assert (METHODS["contrast"].least, METHODS["r2"].least) == (-1.0, 0.0)
    assert METHODS["contrast"].can_be_negative
    assert not METHODS["r2"].can_be_negative


def test_facts_of_other_methods_are_those_that_their_file_states() -> None:
    assert facts_of("theirs", {"scores": {"least": 0, "kind": "mass"}}) == MethodFacts(0.0, None, MASS)
    assert facts_of("theirs", {}) == UNKNOWN
    assert UNKNOWN.can_be_negative


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        (None, "method.parameters.scores is None, need an object"),
        ([0, 1], "method.parameters.scores is [0, 1], need an object"),
        ({"least": "0"}, "method.parameters.scores.least is '0', need a number within"),
        ({"most": True}, "method.parameters.scores.most is True, need a number within"),
        ({"most": 1e301}, "method.parameters.scores.most is 1e+301, need a number within +-1e300 or null"),
        ({"kind": 1}, "method.parameters.scores.kind is 1, need a text or null"),
        ({"least": 2, "most": 1}, "method.parameters.scores.least is 2, need at most the 1 of"),
    ],
)
@pytest.mark.parametrize("name", ["theirs", "r2"])
def test_facts_that_are_none_are_neither_written_nor_read(
    tmp_path: Path, toy_scores, name: str, stated: Any, told: str
) -> None:
    scores = replace(toy_scores, method=Method(name, "", 1, {"scores": stated}))
    with pytest.raises(FileFormatError) as error:
        write_score_file(tmp_path / "a.json", scores)
    assert told in str(error.value)
    payload = json.loads(write_score_file(tmp_path / "b.json", toy_scores).read_text())
    payload["method"]["parameters"] = {"scores": stated}
    (tmp_path / "b.json").write_text(json.dumps(payload))
    with pytest.raises(FileFormatError) as error:
        read_score_file(tmp_path / "b.json")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("facts", "check", "told"),
    [
        ({"least": 0.0}, "impossible-values", BELOW),
        ({"least": -0.25}, "impossible-values", "a score of -0.5; `theirs` gives at least -0.25"),
        ({"least": -0.5}, "impossible-values", None),
        ({"most": 2.0}, "above-bound", ABOVE),
        ({"most": 2.5}, "above-bound", None),
        ({}, "above-bound", None),
        ({}, "impossible-values", None),
    ],
)
def test_a_file_of_another_method_is_checked_by_what_it_states(
    tmp_path: Path, make_scores, facts: dict[str, float], check: str, told: str | None
) -> None:
    path = write_score_file(tmp_path / "a.json", make_scores([[[-0.5, 2.5]]], [True], method=theirs(**facts)))
    assert detail(path, check) == told


@pytest.mark.parametrize(
    ("kind", "trial", "told"),
    [
        (MASS, [0.25, 0.5, 0.75, 1.0], "in every trial the scores are multiples of 1/N (here of 1/4)"),
        (COUNT, [0.123456, 0.5, 0.777771, 0.31], "the scores are not multiples of 1/N"),
        (COUNT, [0.25, 0.5, 0.75, 1.0], None),
        ("peaks", [0.25, 0.5, 0.75, 1.0], None),
        (None, [0.25, 0.5, 0.75, 1.0], None),
    ],
)
def test_fractions_belong_to_the_kind_that_counts(
    tmp_path: Path, make_scores, kind: str | None, trial: list[float], told: str | None
) -> None:
    path = write_score_file(
        tmp_path / "a.json", make_scores([[trial[:2], trial[2:]]], [True], method=theirs(kind=kind))
    )
    found = detail(path, "impossible-values")
    assert found is None if told is None else told in (found or "")


def test_facts_of_an_estimator_named_by_hand_hold_for_files_that_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"0-0": [0.5], "0-1": [-3]}')
    scores = read_any(tmp_path / "a.json")
    suspect = replace(Suspect.of(scores), method="theirs", stated=MethodFacts(-2.0, 2.0))
    assert any("`theirs` gives at least -2" in found.detail for found in validate([suspect])[0].findings)
    assert Suspect.of(scores).facts == MethodFacts(0.0, 1.0)

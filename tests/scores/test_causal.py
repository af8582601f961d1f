from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from headprobe.errors import FileFormatError, OptionError, OutputExistsError
from headprobe.scores.any_scores import read_any
from headprobe.scores.causal import causal_results, with_causal
from headprobe.scores.merge import merge
from headprobe.scores.score_file import read_score_file, score_file_bytes, score_file_schema, write_score_file


def estimate(mean=0.5, low=0.25, high=0.75):
    return {"mean": mean, "low": low, "high": high, "num": 20}


def result(mode="mask", **changes):
    metrics = {"answered": estimate(), "text_loss": estimate(2.5, None, None)}
    sides = {side: copy.deepcopy(metrics) for side in ("top", "random", "difference")}
    step = {"k": 1, "num_off": 1, **sides, "draws": None}
    last = {**step, "k": 8, "random": None, "difference": None}
    made = {"mode": mode, "effect": "causal", "verdict": "The heads matter: é.", "num_prompts": 20, "num_needles": 20}
    return {**made, "whole": metrics, "steps": [step, last]} | changes


def test_a_result_comes_back_and_counts_for_the_id(toy_scores, tmp_path, reference_id):
    held = with_causal(toy_scores, result())
    path = write_score_file(tmp_path / "a.json", held)
    payload = json.loads(path.read_text(encoding="utf-8"))
    Draft202012Validator(score_file_schema()).validate(payload)
    assert payload["id"] == reference_id(payload) != json.loads(score_file_bytes(toy_scores))["id"]
    again = read_score_file(path)
    assert causal_results(again) == [result()]
    assert score_file_bytes(again) == path.read_bytes()
    assert causal_results(toy_scores) == causal_results(None) == []


def test_files_without_a_result_stay_as_they_are(toy_scores, tmp_path):
    path = write_score_file(tmp_path / "a.json", toy_scores)
    assert "causal" not in json.loads(path.read_text(encoding="utf-8"))
    assert score_file_bytes(read_score_file(path)) == path.read_bytes()


def test_each_mode_has_one_result_and_only_overwrite_replaces_it(toy_scores):
    held = with_causal(with_causal(toy_scores, result()), result("zero", num_prompts=7))
    assert [each["mode"] for each in causal_results(held)] == ["mask", "zero"]
    with pytest.raises(OutputExistsError, match="holds a result by 'mask' already; --overwrite replaces it"):
        with_causal(held, result())
    changed = with_causal(held, result(num_prompts=3), overwrite=True)
    assert [(each["mode"], each["num_prompts"]) for each in causal_results(changed)] == [("zero", 7), ("mask", 3)]


WRONG = [
    (lambda r: r.update(mode=3), r"causal\[0\].mode is 3, need a text"),
    (lambda r: r.update(effect="magic"), r"causal\[0\].effect is 'magic', need one of causal, unspecific, none"),
    (lambda r: r.pop("verdict"), r"causal\[0\].verdict is missing"),
    (lambda r: r.update(num_prompts=0), r"causal\[0\].num_prompts is 0, need at least 1"),
    (lambda r: r.update(steps={}), r"causal\[0\].steps is an object, need an array"),
    (lambda r: r["steps"][0].pop("random"), r"causal\[0\].steps\[0\].random is missing"),
    (lambda r: r["steps"][1].update(top=None), r"causal\[0\].steps\[1\].top is null, need an object"),
    (lambda r: r["steps"][0].update(k=0), r"causal\[0\].steps\[0\].k is 0, need at least 1"),
    (lambda r: r["steps"][0]["top"].update(answered=0.5), r"steps\[0\].top.answered is 0.5, need an object"),
    (lambda r: r["whole"]["answered"].update(low="x"), r"causal\[0\].whole.answered.low is 'x', need a number"),
    (lambda r: r["whole"]["answered"].update(high=1e7), r"whole.answered.high is 10000000.0, need -1e\+06 to 1e\+06"),
    (lambda r: r["whole"]["answered"].pop("mean"), r"causal\[0\].whole.answered.mean is missing"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_broken_result_is_refused_by_reader_writer_and_schema(toy_scores, broken, change, message):
    wrong = copy.deepcopy(result())
    change(wrong)
    with pytest.raises(OptionError, match=message):
        with_causal(toy_scores, wrong)
    path = broken(lambda payload: payload.update(causal=[wrong]))
    with pytest.raises(FileFormatError, match=message):
        read_score_file(path)
    assert not Draft202012Validator(score_file_schema()).is_valid(json.loads(path.read_text()))


@pytest.mark.parametrize(("value", "message"), [
    ({}, "causal is an object, need an array"), ([3], r"causal\[0\] is 3, need an object"),
    ([result(), result()], r"causal has two results of one mode \(mask, mask\)"),
])  # fmt: skip
def test_a_block_of_another_kind_is_refused(broken, value, message):
    with pytest.raises(FileFormatError, match=message):
        read_score_file(broken(lambda payload: payload.update(causal=value)))


def test_scores_that_are_merged_lose_the_result_and_say_so(toy_scores, tmp_path):
    other = replace(toy_scores, trials=tuple(replace(trial, id=f"x{trial.id}") for trial in toy_scores.trials))
    files = [
        read_any(write_score_file(tmp_path / name, with_causal(scores, result())))
        for name, scores in (("a.json", toy_scores), ("b.json", other))
    ]
    joint = merge(files)
    assert causal_results(joint.scores) == []
    assert any(
        note.startswith("causal is left out: it was measured by the order of heads of one") for note in joint.notes
    )

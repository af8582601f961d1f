from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.checks import Suspect, answer_length, effective_heads
from headprobe.scores.formats.keyed import keyed_bytes
from headprobe.scores.head_scores import HeadScores, Method
from headprobe.scores.score_file import write_score_file
from headprobe.scores.validation import CHECKS, FileReport, validate, validate_file

RNG = np.random.default_rng(7)
SOUND = RNG.random((40, 2, 8)) * 0.05 + np.linspace(0, 0.9, 16).reshape(2, 8) ** 2


@pytest.fixture
def keyed(tmp_path: Path):
    def write(trials: np.ndarray, name: str = "keyed.json") -> AnyScores:
        path = tmp_path / name
        path.write_bytes(keyed_bytes(np.asarray(trials, dtype=float)))
        return read_any(path)

    return write


def found(report: FileReport) -> dict[str, str]:
    return {finding.check: finding.severity for finding in report.findings}


def detail(report: FileReport, check: str) -> str:
    return next(finding.detail for finding in report.findings if finding.check == check)


def only(suspect: Suspect) -> FileReport:
    return validate([suspect])[0]


def check(scores: AnyScores, **stated: object) -> FileReport:
    return only(replace(Suspect.of(scores), **stated))  # type: ignore[arg-type]


def test_a_sound_foreign_file_lacks_provenance_and_nothing_else(keyed) -> None:
    report = check(keyed(SOUND))
    assert found(report) == {"no-provenance": "info"}
    assert not report.has_error
    assert set(report.passed) == {
        *("keys-out-of-order", "unequal-trials", "wrong-shape", "bad-config", "ranking-only", "above-bound"),
        *("impossible-values", "uniform-scores", "saturated-scores", "no-trials", "zero-trials", "duplicate-trials"),
        "too-few-trials",
    }


def test_every_check_has_a_name_of_its_own_in_kebab_case() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and " " not in name and "_" not in name for name in names)


def test_shuffled_keys_are_an_error(tmp_path: Path) -> None:
    keys = {f"{layer}-{head}": SOUND[:, layer, head].tolist() for layer in (1, 0) for head in range(8)}
    (tmp_path / "a.json").write_text(json.dumps(keys))
    report = validate_file(tmp_path / "a.json")
    assert found(report)["keys-out-of-order"] == "error"
    assert detail(report, "keys-out-of-order").startswith("key 1 is 1-0, in layer, head order it is 0-0")


def test_missing_heads_are_found_in_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"0-0": [1], "0-2": [1]}')
    report = validate_file(tmp_path / "a.json")
    assert (found(report), report.format) == ({"missing-heads": "error"}, None)


def test_another_shape_than_the_stated_model_is_an_error(keyed) -> None:
    geometry = ModelGeometry(2, 4, 2, 8, ("full_attention",) * 2)
    report = check(keyed(SOUND), model="toy", geometry=geometry, source="--model")
    assert detail(report, "wrong-shape") == "2 x 8 query heads, toy (stated by --model) has 2 x 4"


def test_a_table_of_kv_heads_is_held_against_the_kv_heads(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("1\t0.5\n0\t0.25\n")
    scores = read_any(tmp_path / "a.tsv")
    fits, other = (ModelGeometry(2, 8, kv, 8, ("full_attention",) * 2) for kv in (2, 4))
    assert "wrong-shape" not in found(check(scores, geometry=fits))
    assert "wrong-shape" in found(check(scores, geometry=other))


def test_zero_trials_are_counted(keyed) -> None:
    trials = SOUND.copy()
    trials[3] = trials[7] = 0.0
    report = check(keyed(trials))
    assert found(report)["zero-trials"] == "warning"
    assert detail(report, "zero-trials") == "2 of 40 trials are zero in every head, the first is trial 4"


def test_duplicates_tell_the_effective_number_and_the_run(keyed) -> None:
    report = check(keyed(np.concatenate([SOUND[:1]] * 5 + [SOUND[1:]])))
    assert found(report)["duplicate-trials"] == "warning"
    told = "40 of 44 trials are distinct, worth 30.2 equal ones; trials 1 to 5 are one and the same"
    assert detail(report, "duplicate-trials") == told  # 44 ** 2 / (25 + 39)


def test_half_duplicates_are_an_error(keyed) -> None:
    assert found(check(keyed(np.repeat(SOUND[:20], 2, axis=0))))["duplicate-trials"] == "error"


def test_scores_above_the_bound_are_an_error(keyed) -> None:
    trials = SOUND.copy()
    trials[2, 1, 3] = trials[5, 1, 4] = 1.88
    assert detail(check(keyed(trials)), "above-bound") == "2 heads score above 1 in 2 of 40 trials, up to 1.88"


def test_rounding_of_a_float_is_not_above_the_bound(keyed) -> None:
    trials = SOUND.copy()
    trials[2, 1, 3] = 1.0000000000000002
    assert "above-bound" not in found(check(keyed(trials)))


@pytest.mark.parametrize(("score", "seen"), [(15 / 14, None), (15 / 13, None), (15 / 12, "1 head scores above 1")])
@pytest.mark.parametrize("with_trials", [True, False])
def test_an_answer_may_take_two_tokens_less_in_the_context(
    tmp_path: Path, make_scores, score: float, seen: str | None, with_trials: bool
) -> None:
    scores = make_scores([[[score, 0.5]], [[score, 0.4]]], [True, True])
    scores = replace(scores, trials=tuple(replace(trial, num_steps=15) for trial in scores.trials))
    path = write_score_file(tmp_path / "a.json", scores, with_trial_scores=with_trials)
    told = found(validate_file(path)).get("above-bound")
    assert told == (None if seen is None else "error")
    if seen is not None:
        assert detail(validate_file(path), "above-bound").startswith(seen)


def test_even_scores_are_a_warning_and_equal_ones_an_error(keyed) -> None:
    even = 0.5 + 0.01 * RNG.random((40, 2, 8))
    assert found(check(keyed(even)))["uniform-scores"] == "warning"
    assert found(check(keyed(np.full((40, 2, 8), 0.5))))["uniform-scores"] == "error"


def test_many_heads_at_the_bound_are_a_warning(keyed) -> None:
    trials = SOUND.copy()
    trials[:, 0] = 1.0
    assert detail(check(keyed(trials)), "saturated-scores") == "8 of 16 heads score within 1 % of 1"


def test_few_noisy_trials_cannot_rank_the_top(keyed) -> None:
    report = check(keyed(RNG.random((6, 4, 16)) ** 4))
    assert found(report)["too-few-trials"] == "warning"
    assert "when 6 independent trials are resampled (200 times); 9 are needed" in detail(report, "too-few-trials")


def test_one_trial_tells_nothing_about_the_ranking(keyed) -> None:
    assert "1 independent trial: too few to tell how far the top 8 heads would change; 5 would be enough" in detail(
        check(keyed(SOUND[:1])), "too-few-trials"
    )


def test_negative_scores_are_impossible_but_for_contrast(keyed) -> None:
    trials = SOUND - 0.2
    report = check(keyed(trials))
    assert "; no method of this family gives less than 0" in detail(report, "impossible-values")
    assert "`r2` never gives less than 0" in detail(check(keyed(trials), method="r2"), "impossible-values")
    assert "impossible-values" not in found(check(keyed(trials), method="contrast"))
    assert "at least -1" in detail(check(keyed(trials - 1), method="contrast"), "impossible-values")


def test_counted_hits_are_multiples_of_one_fraction(keyed) -> None:
    hits = np.round(SOUND * 26) / 26
    assert "impossible-values" not in found(check(keyed(hits), method="retrieval"))
    assert found(check(keyed(hits), method="r2"))["impossible-values"] == "warning"
    assert "multiples of 1/N (here of 1/26)" in detail(check(keyed(hits), method="r2"), "impossible-values")
    told = detail(check(keyed(SOUND), method="retrieval"), "impossible-values")
    assert told.startswith("in 40 of 40 trials the scores are not multiples of 1/N for any N up to 256")


@pytest.mark.parametrize(
    ("values", "length"), [([0.0], 1), ([0.5, 1.0], 2), ([1 / 3, 0.5], 6), ([0.123456, 0.777771, 0.31], None)]
)
def test_the_length_of_the_answer_follows_from_the_fractions(values: list, length: int | None) -> None:
    assert answer_length(np.array([values])) == length


def test_as_many_even_heads_as_there_are() -> None:
    assert effective_heads(np.array([[1.0, 1.0, 1.0, 0.0]])) == pytest.approx(3.0)
    assert effective_heads(np.zeros((1, 2))) == 0.0


def test_trials_that_passed_below_their_gate_are_impossible(tmp_path: Path, toy_scores) -> None:
    method = replace(toy_scores.method, parameters={"gate": {"metric": "f1", "threshold": 0.5}})
    trials = tuple(replace(trial, f1=0.25, passed=True) for trial in toy_scores.trials)
    path = write_score_file(tmp_path / "a.json", replace(toy_scores, method=method, trials=trials))
    told = "4 trials count as passed with an F1 of 0.5 or less, first 'n0@256@0'"
    assert detail(validate_file(path), "impossible-values") == told


def test_trials_that_passed_without_the_words_that_decide_are_impossible(tmp_path: Path, toy_scores) -> None:
    method = replace(toy_scores.method, parameters={"gate": {"metric": "deciding_words", "threshold": 0.5}})
    shares = [0.5, 0.75, None, 1.0, *[0.75] * len(toy_scores.trials)]
    trials = tuple(
        replace(trial, f1=0.0, passed=True, extra={} if share is None else {"deciding_words": share})
        for trial, share in zip(toy_scores.trials, shares, strict=False)
    )
    path = write_score_file(tmp_path / "a.json", replace(toy_scores, method=method, trials=trials))
    told = "1 trials count as passed with a share of the deciding words of 0.5 or less, first 'n0@256@0'"
    assert detail(validate_file(path), "impossible-values") == told


def test_a_native_file_with_few_passes_is_told(tmp_path: Path, make_scores) -> None:
    tables = [[[0.1, 0.5]]] * 6
    scores = make_scores(tables, [True, True, False, False, False, False])
    report = validate_file(write_score_file(tmp_path / "a.json", scores))
    assert detail(report, "low-pass-rate") == "2 of 6 trials passed"
    assert found(report)["low-pass-rate"] == "warning"
    assert detail(report, "uneven-coverage") == "no trial passed at depth 50, 100"
    assert "no-provenance" in report.passed


def within(scores: HeadScores) -> HeadScores:
    """With depths of 0, 50 and 100 % in turn, however many trials there are."""
    return replace(scores, trials=tuple(replace(t, depth=i % 3 * 50.0) for i, t in enumerate(scores.trials)))


def test_few_passes_that_are_enough_are_a_fact_and_no_warning(tmp_path: Path, make_scores) -> None:
    whole = within(make_scores([*SOUND[:15], *SOUND[:25]], [True] * 15 + [False] * 25))
    report = validate_file(write_score_file(tmp_path / "a.json", whole))
    assert "too-few-trials" in report.passed
    assert found(report)["low-pass-rate"] == "info"
    assert detail(report, "low-pass-rate") == "15 of 40 trials passed; those are enough for a stable ranking"
    bare = write_score_file(tmp_path / "b.json", whole, with_trial_scores=False)
    assert found(validate_file(bare))["low-pass-rate"] == "warning"


@pytest.mark.parametrize(
    ("method", "zeros", "severity"),
    [("retrieval", 2, "info"), ("retrieval", 3, "warning"), ("retrieval", 21, "error"), ("r2", 1, "warning")],
)
def test_an_answer_without_a_hit_is_a_fact_in_a_count_and_a_fault_in_masses(
    tmp_path: Path, make_scores, method: str, zeros: int, severity: str
) -> None:
    tables = [*np.zeros((zeros, *SOUND[0].shape)), *SOUND[zeros:40]]
    scores = replace(within(make_scores(tables, [True] * 40)), method=Method(method, "f", 1, {}))
    report = validate_file(write_score_file(tmp_path / "a.json", scores))
    assert found(report)["zero-trials"] == severity
    why = "; the gate took their answers, whose tokens no head looked up first" if severity == "info" else ""
    told = f"{zeros} of 40 trials are zero in every head, the first is trial 1{why}"
    assert detail(report, "zero-trials") == told


def test_counts_that_agree_here_and_there_are_a_fact_and_side_by_side_a_warning(tmp_path: Path, make_scores) -> None:
    hits = [np.round(table, 2) for table in SOUND[:39]]
    apart, beside = [*hits, hits[0]], [hits[0], *hits]
    for tables, severity in ((apart, "info"), (beside, "warning")):
        counted = replace(within(make_scores(tables, [True] * 40)), method=Method("retrieval", "hits", 1, {}))
        report = validate_file(write_score_file(tmp_path / f"{severity}.json", counted))
        assert found(report)["duplicate-trials"] == severity
        assert detail(report, "duplicate-trials").startswith("39 of 40 trials are distinct, worth 38.1 equal ones")


def test_a_native_file_that_does_not_say_which_weights_is_told(tmp_path: Path, sample: bytes) -> None:
    (tmp_path / "a.json").write_bytes(sample)
    told = "neither the model's revision nor the sha256 of its config is stated"
    assert detail(validate_file(tmp_path / "a.json"), "no-provenance") == told


def test_a_method_without_known_bound_is_not_held_against_one(tmp_path: Path, make_scores) -> None:
    scores = make_scores([[[5.0, 1.0]]], [True], method=Method("mine", "", 1, {}))
    assert "above-bound" not in found(validate_file(write_score_file(tmp_path / "a.json", scores)))


def test_one_content_under_two_models_is_an_error_in_both(keyed) -> None:
    pair = [Suspect(keyed(SOUND, f"{name}.json"), model=name) for name in ("llama", "mistral")]
    reports = validate(pair)
    assert [found(report)["identical-scores"] for report in reports] == ["error", "error"]
    told = f"the same byte for byte as {pair[1].scores.path}: llama and mistral cannot have the same scores"
    assert detail(reports[0], "identical-scores") == told


def test_files_of_different_scores_are_told_apart(keyed) -> None:
    reports = validate([Suspect.of(keyed(SOUND)), Suspect.of(keyed(SOUND * 0.5, "half.json"))])
    assert all("identical-scores" in report.passed for report in reports)


def test_the_same_scores_in_another_format_are_found_too(keyed, tmp_path: Path) -> None:
    keys = {f"{layer}-{head}": SOUND[:, layer, head].tolist() for layer in (1, 0) for head in range(8)}
    (tmp_path / "shuffled.json").write_text(json.dumps(keys))
    reports = validate([Suspect.of(keyed(SOUND)), Suspect.of(read_any(tmp_path / "shuffled.json"))])
    assert [found(report)["identical-scores"] for report in reports] == ["warning", "warning"]
    assert "in every head's score" in detail(reports[0], "identical-scores")


def test_a_ranking_is_told_and_not_held_against_bounds(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("attn_head_set: 1-1,0-0")
    assert found(validate_file(tmp_path / "a.yaml")) == {"ranking-only": "info", "no-provenance": "info"}


def test_findings_come_gravest_first(keyed) -> None:
    trials = np.repeat(SOUND[:30], [11, *[1] * 29], axis=0)
    trials[20, 0, 0] = 3.0
    assert [finding.severity for finding in check(keyed(trials)).findings] == ["error", "warning", "info"]


def test_a_file_that_is_not_there_is_unreadable() -> None:
    report = validate_file("nowhere.json")
    assert [vars(finding)["detail"] for finding in report.findings] == ["No such file or directory"]
    assert found(report) == {"unreadable": "error"}

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import read_any
from headprobe.scores.head_scores import ScoreTable
from headprobe.scores.merge import merge
from headprobe.scores.score_file import read_score_file, write_score_file

FIRST = [[[0.0, 0.2], [0.9, 0.0]], [[0.2, 0.4], [0.7, 0.0]], [[9.0, 9.0], [9.0, 9.0]]]
SECOND = [[[0.4, 0.0], [0.5, 0.0]]]


def with_probes(scores, **changes):
    provenance = replace(scores.provenance, probes={**scores.provenance.probes, **changes})
    return replace(scores, provenance=provenance)


def renamed(scores, ending):
    return replace(scores, trials=tuple(replace(trial, id=trial.id + ending) for trial in scores.trials))


@pytest.fixture
def first(make_scores):
    return make_scores(FIRST, [True, True, False])


@pytest.fixture
def second(make_scores):
    return with_probes(renamed(make_scores(SECOND, [True]), "b"), lengths=[256, 1024], limit=1)


@pytest.fixture
def file(tmp_path):
    def write(name, scores, **options):
        return read_any(write_score_file(tmp_path / f"{name}.json", scores, **options))

    return write


def test_every_passing_trial_weighs_the_same(file, first, second):
    scores = merge([file("a", first), file("b", second)]).scores
    assert (scores.num_trials, scores.num_passed) == (4, 3)
    assert scores.mean == pytest.approx(np.array([[0.2, 0.2], [0.7, 0.0]]))
    assert [trial.id for trial in scores.trials] == [t.id for t in (*first.trials, *second.trials)]


def test_order_of_files_decides_the_order_of_trials_only(file, first, second):
    one, other = file("a", first), file("b", second)
    there, back = merge([one, other]).scores, merge([other, one]).scores
    assert there.mean == pytest.approx(back.mean)
    assert sorted(t.id for t in there.trials) == sorted(t.id for t in back.trials)


def test_the_joint_file_can_be_written_and_merged_again(file, make_scores, first, second):
    third = file("c", renamed(make_scores([[[0.8, 0.6], [0.3, 0.2]]], [True]), "c"))
    both = file("ab", merge([file("a", first), file("b", second)]).scores)
    whole = merge([both, third]).scores
    assert whole.num_passed == 4
    assert whole.mean == pytest.approx(np.array([[0.35, 0.3], [0.6, 0.05]]))
    assert len(whole.extra["parts"]) == 3


def test_the_provenance_of_all_parts_is_kept(file, first, second, tmp_path):
    joint = merge([file("a", first), file("b", second)]).scores
    write_score_file(tmp_path / "joint.json", joint)
    stored = json.loads((tmp_path / "joint.json").read_bytes())
    parts = stored["parts"]
    assert [part["id"] for part in parts] == [json.loads((tmp_path / f"{n}.json").read_bytes())["id"] for n in "ab"]
    assert [(part["num_trials"], part["num_passed"]) for part in parts] == [(3, 2), (1, 1)]
    assert parts[1]["probes"]["lengths"] == [256, 1024]
    assert parts[1]["created_at"] == "2025-01-31T12:00:00Z"
    assert stored["probes"]["lengths"] == [256, 512, 1024]
    assert stored["probes"]["needles"] == first.provenance.probes["needles"]
    assert "limit" not in stored["probes"]


def test_a_trial_in_both_files_is_taken_once(file, make_scores, first):
    longer = make_scores([*FIRST, [[0.4, 0.3], [0.2, 0.0]]], [True, True, False, True])
    merged = merge([file("a", first), file("b", longer)])
    assert merged.num_repeated == 3
    assert merged.scores.mean == pytest.approx(longer.mean)


def test_rounding_does_not_make_another_trial(file, make_scores, first):
    again = make_scores([*(np.array(FIRST) + 0.001), SECOND[0]], [True, True, False, True])
    assert merge([file("a", first), file("b", again)]).num_repeated == 3


def test_a_trial_with_two_results_is_refused(file, make_scores, first):
    other = make_scores([[[0.5, 0.2], [0.9, 0.0]]], [True])
    with pytest.raises(OptionError, match="trial 'n0@256@0' is in a.json and in b.json, with different results"):
        merge([file("a", first), file("b", other)])


def test_trials_of_one_name_and_another_seed_are_other_trials(file, make_scores, first):
    other = with_probes(make_scores(SECOND, [True]), seed=7)
    scores = merge([file("a", first), file("b", other)]).scores
    assert [trial.id for trial in scores.trials][2:] == ["n2@256@50", "n0@256@0#7"]
    assert [trial.extra["seed"] for trial in scores.trials] == [0, 0, 0, 7]
    assert "seed" not in scores.provenance.probes


def test_merged_files_remember_which_seed_a_trial_had(file, make_scores, first):
    seven = file("seven", with_probes(make_scores(SECOND, [True]), seed=7))
    both = file("both", merge([file("a", first), seven]).scores)
    again = merge([both, seven])
    assert (again.num_repeated, again.scores.num_trials) == (1, 4)
    assert len(again.scores.extra["parts"]) == 2


def test_without_trial_scores_tables_are_weighted_by_passing_trials(file, first, second):
    merged = merge([file("a", first, with_trial_scores=False), file("b", second)])
    expected = ScoreTable.of(np.concatenate([first.passing_scores, second.passing_scores]))
    assert merged.scores.mean == pytest.approx(expected.mean)
    assert merged.scores.std == pytest.approx(expected.std)
    assert merged.scores.normalized == pytest.approx(expected.normalized)
    assert not merged.scores.has_trial_scores
    assert merged.notes == ("no trial scores in a.json, so none in the joint file",)


def test_without_trial_scores_no_trial_may_come_twice(file, first, make_scores):
    longer = make_scores([*FIRST, SECOND[0]], [True, True, False, True])
    with pytest.raises(OptionError, match="without trial scores it cannot be taken out of the means"):
        merge([file("a", first, with_trial_scores=False), file("b", longer)])


def changed_model(scores, **changes):
    return replace(scores, provenance=replace(scores.provenance, model=replace(scores.provenance.model, **changes)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: changed_model(s, id="other"), "model.id is 'other' there and 'toy' here"),
        (lambda s: changed_model(s, config_sha256="f" * 64), "model.config_sha256 is 'ffff"),
        (lambda s: changed_model(s, dtype="bfloat16"), "model.dtype is 'bfloat16' there and 'float32' here"),
        (
            lambda s: replace(s, geometry=ModelGeometry(2, 2, 1, 16, ("full_attention",) * 2)),
            "model.num_key_value_heads is 1 there and 2 here",
        ),
        (lambda s: replace(s, method=replace(s.method, name="value")), "method.name is 'value' there and 'r2' here"),
        (lambda s: replace(s, method=replace(s.method, version=2)), "method.version is 2 there and 1 here"),
        (lambda s: replace(s, method=replace(s.method, parameters={})), "method.parameters is {} there"),
        (lambda s: with_probes(s, haystack={"name": "essays", "sha256": "0" * 64}), "probes.haystack.sha256 is '000"),
        (lambda s: with_probes(s, template="Q"), "probes.template is 'Q' there"),
    ],
)
def test_what_does_not_belong_together_is_refused(file, first, second, change, told):
    with pytest.raises(OptionError, match=f"b.json does not belong to a.json: {told}"):
        merge([file("a", first), file("b", change(second))])


def test_a_revision_that_one_file_does_not_know_is_taken_from_the_other(file, first, second):
    known = changed_model(second, revision="abc", attn_implementation="eager")
    merged = merge([file("a", first), file("b", known)])
    assert merged.scores.provenance.model.revision == "abc"
    assert merged.scores.provenance.model.attn_implementation is None
    assert "model.revision differs: unknown, 'abc'" in merged.notes


def test_foreign_files_single_files_and_the_same_file_twice_are_refused(file, first, tmp_path):
    keyed = tmp_path / "keyed.json"
    keyed.write_text(json.dumps({"0-0": [0.5], "0-1": [0.25]}))
    with pytest.raises(OptionError, match="keyed.json is of format headkv: only native files can be merged"):
        merge([read_any(keyed), file("a", first)])
    with pytest.raises(OptionError, match="1 score file given, need at least 2"):
        merge([file("b", first)])
    with pytest.raises(OptionError, match="c.json has the same content as .*a.json"):
        merge([read_any(tmp_path / "a.json"), file("c", first)])


def test_the_command_writes_the_joint_file_and_says_how_many_trials(cli, file, first, second, tmp_path):
    paths = [file("a", first).path, file("b", second).path]
    done = cli("scores", "merge", *paths, "-o", tmp_path / "ab.json", "--json")
    assert done.code == 0
    told = {"num_parts": 2, "num_trials": 4, "num_passed": 3, "num_repeated": 0, "notes": []}
    assert json.loads(done.out) == {"path": str(tmp_path / "ab.json"), **told}
    assert read_score_file(tmp_path / "ab.json").num_passed == 3
    again = cli("scores", "merge", *paths, "-o", tmp_path / "ab.json")
    assert (again.code, again.out) == (10, "")
    assert "ab.json already exists; --overwrite replaces it" in again.err
    replaced = cli("scores", "merge", *paths, "-o", tmp_path / "ab.json", "--overwrite")
    assert replaced.out == f"2 files, 3 of 4 trials passed; written to {tmp_path / 'ab.json'}\n"

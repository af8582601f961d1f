from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headprobe.errors import FileFormatError, NonFiniteError, NoPassingTrialError, OutputExistsError
from headprobe.geometry import ModelGeometry
from headprobe.scores.head_scores import HeadScores, Method, ScoreTable, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance
from headprobe.scores.score_file import (
    load_scores,
    newest_score_file,
    read_score_file,
    score_file_bytes,
    write_score_file,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NUMBERS = st.floats(-1e6, 1e6)
VALUES = st.sampled_from([None, True, 3, 0.1, -0.0, 2.0**60, "é", [], {}, [[1.5]], {"a": [{"b": "\u2028"}]}])
FREE = st.dictionaries(TEXT.map(lambda key: f"x{key}"), VALUES, max_size=2)


@st.composite
def any_scores(draw):
    layers, kv_heads, group = (draw(st.integers(1, 3)) for _ in range(3))
    geometry = ModelGeometry(
        layers, kv_heads * group, kv_heads, 8, tuple(draw(st.lists(TEXT, min_size=layers, max_size=layers)))
    )
    passed = [True, *draw(st.lists(st.booleans(), max_size=3))]
    trials = tuple(
        Trial(
            id=str(i),
            needle=draw(TEXT),
            length=draw(st.integers(1, 2**40)),
            depth=draw(st.floats(0, 100)),
            passed=flag,
            f1=draw(st.floats(0, 1)),
            response=draw(TEXT),
            num_steps=draw(st.integers(0, 99)),
            scores=draw(arrays(np.float64, geometry.shape, elements=NUMBERS)) if flag or draw(st.booleans()) else None,
            extra=draw(FREE),
        )
        for i, flag in enumerate(passed)
    )
    model = ModelIdentity(draw(TEXT), draw(TEXT | st.none()), extra=draw(FREE))
    provenance = Provenance(model, None, draw(FREE), draw(FREE), "2025-01-31T12:00:00Z")
    return HeadScores(
        geometry, Method(draw(TEXT), "f", 2, draw(FREE), draw(FREE)), trials, provenance, None, draw(FREE)
    )


@settings(max_examples=60, deadline=None)
@given(scores=any_scores())
def test_round_trip_is_exact(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("files") / "scores.json"
    loaded = read_score_file(write_score_file(path, scores))
    assert loaded.geometry == scores.geometry
    assert loaded.method == scores.method
    assert loaded.provenance == scores.provenance
    assert loaded.trials == scores.trials
    assert loaded.extra == scores.extra
    for name in ("mean", "std", "normalized"):
        assert getattr(loaded, name).tobytes() == getattr(scores, name).tobytes()
    assert score_file_bytes(loaded) == path.read_bytes()


def test_schema_comes_first_and_the_blocks_in_order(sample):
    assert list(json.loads(sample)) == [
        *("schema", "id", "created_at", "model", "tokenizer", "method", "probes", "trials", "scores"),
        *("trial_scores", "environment"),
    ]
    assert sample.startswith(b'{\n  "schema": "headprobe/1",\n  "id": "')


def test_complete_text_of_a_small_file(sample, reference_id):
    assert sample.decode() == (
        '{\n  "schema": "headprobe/1",\n  "id": "' + reference_id(json.loads(sample)) + '",\n'
        '  "created_at": "2025-01-31T12:00:00Z",\n'
        '  "model": {\n    "id": "toy",\n    "revision": null,\n    "config_sha256": null,\n'
        '    "architecture": null,\n    "num_hidden_layers": 1,\n    "num_attention_heads": 2,\n'
        '    "num_key_value_heads": 1,\n    "head_dim": 8,\n    "layer_types": ["full_attention"],\n'
        '    "dtype": null,\n    "attn_implementation": null\n  },\n'
        '  "tokenizer": null,\n'
        '  "method": {\n    "name": "r2",\n    "formula": "f",\n    "parameters": {"gate": 0.5},\n'
        '    "version": 1\n  },\n'
        '  "probes": {\n    "lengths": [64]\n  },\n'
        '  "trials": [\n    {"id": "a@64@0", "needle": "a", "length": 64, "depth": 0.0, "passed": true, "f1": 1.0, '
        '"response": "The answer é.", "num_steps": 3}\n  ],\n'
        '  "scores": {\n    "mean": [\n      [0.25, 1.0]\n    ],\n    "std": [\n      [0.0, 0.0]\n    ],\n'
        '    "normalized": [\n      [0.2, 0.8]\n    ],\n    "num_trials": 1,\n    "num_passed": 1\n  },\n'
        '  "trial_scores": [\n    [\n      [0.25, 1.0]\n    ]\n  ],\n'
        '  "environment": {\n    "os": "x"\n  }\n}\n'
    )


def test_id_is_the_digest_of_the_canonical_payload(toy_scores, reference_id):
    payload = json.loads(score_file_bytes(toy_scores))
    assert payload["id"] == reference_id(payload)


def test_id_leaves_out_time_and_environment(toy_scores):
    later = replace(toy_scores.provenance, created_at="2030-01-01T00:00:00Z", environment={"device": "other"})
    moved = replace(toy_scores, provenance=later)
    first, second = (json.loads(score_file_bytes(scores)) for scores in (toy_scores, moved))
    assert first["id"] == second["id"]
    assert [key for key in first if first[key] != second[key]] == ["created_at", "environment"]


def test_id_survives_a_program_that_writes_whole_numbers_without_a_point(broken):
    without_points = broken(fix_id=False, encode=lambda payload: json.dumps(payload).replace(".0", ""))
    assert "1.0" not in without_points.read_text()
    assert read_score_file(without_points).mean.tolist() == [[0.25, 1.0]]


def test_same_scores_give_the_same_bytes(toy_scores):
    assert score_file_bytes(toy_scores) == score_file_bytes(toy_scores)


def test_time_of_writing_is_used_when_none_is_given(toy_scores, tmp_path):
    scores = replace(toy_scores, provenance=replace(toy_scores.provenance, created_at=None))
    stamp = read_score_file(write_score_file(tmp_path / "s.json", scores)).provenance.created_at
    assert stamp is not None
    assert stamp.endswith("Z")


def test_trial_scores_can_be_left_out(toy_scores, tmp_path):
    path = write_score_file(tmp_path / "s.json", toy_scores, with_trial_scores=False)
    loaded = load_scores(path)
    assert "trial_scores" not in json.loads(path.read_bytes())
    assert [trial.scores for trial in loaded.trials] == [None] * 4
    assert np.array_equal(loaded.mean, toy_scores.mean)
    assert np.array_equal(loaded.std, toy_scores.std)
    assert loaded.num_passed == 3
    assert score_file_bytes(loaded) == path.read_bytes()


def test_trials_without_scores_are_null(make_scores, tmp_path):
    failed = Trial("f", "n", 64, 0.0, False, 0.0, "", 3)
    good = Trial("g", "n", 64, 0.0, True, 1.0, "", 3, np.array([[0.5]]))
    path = write_score_file(tmp_path / "s.json", make_scores([[[0.0]]], [True], trials=(failed, good)))
    assert json.loads(path.read_bytes())["trial_scores"] == [None, [[0.5]]]
    assert load_scores(path).trials == (failed, good)


def test_unknown_fields_are_kept_when_the_file_is_written_again(broken, tmp_path):
    def add(payload):
        payload["merged_from"] = ["one", {"two": 2.5}]
        for block in ("model", "method", "scores", "probes", "environment"):
            payload[block]["new"] = [block]
        payload["trials"][0]["seconds"] = 0.25

    path = broken(add)
    again = write_score_file(tmp_path / "again.json", read_score_file(path))
    assert json.loads(again.read_bytes()) == json.loads(path.read_bytes())


# refused when writing


def test_non_finite_numbers_are_refused_in_writing(toy_scores, tmp_path):
    odd = replace(toy_scores, method=replace(toy_scores.method, parameters={"threshold": float("nan")}))
    with pytest.raises(NonFiniteError, match=r"method.parameters.threshold is nan; numbers must be finite"):
        write_score_file(tmp_path / "s.json", odd)
    assert list(tmp_path.iterdir()) == []


def test_what_json_cannot_hold_is_refused_in_writing(toy_scores, tmp_path):
    odd = replace(toy_scores, method=replace(toy_scores.method, parameters={"seed": np.int64(3)}))
    with pytest.raises(FileFormatError, match=r"cannot be written: JSON cannot hold 3 \(numpy.int64\)"):
        write_score_file(tmp_path / "s.json", odd)


def test_what_readers_refuse_is_refused_in_writing(toy_scores, tmp_path):
    odd = replace(toy_scores, trials=(replace(toy_scores.trials[0], f1=1.5),))
    with pytest.raises(FileFormatError, match=r"cannot be written: trials\[0\].f1 is 1.5, need 0 to 1"):
        write_score_file(tmp_path / "s.json", odd)


def test_scores_without_a_passing_trial_are_never_written(make_scores, tmp_path):
    with pytest.raises(NoPassingTrialError, match="none of 1 trials passed"):
        write_score_file(tmp_path / "s.json", make_scores([[[0.5]]], [False]))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_asked(toy_scores, tmp_path):
    path = tmp_path / "s.json"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"s.json already exists; --overwrite replaces it"):
        write_score_file(path, toy_scores)
    assert path.read_text() == "mine"
    write_score_file(path, toy_scores, overwrite=True)
    assert load_scores(path).num_passed == 3
    assert [file.name for file in tmp_path.iterdir()] == ["s.json"]


def test_stored_table_is_written_as_it_is(make_scores, tmp_path):
    table = ScoreTable(np.array([[0.1 + 0.2]]), np.array([[0.0]]), np.array([[1.0]]))
    scores = make_scores([[[0.3]]], [True], stored=table)
    path = write_score_file(tmp_path / "s.json", scores)
    assert load_scores(path).mean.tolist() == [[0.30000000000000004]]


# the newest file


def test_newest_score_file_goes_by_time_then_name(tmp_path):
    for name, time in (("b.json", 50), ("c.json", 50), ("a.json", 20), ("d.txt", 90), (".e.json", 90)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time, time))
    assert newest_score_file(tmp_path).name == "c.json"


def test_no_score_file_is_told(tmp_path):
    with pytest.raises(FileFormatError, match=r"no score file in .*; `headprobe score` makes one"):
        newest_score_file(tmp_path)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores, Converted, StatedFacts, convert, read_any
from headprobe.scores.score_file import write_score_file
from headprobe.scores.uncertainty import ClusteredTrials

GEOMETRY = ModelGeometry(2, 4, 2, 16, ("full_attention",) * 2)
TOY = StatedFacts("org/toy", GEOMETRY)
TRIALS = np.random.default_rng(3).random((3, 2, 4))
KEYED = json.dumps({f"{la}-{h}": TRIALS[:, la, h].tolist() for la in range(2) for h in range(4)})


@pytest.fixture
def held(tmp_path: Path) -> Callable[[str | bytes], AnyScores]:
    def write(data: str | bytes) -> AnyScores:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return read_any(path)

    return write


def table_of(made: Converted) -> bytes:
    return next(iter(made.files.values()))


def test_keyed_to_native_and_back_keeps_every_trial_and_bit(held) -> None:
    native = held(table_of(convert(held(KEYED), "headprobe", TOY)))
    assert (native.format, native.model, native.geometry) == ("headprobe", "org/toy", GEOMETRY)
    back = table_of(convert(native, "headkv", StatedFacts()))
    assert json.loads(back) == json.loads(KEYED)
    assert list(json.loads(back)) == list(json.loads(KEYED))


def test_what_a_keyed_file_does_not_tell_is_named_as_placeholder(held) -> None:
    made = convert(held(KEYED), "headprobe", StatedFacts("org/toy", GEOMETRY, "retrieval"))
    payload = json.loads(table_of(made))
    assert payload["method"]["name"] == "retrieval"
    assert payload["probes"]["placeholders"] == ["depth", "f1", "length", "needle", "num_steps", "response"]
    assert payload["probes"]["converted_from"]["format"] == "headkv"
    assert "placeholders are used: depth, f1, length, needle, num_steps, response" in made.lost[0]


def test_equal_trials_share_a_needle_so_that_they_are_drawn_together(held) -> None:
    twice = json.dumps({f"{la}-{h}": [*TRIALS[:, la, h], TRIALS[0, la, h]] for la in range(2) for h in range(4)})
    native = held(table_of(convert(held(twice), "headprobe", TOY)))
    assert [trial.needle for trial in native.native.trials] == ["unknown-1", "unknown-2", "unknown-3", "unknown-1"]
    assert ClusteredTrials.of_any(native).num_clusters == 3


def test_keyed_to_duo_joins_query_heads_and_says_so(held) -> None:
    made = convert(held(KEYED), "duo", TOY)
    mean = TRIALS.mean(axis=0).reshape(2, 2, 2).mean(axis=2)
    assert held(made.files["full_attention_heads.tsv"]).mean == pytest.approx(mean, abs=1e-15)
    config = json.loads(made.files["config.json"])
    assert config == {"model_name": "org/toy", "sink_size": 128, "recent_size": 256}
    assert made.lost == (
        "lost: single query heads; each KV head has the mean of the 2 that share it",
        "lost: the trials and everything known about them",
    )


def test_keyed_to_duo_by_the_largest(held) -> None:
    table = held(convert(held(KEYED), "duo", StatedFacts("t", GEOMETRY, gqa="max")).files["full_attention_heads.tsv"])
    assert table.mean.tolist() == TRIALS.mean(axis=0).reshape(2, 2, 2).max(axis=2).tolist()


@pytest.mark.parametrize("middle", ["headprobe", "headkv"])
def test_duo_comes_back_to_the_last_bit(held, middle: str) -> None:
    table = "1.234567890123456789e-01\t1e-17\n0.1\t0.7\n"
    wide = StatedFacts("org/toy", ModelGeometry(2, 6, 2, 16, ("full_attention",) * 2))
    through = held(table_of(convert(held(table), middle, wide)))
    assert through.mean.shape == (2, 6)
    back = held(convert(through, "duo", wide).files["full_attention_heads.tsv"])
    assert back.mean.tobytes() == held(table).mean.tobytes()


def test_duo_to_duo_keeps_its_config(held) -> None:
    made = convert(held("1\t0\n"), "duo", StatedFacts(config={"model_name": "m", "sink_size": 4, "lr": 0.02}))
    config = json.loads(made.files["config.json"])
    assert config == {"model_name": "m", "sink_size": 4, "recent_size": 256, "lr": 0.02}
    assert made.lost == ()


def test_scores_outside_of_duos_range_are_kept_and_told(held) -> None:
    made = convert(held('{"0-0": [1.5], "0-1": [0]}'), "duo", StatedFacts("t", ModelGeometry(1, 2, 2, 8, ("f",))))
    assert "scores from 0 to 1.5 where Duo's lie between 0 and 1; kept as they are" in made.lost


def test_a_native_file_loses_its_provenance_in_keyed_json(tmp_path: Path, toy_scores) -> None:
    source = read_any(write_score_file(tmp_path / "a.json", toy_scores))
    made = convert(source, "headkv", StatedFacts())
    assert json.loads(table_of(made))["0-1"] == [0.2, 0.4, 0.6]
    assert made.lost == (
        "lost: model, method, tokenizer, probes, environment; everything about a trial except its scores",
        "lost: 1 trials that did not pass",
    )


def test_without_trial_scores_each_head_has_its_mean(tmp_path: Path, toy_scores) -> None:
    source = read_any(write_score_file(tmp_path / "a.json", toy_scores, with_trial_scores=False))
    made = convert(source, "headkv", StatedFacts())
    assert json.loads(table_of(made))["0-1"] == [source.mean[0, 1]]
    assert "not in the source: the trials' scores; each head has its mean as the only trial" in made.lost


def test_native_to_native_is_the_same_file(tmp_path: Path, toy_scores) -> None:
    path = write_score_file(tmp_path / "a.json", toy_scores)
    assert convert(read_any(path), "headprobe", StatedFacts()) == Converted({"": path.read_bytes()}, ())


def test_a_ranking_fills_the_models_shape_and_stays_a_ranking(held) -> None:
    native = held(table_of(convert(held("attn_head_set: 0-2,0-0"), "headprobe", TOY)))
    assert native.is_ranking
    assert native.mean.tolist() == [[1.0, 0.0, 2.0, 0.0], [0.0] * 4]
    keyed = convert(held("attn_head_set: 0-2,0-0"), "headkv", TOY)
    assert "points for the place in the ranking are used as scores" in keyed.lost
    assert held(table_of(keyed)).mean.tolist() == native.mean.tolist()


@pytest.mark.parametrize(
    ("data", "to", "target", "told"),
    [
        (KEYED, "tsv", TOY, "--to is 'tsv', need one of headprobe, headkv, duo"),
        (
            KEYED,
            "headprobe",
            StatedFacts(),
            "does not state which query heads share a KV head; give --model or --num-kv-heads",
        ),
        ("1\t0\n", "headkv", StatedFacts(), "does not state which query heads share a KV head; give --model"),
        ('{"0-0": [1]}', "duo", TOY, "has 1 x 1 heads, org/toy has 2 x 4"),
        ("attn_head_set: 5-0", "headprobe", TOY, "has 6 x 1 heads, org/toy has 2 x 4"),
    ],
)
def test_what_cannot_be_written_is_refused(held, data: str, to: str, target: StatedFacts, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        convert(held(data), to, target)

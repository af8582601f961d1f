from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from headprobe.scores.score_file import write_score_file


@pytest.fixture
def path(tmp_path, make_scores):
    """24 trials of 12 needles in two lengths, the last one failed; heads lie far apart."""
    rng = np.random.default_rng(0)
    tables = np.linspace(0.9, 0.1, 24).reshape(2, 12) + 0.001 * rng.random((24, 2, 12))
    scores = make_scores(list(tables), [True] * 23 + [False])
    rows = [replace(t, depth=float(i % 3 * 50), needle=f"n{i // 2}") for i, t in enumerate(scores.trials)]
    return write_score_file(tmp_path / "toy.json", replace(scores, trials=tuple(rows)))


def test_json_holds_all_that_was_found(cli, path):
    done = cli("scores", "stability", path, "--top", 10, "--show", 3, "--json")
    assert done.code == 0
    record = json.loads(done.out)
    assert record["verdict"] == "the top 10 are stable; about 10.0 of the top 10 would be reproduced"
    wanted = {"num_trials": 24, "num_passed": 23, "num_clusters": 12, "stable_top": 10, "top": 10} | {
        "more_trials": 0, "more_clusters": 0,
    }  # fmt: skip
    assert {name: record[name] for name in wanted} == wanted
    assert record["is_stable"] is True
    assert [(h["layer"], h["head"], h["rank"], h["rank_low"], h["rank_high"]) for h in record["top_heads"]] == [
        (0, 0, 1, 1, 1), (0, 1, 2, 2, 2), (0, 2, 3, 3, 3),
    ]  # fmt: skip
    assert record["split_half"]["spearman"] > 0.99
    assert {kind: len(groups) for kind, groups in record["groups"].items()} == {"length": 2, "depth": 3, "needle": 12}


@pytest.mark.parametrize(("clusters", "number"), [("needle-length", 23), ("needle", 12), ("trial", 23)])
def test_clusters_are_chosen(cli, path, clusters, number):
    record = json.loads(cli("scores", "stability", path, "--clusters", clusters, "--json").out)
    assert (record["clusters"], record["num_clusters"]) == (clusters, number)


def test_the_text_says_verdict_intervals_and_groups(cli, path):
    out = cli("scores", "stability", path).out
    assert "23 of 24 trials passed, 12 independent (trials of one needle count once)" in out
    assert "the top 12 are stable" in out  # half of the 24 heads
    for part in ("rank interval", "how much of the top would be reproduced", "by length:", "by depth:", "by needle:"):
        assert part.replace("by needle:", "the 10 of 12 needles that differ most:") in out


def test_a_foreign_file_is_taken_with_the_trials_it_has(cli, tmp_path):
    file = tmp_path / "keyed.json"
    file.write_text(json.dumps({"0-0": [0.9, 0.7, 0.9], "0-1": [0.5, 0.6, 0.5], "1-0": [0, 0, 0], "1-1": [0, 0, 0]}))
    out = cli("scores", "stability", file, "--top", 1).out
    assert "3 of 3 trials passed, 2 independent (trials with equal scores count once)" in out
    assert "2 independent trials are too few to tell what is stable: need at least 10" in out
    assert "this file does not state lengths, depths and needles" in out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--top", "0"], "the top is 0, need 1 to 23 of 24 heads"),
        (["--show", "-1"], "--show is -1, need at least 0"),
        (["--agreement", "1.5"], "agreement is 1.5, need a number between 0 and 1"),
        (["--clusters", "depth"], "clustered by needle-length, needle, trial, not 'depth'"),
        (["--resamples", "0"], "num_resamples is 0, need at least 1"),
    ],
)
def test_bad_options_end_with_2_and_one_line(cli, path, options, told):
    done = cli("scores", "stability", path, *options)
    assert (done.code, done.out) == (2, "")
    assert told in done.err


def test_a_file_without_trial_scores_cannot_tell(cli, tmp_path, toy_scores):
    path = write_score_file(tmp_path / "bare.json", toy_scores, with_trial_scores=False)
    done = cli("scores", "stability", path)
    assert done.code == 2
    assert "holds no trial scores: the certainty of its ranks is unknown" in done.err

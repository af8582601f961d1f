from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.score_file import write_score_file
from headprobe.scores.summary import DistinctTrials, half_mass_heads, summarize


@pytest.fixture
def keyed(tmp_path: Path):
    def write(value: dict) -> AnyScores:
        path = tmp_path / "keyed.json"
        path.write_text(json.dumps(value))
        return read_any(path)

    return write


def test_the_figures_of_a_small_file(keyed) -> None:
    found = summarize(keyed({"0-0": [1, 0.5, 1], "0-1": [0, 0, 0], "1-0": [0, 0.5, 0], "1-1": [0.5, 1, 0.5]}), top=2)
    assert (found.num_trials, found.num_passed, found.num_distinct_trials) == (3, 3, 2)
    assert found.sum_of_means == pytest.approx((2.5 + 0 + 0.5 + 2) / 3)
    assert found.max == pytest.approx(2.5 / 3)
    assert found.zero_fraction == 0.25
    assert found.half_mass_heads == 1  # 2.5 of 5
    assert found.layer_means == pytest.approx((2.5 / 6, 2.5 / 6))
    assert [(head.layer, head.head) for head in found.top_heads] == [(0, 0), (1, 1)]
    assert found.top_heads[0].share == pytest.approx(0.5)


def test_the_interval_draws_equal_trials_together(keyed) -> None:
    # Two distinct trials, ten times each: 1 and 0. A resample of two gives means 0, 1/2 or 1, so the interval is all.
    found = summarize(keyed({"0-0": [1] * 10 + [0] * 10, "0-1": [0.5] * 20}))
    assert found.top_heads[0].interval == (0.0, 1.0)
    assert found.top_heads[1].interval == (0.5, 0.5)


def test_failing_trials_count_as_trials(tmp_path: Path, toy_scores) -> None:
    found = summarize(read_any(write_score_file(tmp_path / "a.json", toy_scores)))
    assert (found.num_trials, found.num_passed, found.num_distinct_trials) == (4, 3, 3)
    assert found.top_heads[0].interval is not None


def test_without_trials_there_is_neither_count_nor_interval(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("1\t0\n")
    found = summarize(read_any(tmp_path / "a.tsv"))
    assert (found.num_trials, found.num_passed, found.num_distinct_trials) == (None, None, None)
    assert [head.interval for head in found.top_heads] == [None, None]


def test_a_ranking_lists_its_own_heads_only(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("attn_head_set: 1-1,0-0")
    assert [(h.layer, h.head) for h in summarize(read_any(tmp_path / "a.yaml")).top_heads] == [(1, 1), (0, 0)]


def test_a_negative_number_of_heads_is_refused(keyed) -> None:
    with pytest.raises(OptionError, match="top is -1, need at least 0"):
        summarize(keyed({"0-0": [1]}), top=-1)


@pytest.mark.parametrize(
    ("mean", "heads"),
    [([[1.0, 1.0, 1.0, 1.0]], 2), ([[3.0, 1.0, 1.0, 1.0]], 1), ([[1.0, -5.0, 1.0, 1.0]], 2), ([[-1.0, 0.0]], 0)],
)
def test_half_of_the_mass_lies_in_so_many_heads(mean: list, heads: int) -> None:
    assert half_mass_heads(np.array(mean)) == heads


def test_trials_are_distinct_by_their_scores() -> None:
    found = DistinctTrials.of(np.array([[[0.0, 1.0]], [[-0.0, 1.0]], [[1.0, 1.0]], [[1.0, 0.0]], [[0.0, 1.0]]]))
    assert found.groups == ((0, 1, 4), (2,), (3,))
    assert found.longest_run == (0, 1)
    assert found.effective == pytest.approx(25 / 11)

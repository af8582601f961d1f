"""Which heads `razor` takes for retrieval heads: the best by induction, and a few of the best by echo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headprobe.compression.policies import make_policy
from headprobe.evaluation.known_scores import known_scores, with_best_of
from headprobe.geometry import ModelGeometry
from headprobe.models.catalog import bundled_model_folder
from headprobe.models.loading import load_model
from headprobe.scores.any_scores import AnyScores, read_any

GEOMETRY = ModelGeometry(10, 10, 10, 8, ("full_attention",) * 10)


def scores(table: np.ndarray, method: str) -> AnyScores:
    base = read_any(bundled_model_folder() / "scores" / "demo--r2.json")
    return replace(base, mean=table, method=method, native=None, geometry=GEOMETRY)


def test_of_a_hundred_heads_fourteen_are_taken_by_induction_and_one_by_echo() -> None:
    induction, echo = np.arange(100.0).reshape(10, 10), np.arange(100.0)[::-1].reshape(10, 10)
    joined = with_best_of(scores(induction, "induction"), scores(echo, "echo"), GEOMETRY)
    best = np.argsort(-joined.mean.ravel(), kind="stable")[:15]
    assert sorted(best.tolist()) == [0, *range(86, 100)]  # echo ranks head 0 first


def test_a_kv_head_counts_as_its_best_query_head() -> None:
    geometry = ModelGeometry(1, 4, 2, 8, ("full_attention",))
    table = np.array([[0.0, 3.0, 2.0, 1.0]])
    joined = with_best_of(scores(table, "induction"), scores(table[:, ::-1].copy(), "echo"), geometry)
    # Induction places by head: 4, 1, 2, 3, divided by 14; echo places: 3, 2, 1, 4. The least by KV head: 1/14, 2/14.
    assert joined.heads == "kv"
    assert joined.mean.tolist() == [pytest.approx([14.0, 7.0])]


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo")


def test_razor_takes_induction_and_echo_where_both_are_there(demo: Any, tmp_path: Path) -> None:
    found, remark = known_scores(demo, make_policy("razor"), None, tmp_path)
    assert found is not None
    assert (found.method, found.heads, remark) == ("induction", "kv", None)
    best = np.argsort(-found.mean.ravel(), kind="stable")[:4].tolist()
    assert {4 * 5 + 2, 4 * 4 + 3, 4 * 4 + 1} <= set(best)  # KV heads of 5-4, 4-7 and 4-2


def test_a_file_that_is_given_is_taken_as_it_is(demo: Any) -> None:
    path = bundled_model_folder() / "scores" / "demo--retrieval.json"
    found, remark = known_scores(demo, make_policy("razor"), path)
    assert found is not None
    assert np.array_equal(found.mean, read_any(path).mean)
    assert remark == "razor is meant for induction scores, demo--retrieval.json has retrieval"

"""The share of the full cache's score that is kept, its bounds, and what they prove."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headprobe.errors import NoPassingTrialError
from headprobe.evaluation.tuning.kept_share import KEPT, LOST, UNKNOWN, Kept, candidates_of, least_clusters, smallest


def rows(
    policy: str, scores: list[float], *, budget: int | None = 8, size: int = 100, **more: Any
) -> list[dict[str, Any]]:
    return [
        {"policy": policy, "budget": None if policy == "full" else budget, "prompt": f"p{n}", "set": "s",
         "cluster": f"c{n}", "score": score, "error": None, "evicts": policy != "full", "kv_bytes": size,
         "kv_entries": size, "full_kv_entries": 200, **more}
        for n, score in enumerate(scores)
    ]  # fmt: skip


def kept(scores: list[float], full: list[float], **more: Any) -> Kept:
    return Kept.of(rows("a", scores, **more), rows("full", full, **more))


def test_the_share_is_that_of_the_sums() -> None:
    found = kept([1.0, 0.5, 0.0, 0.0], [1.0, 0.5, 0.5, 0.0])
    assert found.share == pytest.approx(1.5 / 2.0)
    assert (found.score, found.full_score) == (pytest.approx(0.375), pytest.approx(0.5))


def test_bounds_are_quantiles_of_resampled_shares() -> None:
    ours, full = [1.0] * 8 + [0.0] * 2, [1.0] * 10
    found = kept(ours, full)
    rng = np.random.default_rng(5)
    shares = [rng.choice(ours, 10).mean() for _ in range(20000)]
    assert found.low == pytest.approx(np.quantile(shares, 0.05))  # 0.6: ten draws give tenths
    assert found.high == pytest.approx(np.quantile(shares, 0.95))


def test_whole_clusters_are_drawn() -> None:
    alone = kept([1.0] * 5 + [0.0] * 5, [1.0] * 10)
    paired = Kept.of(
        [row | {"cluster": f"c{n // 5}"} for n, row in enumerate(rows("a", [1.0] * 5 + [0.0] * 5))],
        [row | {"cluster": f"c{n // 5}"} for n, row in enumerate(rows("full", [1.0] * 10))],
    )
    assert (paired.low, paired.high, paired.num_clusters) == (0.0, 1.0, 2)
    assert alone.low > 0.0


def test_sets_weigh_alike_however_many_prompts_they_have() -> None:
    sets = ["s", "s", "s", "t"]
    own = [row | {"set": name} for row, name in zip(rows("a", [1.0, 1.0, 1.0, 0.0]), sets, strict=True)]
    full = [row | {"set": name} for row, name in zip(rows("full", [1.0] * 4), sets, strict=True)]
    assert Kept.of(own, full).share == pytest.approx(0.5)


def test_a_full_cache_that_answers_nothing_is_an_error() -> None:
    with pytest.raises(NoPassingTrialError, match="the model answers nothing here: the full cache scores 0 on all 3"):
        kept([1.0, 0.0, 0.0], [0.0, 0.0, 0.0])


def test_no_loss_on_few_clusters_proves_little() -> None:
    few, enough = kept([1.0] * 28, [1.0] * 28), kept([1.0] * 29, [1.0] * 29)
    assert (few.low, enough.low) == (1.0, 1.0)
    assert few.verdict(0.9)[0] == UNKNOWN
    assert "29 clusters held out would prove it" in few.verdict(0.9)[1]
    assert enough.verdict(0.9)[0] == KEPT
    assert 0.9**29 < 0.05 < 0.9**28  # where a tenth of all is lost, 29 without a loss come up in less than 5 %


def test_a_wide_interval_cannot_tell_and_a_clear_loss_is_one() -> None:
    wide = kept([1.0] * 36 + [0.0] * 4, [1.0] * 40)
    assert wide.verdict(0.9)[0] == UNKNOWN
    assert "less than 90 % cannot be ruled out" in wide.verdict(0.9)[1]
    assert kept([1.0] * 20 + [0.0] * 20, [1.0] * 40).verdict(0.9)[0] == LOST
    assert kept([1.0] * 500, [1.0] * 500).verdict(1.0)[0] == UNKNOWN
    assert least_clusters(1.0) is None


def test_the_smallest_that_keeps_enough_is_chosen_whatever_the_order() -> None:
    full = rows("full", [1.0] * 20, size=200)
    large = rows("large", [1.0] * 20, budget=32, size=120)
    small = rows("small", [1.0] * 20, budget=16, size=60)
    smaller = rows("smaller", [1.0] * 10 + [0.0] * 10, budget=8, size=40)
    whole = rows("whole", [1.0] * 20, budget=1, size=10, evicts=False)
    for order in (large + small + smaller + whole + full, full + whole + smaller + small + large):
        found = candidates_of(order)
        assert [c.label for c in found] == ["whole", "smaller", "small", "large"]
        best = smallest(found, 0.97)
        assert best is not None
        assert (best.label, best.budget, best.entries_share) == ("small", 16, 0.3)
    assert smallest(candidates_of(smaller + full), 0.97) is None


def test_a_candidate_that_ran_out_of_memory_is_not_chosen() -> None:
    broken = rows("small", [1.0] * 4, size=60)
    broken[2] |= {"error": "no room", "score": None, "kv_bytes": None}
    found = candidates_of(rows("full", [1.0] * 4) + broken)
    assert found[0].on_calibration is None
    assert smallest(found, 0.5) is None


def test_nine_of_ten_is_a_share_of_nine_tenths() -> None:
    full = [0.3] * 10
    assert Kept(0.9 - 1e-12, 0.9 - 1e-12, 0.9, 0.27, 0.3, 10, 10).keeps(0.9)
    assert not kept([0.3] * 8 + [0.0] * 2, full).keeps(0.9)

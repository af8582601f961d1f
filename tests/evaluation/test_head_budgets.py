from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from headprobe.compression.policies import make_policy
from headprobe.errors import OptionError
from headprobe.evaluation.head_budgets import ReferenceLoss, budget_table
from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.score_file import write_score_file
from tests.compression.scores import random_scores

KEYED = '{"0-0": [0.5, 0.25], "0-1": [0, 0], "0-2": [1, 0.75], "0-3": [0, 0.25]}'
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.fixture
def keyed(tmp_path: Path) -> AnyScores:
    path = tmp_path / "keyed.json"
    path.write_text(KEYED)
    return read_any(path)


def native(folder: Path, geometry: ModelGeometry, seed: int = 0) -> AnyScores:
    return read_any(write_score_file(folder / f"{seed}.json", random_scores(geometry, seed)))


def test_a_foreign_file_gives_budgets_by_the_mean_of_its_query_heads(keyed: AnyScores) -> None:
    # means 0.375 0 0.875 0.125; KV heads 0.1875 0.5; 12 to give: 6 each, and 12 by share: 3.27 and 8.73; window 8
    table = budget_table(keyed, make_policy(beta=2.0), 2, budget=20, prompt_tokens=64)
    assert table.head_scores.tolist() == [[0.1875, 0.5]]
    assert table.capacity.tolist() == [[17, 23]]
    assert (table.entries, table.full_entries, table.lost) == (40, 128, 0)


def test_max_takes_the_best_query_head(keyed: AnyScores) -> None:
    # KV heads 0.375 0.875: 12 * 0.3 = 3.6 and 8.4
    table = budget_table(keyed, make_policy(beta=2.0), 2, budget=20, prompt_tokens=64, gqa="max")
    assert table.capacity.tolist() == [[18, 22]]


def test_a_short_prompt_caps_heads_and_hands_the_rest_on(keyed: AnyScores) -> None:
    table = budget_table(keyed, make_policy(beta=2.0), 2, budget=20, prompt_tokens=22)
    assert table.capacity.tolist() == [[18, 22]]


def test_the_published_code_loses_what_its_heads_cannot_use(keyed: AnyScores) -> None:
    # query heads 0.375 0 0.875 0.125 of 1.375, times 24, plus 6 + 8: 20.5 14 29.3 16.2 -> 21 14 29 16; 29 > 22
    table = budget_table(keyed, make_policy(beta=2.0), 2, budget=20, prompt_tokens=22)
    assert table.reference == ReferenceLoss("query", asked=80, wanted=80, spent=73, lost=Fraction(7, 80))
    assert table.reference.lost_to_rounding == 0
    assert table.reference.lost_to_clamping == Fraction(7, 80)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [1.005, 1.2, 10.0])
def test_the_loss_is_that_of_a_plain_loop(seed: int, beta: float) -> None:
    scores = np.random.default_rng(seed).gamma(0.3, size=(3, 8))
    budget, window, prompt = 40, 8, 150
    pool = (budget - window) // beta
    wanted = spent = 0
    for score in scores.ravel().tolist():
        capacity = round(score / scores.sum() * pool * scores.size + (budget - window - pool)) + window
        wanted += capacity
        spent += min(capacity, prompt)
    loss = ReferenceLoss.of(scores, "kv", budget, window, beta, prompt)
    assert (loss.asked, loss.wanted, loss.spent) == (budget * scores.size, wanted, spent)
    assert loss.lost == loss.lost_to_rounding + loss.lost_to_clamping == 1 - Fraction(spent, budget * scores.size)


def test_compat_caps_without_handing_on(keyed: AnyScores) -> None:
    # KV heads 0.1875 0.5 of 0.6875, times 12, plus 6 + 8: 17.3 22.7 -> 17 23; 23 > 20
    table = budget_table(keyed, make_policy(beta=2.0, compat="headkv"), 2, budget=20, prompt_tokens=22)
    assert table.capacity.tolist() == [[17, 22]]
    assert table.lost == Fraction(1, 40)


def test_a_ratio_follows_the_prompt(keyed: AnyScores) -> None:
    table = budget_table(keyed, make_policy("snapkv"), 2, ratio=0.25, prompt_tokens=100)
    assert table.capacity.tolist() == [[25, 25]]
    assert table.budget == 25
    assert table.reference is None


def test_a_prompt_within_the_budget_keeps_everything(keyed: AnyScores) -> None:
    table = budget_table(keyed, make_policy(), 2, budget=64, prompt_tokens=64)
    assert (table.capacity.tolist(), table.reference, table.lost) == ([[64, 64]], None, 0)
    assert table.notes == ("the prompt is no longer than the budget: nothing is evicted",)


def test_sliding_layers_are_left_out(tmp_path: Path) -> None:
    scores = native(tmp_path, ModelGeometry(4, 4, 2, 8, (SLIDING, FULL, SLIDING, FULL)))
    table = budget_table(scores, make_policy(), 2, budget=16, prompt_tokens=64)
    assert table.layers == (1, 3)
    assert table.capacity.shape == (2, 2)
    assert table.capacity.sum() == 16 * 4
    assert table.notes == ("2 sliding-window layers are left as they are",)
    np.testing.assert_allclose(table.head_scores, scores.mean[[1, 3]].reshape(2, 2, 2).mean(2))
    assert table.reference is not None
    assert table.reference.asked == 16 * 8


def test_a_model_of_sliding_layers_alone_is_refused(tmp_path: Path) -> None:
    scores = native(tmp_path, ModelGeometry(2, 4, 2, 8, (SLIDING, SLIDING)))
    with pytest.raises(OptionError, match="none of the 2 layers sees the whole prompt"):
        budget_table(scores, make_policy(), 2, budget=16)


def test_the_prompt_is_as_long_as_the_longest_that_was_scored(tmp_path: Path, keyed: AnyScores) -> None:
    scores = native(tmp_path, ModelGeometry(1, 4, 2, 8, (FULL,)))
    assert budget_table(scores, make_policy(), 2, budget=16).prompt_tokens == 64
    assert budget_table(keyed, make_policy(), 2, budget=16).prompt_tokens == 8192


def test_bytes_count_key_and_value_in_the_models_dtype(tmp_path: Path, keyed: AnyScores) -> None:
    scores = native(tmp_path, ModelGeometry(1, 4, 2, 8, (FULL,)))
    assert budget_table(scores, make_policy(), 2, budget=16).bytes_per_entry == 2 * 8 * 2
    assert budget_table(keyed, make_policy(), 2, budget=16).bytes_per_entry is None


def test_scores_of_another_method_are_named(keyed: AnyScores) -> None:
    table = budget_table(replace(keyed, method="retrieval"), make_policy(), 2, budget=16)
    assert table.notes == ("headkv-r2 is meant for r2 scores, the file has retrieval",)


def test_heads_that_all_score_nothing_get_the_same(keyed: AnyScores) -> None:
    zero = replace(keyed, mean=np.zeros((1, 4)))
    table = budget_table(zero, make_policy(), 2, budget=16)
    assert table.capacity.tolist() == [[16, 16]]
    assert table.reference is None
    assert table.notes == ("no head scores above 0: all KV heads count the same",)
    with pytest.raises(OptionError, match="--compat headkv needs a score above 0, keyed.json has none"):
        budget_table(zero, make_policy(compat="headkv"), 2, budget=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 4}, "a budget of 4 entries per KV head is below the 8 that window and sinks take"),
        ({"budget": 16, "ratio": 0.5}, "needs a budget or a ratio, one of the two"),
        ({"budget": 16, "gqa": "sum"}, "query heads are joined by 'mean' or 'max', not 'sum'"),
        ({"budget": 16, "prompt_tokens": 0}, "a prompt of 0 tokens is too short"),
    ],
)
def test_what_does_not_fit_is_refused(keyed: AnyScores, options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        budget_table(keyed, make_policy(), 2, **options)


def test_query_heads_need_the_number_of_kv_heads(keyed: AnyScores) -> None:
    with pytest.raises(OptionError, match="keyed.json does not say how many KV heads its model has"):
        budget_table(keyed, make_policy(), None, budget=16)

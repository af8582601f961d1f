"""The split of prompts, and what is searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from headprobe.compression.policies import make_policy
from headprobe.errors import OptionError, PlanError
from headprobe.evaluation.task_grid import TaskOptions
from headprobe.evaluation.task_prompts import TaskPrompt
from headprobe.evaluation.tuning.search import TuneOptions, split

# -- the split ------------------------------------------------------------------------------------------------------


def prompts(clusters: Sequence[str], name: str = "s") -> list[TaskPrompt]:
    return [TaskPrompt(f"{n}", name, (1,), ("a",), (), "qa_f1", 1, False, c) for n, c in enumerate(clusters)]


def test_the_split_keeps_clusters_together_and_goes_by_the_seed() -> None:
    given = prompts([f"c{n // 2}" for n in range(40)])
    first, second = split(given, 0.5, 0)
    assert (len(first), len(second)) == (20, 20)
    assert {p.cluster for p in first} & {p.cluster for p in second} == set()
    assert split(given, 0.5, 0) == (first, second)
    assert {p.cluster for p in split(given, 0.5, 1)[0]} != {p.cluster for p in first}
    assert {p.cluster for p in split(given[::-1], 0.5, 0)[0]} == {p.cluster for p in first}


def test_every_set_is_split_by_itself() -> None:
    given = [*prompts([f"a{n}" for n in range(10)], "a"), *prompts([f"b{n}" for n in range(30)], "b")]
    first, second = split(given, 0.5, 3)
    assert [sum(p.set == name for p in side) for side in (first, second) for name in "ab"] == [5, 15, 5, 15]


def test_too_few_clusters_are_refused() -> None:
    with pytest.raises(PlanError, match="18 prompts in 9 clusters are too few: 4 .* and 5 held out, need at least 5"):
        split(prompts([f"c{n // 2}" for n in range(18)]), 0.5, 0)


# -- candidates -----------------------------------------------------------------------------------------------------


def options(*policies: str, **changes: Any) -> TuneOptions:
    return TuneOptions(TaskOptions(tasks=(), policies=("full", *policies)), **{"keep": 0.9, **changes})


def test_every_setting_is_tried_on_the_policies_that_have_it_and_each_candidate_once() -> None:
    asked = options("h2o", "snapkv", "headkv-r2", windows=(2, 8), betas=(1.1, 1.3))
    assert [asked.label(policy) for policy in asked.policies()] == [
        "h2o", "snapkv window=2", "snapkv window=8", "headkv-r2 window=2 beta=1.1", "headkv-r2 window=2 beta=1.3",
        "headkv-r2 window=8 beta=1.1", "headkv-r2 window=8 beta=1.3",
    ]  # fmt: skip
    assert asked.policies()[-1] == make_policy("headkv-r2", window=8, beta=1.3)


def test_a_setting_that_no_policy_has_is_refused() -> None:
    with pytest.raises(OptionError, match=r"none of snapkv, h2o has a beta \(given: 1.1\)"):
        options("snapkv", "h2o", betas=(1.1,))

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from headprobe.errors import OptionError, PlanError
from headprobe.probes.haystack import load_haystack
from headprobe.probes.needle import NeedleSet, load_needles
from headprobe.probes.plan import ProbePlan, difference

Make = Callable[..., ProbePlan]


def test_the_default_grid_is_the_papers_100_trials() -> None:
    plan = ProbePlan.build(load_needles("reasoning"), load_haystack("essays"), (1, 2, 3, 4, 5))
    assert plan.num_trials == len(plan.trials()) == 100
    assert len(plan.depths) == 10


def test_trials_come_by_length_depth_and_place_in_the_set_with_unique_ids(make_plan: Make) -> None:
    trials = make_plan(num_needles=5).trials()
    assert [(t.length, t.depth) for t in trials] == sorted((t.length, t.depth) for t in trials)
    assert len({t.id for t in trials}) == len(trials)
    for first, second in zip(trials[::2], trials[1::2], strict=True):
        assert (first.length, first.depth) == (second.length, second.depth)
        assert first.needle.id < second.needle.id


def test_an_id_tells_needle_length_and_depth(make_plan: Make) -> None:
    plan = make_plan(num_needles=1, lengths=(1024,), depths=(0, 100 / 9))
    assert [t.id for t in plan.trials()] == ["n0@1024@0", "n0@1024@11.1111"]


@pytest.mark.parametrize(("num_needles", "per_cell"), [(1, 1), (1, 2), (3, 2), (7, 3), (20, 2), (4, 4), (4, 9)])
@pytest.mark.parametrize("seed", range(5))
def test_needles_are_used_equally_often_and_never_twice_in_a_cell(
    make_plan: Make, num_needles: int, per_cell: int, seed: int
) -> None:
    plan = make_plan(num_needles=num_needles, needles_per_cell=per_cell, seed=seed)
    trials = plan.trials()
    assert len(trials) == plan.num_trials == 20 * min(per_cell, num_needles)
    assert len({t.id for t in trials}) == len(trials)
    counts = Counter(t.needle.id for t in trials)
    used = [counts[f"n{i}"] for i in range(num_needles)]
    assert max(used) - min(used) <= 1


def test_needles_are_not_bound_to_depths(make_plan: Make) -> None:
    trials = make_plan(num_needles=5, needles_per_cell=1).trials()
    hands = {length: tuple(t.needle.id for t in trials if t.length == length) for length in (64, 128, 256, 512)}
    assert len(set(hands.values())) > 1


def test_the_seed_decides_the_deal(make_plan: Make) -> None:
    ids = {tuple(t.id for t in make_plan(num_needles=9, seed=seed).trials()) for seed in range(6)}
    assert len(ids) == 6
    assert make_plan(num_needles=9, seed=3).trials() == make_plan(num_needles=9, seed=3).trials()


def test_lengths_and_depths_are_sorted_and_repeated_ones_reported(make_plan: Make) -> None:
    plan = make_plan(lengths=(512, 64, 512, 512), depths=(50, 0.0, 50.00001))
    assert plan.lengths == (64, 512)
    assert plan.depths == (0.0, 50.0)
    assert plan.removed == ("length 512", "length 512", "depth 50")
    assert make_plan().removed == ()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lengths": (0, 5)}, OptionError, "length 0 must be at least 1 token"),
        ({"lengths": (-5,)}, OptionError, "length -5 must be at least 1 token"),
        ({"lengths": (512, 4096), "window": 2048}, PlanError, "length 4096 is beyond .* window of 2048"),
        ({"depths": (0, 100.5)}, OptionError, "depth 100.5 must lie between 0 and 100"),
        ({"depths": (float("nan"),)}, OptionError, "depth nan must lie"),
        ({"lengths": ()}, PlanError, "0 lengths and 5 depths do not make a grid"),
        ({"depths": ()}, PlanError, "4 lengths and 0 depths do not make a grid"),
        ({"needles_per_cell": 0}, OptionError, "needles per cell must be at least 1, got 0"),
        ({"needles": NeedleSet("none", "", ())}, PlanError, "the needle set 'none' is empty"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(
    make_plan: Make, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_plan(**changes)


def test_the_digest_is_the_same_for_the_same_probes(make_plan: Make) -> None:
    assert make_plan().digest == make_plan(lengths=(512, 256, 128, 64, 64), window=4096).digest
    known = ProbePlan(NeedleSet("mine", "a" * 64, make_plan().needles.needles), "essays", "b" * 64, (64,), (0.0, 50.0))
    assert known.digest == "8ae98d7d60c1cd95787b6a399915405e153fe30742db2beec549de92e468c1d4"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"chat": False}, {"template": "{context} {question}"}, {"lengths": (64,)}, {"depths": (1, 2)},
        {"needles_per_cell": 1}, {"num_needles": 4},
    ],
)  # fmt: skip
def test_any_change_of_the_probes_changes_the_digest_and_is_named(make_plan: Make, change: dict[str, Any]) -> None:
    before, after = make_plan(), make_plan(**change)
    assert before.digest != after.digest
    (line,) = difference(before.describe(), after.describe())
    name = next(iter(change)).replace("num_needles", "needles.count")
    assert line.startswith(f"{name}: ")


def test_differences_survive_json_and_name_what_is_missing(make_plan: Make) -> None:
    description = make_plan().describe()
    assert difference(description, json.loads(json.dumps(description))) == []
    assert difference({"a": {"b": 1}}, {"a": {"c": (2,)}}) == ["a.b: 1 -> nothing", "a.c: nothing -> [2]"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 19, 20, 21, 33, 39, 40, 41, 1000])
def test_a_limit_gives_so_many_trials_of_the_plan_in_order(make_plan: Make, limit: int) -> None:
    plan = make_plan(num_needles=3)
    trials, chosen = plan.trials(), plan.limited(limit)
    assert len(chosen) == min(limit, len(trials))
    places = [trials.index(t) for t in chosen]
    assert places == sorted(set(places))


def test_a_limit_spreads_over_lengths_and_depths(make_plan: Make) -> None:
    chosen = make_plan(num_needles=3).limited(10)
    assert {t.length for t in chosen} == {64, 128, 256, 512}
    assert len({t.depth for t in chosen}) >= 4


def test_no_limit_gives_all_trials(make_plan: Make) -> None:
    assert make_plan().limited(None) == make_plan().trials()


def test_a_limit_below_1_is_refused(make_plan: Make) -> None:
    with pytest.raises(OptionError, match="at least 1 trial, got 0"):
        make_plan().limited(0)


# -- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": tuple(i / 100 for i in range(1001))}, "1,001 depths are too many, need at most 1,000"),
        ({"lengths": tuple(range(1, 1002))}, "1,001 lengths are too many, need at most 1,000"),
        ({"needles_per_cell": 10_001}, "10,001 needles per cell are too many, need at most 10,000"),
        (
            {"lengths": tuple(range(100, 300)), "depths": tuple(range(51)), "needles_per_cell": 1},
            r"10,200 trials \(lengths x depths x needles per cell\) are too many, need at most 10,000",
        ),
    ],
)
def test_a_plan_without_end_is_refused(make_plan: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_plan(**changes)


def test_the_largest_plan_is_built(make_plan: Make) -> None:
    plan = make_plan(lengths=tuple(range(100, 110)), depths=tuple(i / 10 for i in range(1000)), needles_per_cell=1)
    assert len(plan.trials()) == plan.num_trials == 10_000


LONG = "Policy(name='snapkv', selector=Window(window={}, pool={}), allocator=Uniform(), keeps_all=False, sinks={})"


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ((8, 7, 0), (16, 7, 0), "...window=8... -> ...window=16..."),
        ((8, 7, 0), (9, 5, 0), "...window=8, pool=7... -> ...window=9, pool=5..."),
        ((8, 7, 0), (8, 7, 4), "...sinks=0... -> ...sinks=4..."),
        ((8, 7, "1, 2"), (8, 7, "1"), "..., 2... -> nothing"),
    ],
)
def test_of_long_values_the_part_that_differs_is_shown(before: Any, after: Any, shown: str) -> None:
    assert difference({"rule": LONG.format(*before)}, {"rule": LONG.format(*after)}) == [f"rule: {shown}"]


def test_long_values_without_anything_in_common_are_shown_whole() -> None:
    one, other = "a" * 70, "b" * 70
    assert difference({"rule": one}, {"rule": other}) == [f"rule: {one} -> {other}"]
    assert difference({"rule": one}, {}) == [f"rule: {one} -> nothing"]

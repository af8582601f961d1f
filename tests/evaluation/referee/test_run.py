"""The referee: curves and areas by hand, and a small whole run on the bundled model, killed and gone on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headprobe.errors import NoPassingTrialError, OptionError
from headprobe.evaluation import referee as referee_module
from headprobe.evaluation.referee import PARTS, Referee, RefereeFolder, RefereeOptions, RefereePlan, check_part
from headprobe.evaluation.referee_result import Curve, Head, RefereeResult, Verdict, knockout_curve, recall_at
from headprobe.models.loading import load_model
from headprobe.profiling.estimators import ESTIMATORS
from headprobe.profiling.journal import Journal

OPTIONS = RefereeOptions(
    detectors=("r2", "induction", "echo"), length=256, trials=4, prompts=2, heads=(1, 4), draws=1, budgets=(32,)
)


def test_the_area_is_that_of_trapezes_over_the_number_of_heads() -> None:
    curve = Curve((0, 2, 4), (1.0, 0.5, 0.5), (1.0, 1.0, 0.0))
    assert curve.area == pytest.approx((1.5 + 1.0) / 4)
    assert curve.random_area == pytest.approx((2.0 + 1.0) / 4)
    assert Curve((0, 3), (1.0, 1.0), (1.0, 0.0)).area == 1.0


def test_a_curve_takes_out_the_first_heads_of_the_order() -> None:
    asked: list[tuple[Head, ...]] = []

    def answers(heads: Sequence[Head]) -> list[bool]:
        asked.append(tuple(heads))
        return [(1, 0) not in heads, (0, 1) not in heads, True, True]

    order = [(1, 0), (0, 1), (0, 0), (1, 1)]
    curve = knockout_curve(order, 2, (1, 2), 1, answers)
    assert asked[:3] == [(), ((1, 0),), ((1, 0), (0, 1))]
    assert curve.left == (1.0, 0.75, 0.5)


def test_random_orders_have_a_head_of_the_same_layer_in_every_place() -> None:
    taken: list[tuple[Head, ...]] = []

    def answers(heads: Sequence[Head]) -> list[bool]:
        taken.append(tuple(heads))
        return [True]

    order = [(1, 0), (0, 1), (1, 5), (0, 0), (1, 7)]
    knockout_curve(order, 8, (5,), 3, answers)
    others = [heads for heads in taken if heads and heads != tuple(order)]
    assert len(set(others)) == 3
    assert all([layer for layer, _ in heads] == [1, 0, 1, 0, 1] for heads in others)
    assert all(len(set(heads)) == 5 for heads in others)


def test_recall_counts_known_heads_among_the_first() -> None:
    order = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert recall_at(order, [(0, 1), (1, 1)], (1, 2, 4)) == {1: 0.0, 2: 0.5, 4: 1.0}


def test_agreement_is_spearman_and_shared_heads_over_those_that_scored() -> None:
    def verdict(name: str, mean: list[list[float]] | None) -> Verdict:
        return Verdict(name, None, 1, 1, None, (), None if mean is None else np.array(mean))

    tables = {"a": [[4.0, 3.0, 2.0, 1.0]], "b": [[1.0, 2.0, 3.0, 4.0]], "none": None, "flat": [[1.0] * 4]}
    result = RefereeResult("toy", {}, 1, 1, tuple(verdict(n, t) for n, t in tables.items()), {})
    ranks, shared = result.agreement()
    assert [v.name for v in result.scored] == ["a", "b", "flat"]
    assert result.top == 3
    assert ranks[0, 1] == -1.0
    assert np.isnan(ranks[0, 2])
    assert shared[0, 1] == 2.0  # of the best three 0, 1, 2 and 3, 2, 1
    assert result.record()["agreement"]["spearman"][0][2] is None


# -- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo")


@pytest.fixture(scope="module")
def plan(demo: Any) -> RefereePlan:
    return RefereePlan.build(demo, OPTIONS)


def judged(demo: Any, plan: RefereePlan, path: Path, *, resume: bool = False, on_part: Any = None) -> RefereeResult:
    folder = RefereeFolder(path)
    with Journal.open(
        folder.file(PARTS), plan.describe(demo), resume=resume, overwrite=False, check=check_part
    ) as journal:
        return Referee(demo, plan, folder, journal, on_part=on_part).run()


@pytest.fixture(scope="module")
def result(demo: Any, plan: RefereePlan, tmp_path_factory: pytest.TempPathFactory) -> RefereeResult:
    return judged(demo, plan, tmp_path_factory.mktemp("referee"))


def test_answers_die_with_the_heads_that_scores_name_and_not_with_others(result: RefereeResult) -> None:
    found = {verdict.name: verdict for verdict in result.verdicts}
    assert list(found) == ["r2", "induction", "echo"]
    assert result.answered == 2
    for name in ("r2", "induction"):
        curve = found[name].curve
        assert curve is not None
        assert curve.heads == (0, 1, 4)
        assert curve.left[0] == 1.0
        assert curve.left[-1] == 0.0
        assert found[name].recall == {4: 1.0, 8: 1.0}
    echo = found["echo"].curve
    assert echo is not None
    assert echo.area == 1.0
    assert found["echo"].recall == {4: 0.0, 8: 0.0}


def test_budgets_by_scores_stand_beside_those_without(result: RefereeResult) -> None:
    assert set(result.baselines) == {"even", "random"}
    assert all(set(found) == {32} for found in result.baselines.values())
    assert all(verdict.budgets is not None and set(verdict.budgets) == {32} for verdict in result.verdicts)


def test_detectors_on_the_same_prompts_share_a_run(result: RefereeResult) -> None:
    found = {verdict.name: verdict for verdict in result.verdicts}
    assert found["induction"].shares == ("echo",)
    assert found["induction"].seconds == found["echo"].seconds
    assert found["r2"].shares == ()
    assert (found["r2"].needles, found["echo"].needles) == ("reasoning", None)


def test_a_killed_run_goes_on_with_the_parts_that_it_has(
    demo: Any, plan: RefereePlan, result: RefereeResult, tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    parts: list[str] = []

    def kill(part: str) -> None:
        parts.append(part)
        if len(parts) == 4:
            raise KilledError

    with pytest.raises(KilledError):
        judged(demo, plan, tmp_path, on_part=kill)
    later: list[str] = []
    again = judged(demo, plan, tmp_path, resume=True, on_part=later.append)
    assert not set(parts) & set(later)
    timeless = [
        json.loads(json.dumps(one.record()), object_hook=lambda d: {k: v for k, v in d.items() if k != "seconds"})
        for one in (again, result)
    ]
    assert timeless[0] == timeless[1]


def test_the_curve_can_be_another_ones(demo: Any, plan: RefereePlan, tmp_path: Path) -> None:
    orders = []

    def theirs(order: Sequence[Head], width: int, counts: Sequence[int], draws: int, answers: Any) -> Curve:
        orders.append(list(order[:1]))
        assert (width, counts, draws) == (8, (1, 4), 1)
        assert len(answers([])) == 2
        return Curve((0, 1), (1.0, 0.25), (1.0, 0.75))

    folder = RefereeFolder(tmp_path)
    with Journal.start(folder.file(PARTS), plan.describe(demo)) as journal:
        found = Referee(demo, plan, folder, journal, curve=theirs).run()
    assert len(orders) == 3
    assert all(verdict.curve is not None and verdict.curve.area == 0.625 for verdict in found.verdicts)


def test_a_model_that_answers_nothing_is_an_error_that_says_what_to_do(
    demo: Any, plan: RefereePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(referee_module, "is_answer", lambda response, needle: False)
    with pytest.raises(NoPassingTrialError, match="answered none of the 2 prompts with all its heads: take easier"):
        judged(demo, plan, tmp_path)


def test_all_of_our_detectors_are_judged_unless_some_are_named() -> None:
    assert RefereeOptions().detectors == tuple(name for name in ESTIMATORS if name in ESTIMATORS.ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials is 0, need at least 1"),
        ({"draws": 0}, "draws is 0, need at least 1"),
        ({"prompts": -1}, "prompts is -1, need at least 1"),
        ({"heads": ()}, "heads are none, need 1 to 10000"),
        ({"heads": (0, 4)}, "heads are 0, 4, need 1 to 10000"),
        ({"budgets": ()}, "no budget is given"),
        ({"detectors": ("nope",)}, "unknown method 'nope'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RefereeOptions(**options)


def test_more_heads_than_the_model_has_are_refused(demo: Any) -> None:
    with pytest.raises(OptionError, match="48 heads cannot be taken out, the model has 48"):
        RefereePlan.build(demo, RefereeOptions(detectors=("r2",), length=256, heads=(48,)))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"trial": "hidden|none", "answered": [1]}, "its answered is"),
        ({"trial": "budget|r2|32"}, "the field 'answered' is missing"),
        ({"trial": "run|r2", "seconds": -1.0, "unanswered": {}}, "its seconds is -1.0"),
        ({"trial": "run|r2", "seconds": 1.0, "unanswered": {"r2": 3}}, "its r2 is 3, need a text"),
    ],
)
def test_a_damaged_part_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_part(part)

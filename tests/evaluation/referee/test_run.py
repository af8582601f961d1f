"""A small whole run of the referee on the bundled model: against one set of heads at a time, killed and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headprobe.errors import NoPassingTrialError, OptionError, ResumeError
from headprobe.evaluation.knockout.bench import KnockoutBench
from headprobe.evaluation.referee.budgets import budget_trials
from headprobe.evaluation.referee.curves import random_orders
from headprobe.evaluation.referee.plan import RefereeOptions, RefereePlan, given_notes, read_given
from headprobe.evaluation.referee.result import KNOCKOUT, RefereeFolder, RefereeResult, Verdict, recall_at
from headprobe.evaluation.referee.run import Referee, RefereeWatch
from headprobe.evaluation.trials import Answered, AskedPrompt, Running, answered
from headprobe.models.catalog import bundled_model_folder
from headprobe.models.loading import LoadedModel, load_model
from headprobe.probes.answer import answered_share
from headprobe.profiling.estimators import ESTIMATORS
from headprobe.profiling.scoring import eos_token_ids
from headprobe.scores.any_scores import read_any
from headprobe.scores.head_scores import Head
from headprobe.scores.score_file import read_score_file, write_score_file
from tests.evaluation.knockout.plain_answers import answers_without
from tests.tiny_models import build_tiny_model

SHIPPED = bundled_model_folder() / "scores" / "demo--r2.json"
OPTIONS = RefereeOptions(
    detectors=("r2", "induction", "echo"), length=256, trials=4, prompts=2, heads=(1, 4), draws=1, budgets=(32,)
)


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
def demo() -> LoadedModel:
    return load_model("demo", device="cpu")


@pytest.fixture(scope="module")
def plan(demo: LoadedModel) -> RefereePlan:
    return RefereePlan.build(demo, OPTIONS)


def judged(
    demo: LoadedModel, plan: RefereePlan, path: Path, *, resume: bool = False, watch: RefereeWatch | None = None
) -> RefereeResult:
    folder = RefereeFolder(path)
    with folder.journal(plan.describe(demo), plan.check(), resume=resume, overwrite=False) as journal:
        return Referee(demo, plan, folder, journal, watch or RefereeWatch()).run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("referee")


@pytest.fixture(scope="module")
def result(demo: LoadedModel, plan: RefereePlan, folder: Path) -> RefereeResult:
    return judged(demo, plan, folder)


def plainly_answered(demo: LoadedModel, plan: RefereePlan, heads: Sequence[Head]) -> float:
    """The share of prompts answered without some heads, one prompt and one set of heads at a time."""
    said = answers_without(demo, plan.asked, heads, times=2)
    found = [answered_share(said[trial], needle) > 0.5 for trial, needle in plan.bench.needles.items()]
    return sum(found) / len(found)


def test_curves_are_those_of_one_set_of_heads_at_a_time(
    demo: LoadedModel, plan: RefereePlan, result: RefereeResult
) -> None:
    assert {prompt.trial_id for prompt in plan.asked} == set(plan.bench.needles)
    for verdict in result.verdicts:
        curve = verdict.curve
        assert curve is not None
        assert curve.left == tuple(plainly_answered(demo, plan, verdict.order[:k]) for k in (0, 1, 4))
        (other,) = random_orders(verdict.order[:4], 8, 1)
        assert curve.random == tuple(plainly_answered(demo, plan, other[:k]) for k in (0, 1, 4))


def test_answers_on_budgets_are_those_of_each_cache_alone(
    demo: LoadedModel, plan: RefereePlan, result: RefereeResult, folder: Path
) -> None:
    scores = {verdict.name: read_any(folder / "scores" / f"{verdict.name}.json") for verdict in result.verdicts}
    trials = budget_trials(demo, scores, plan.options)
    assert [trial.id for trial in trials] == ["r2|32", "induction|32", "echo|32", "even|32", "random|32"]
    shares = result.baselines | {v.name: v.budgets for v in result.verdicts if v.budgets is not None}
    for trial in trials:
        found = []
        for prompt in plan.asked:
            asked = AskedPrompt(prompt.trial_id, prompt.input_ids, len(prompt.input_ids), 2 * len(prompt.answer_ids))
            ((_, given),) = answered(demo, asked, [trial], Running(frozenset(eos_token_ids(demo)), seed=0))
            assert isinstance(given, Answered)
            response = demo.tokenizer.decode(list(given.made.tokens), skip_special_tokens=True)
            found.append(answered_share(response, plan.bench.needles[prompt.trial_id]) > 0.5)
        assert shares[trial.name][32] == sum(found) / len(found), trial.id


def test_answers_die_with_the_heads_that_scores_name_and_not_with_others(result: RefereeResult) -> None:
    found = {verdict.name: verdict for verdict in result.verdicts}
    assert list(found) == ["r2", "induction", "echo"]
    assert (result.asked, result.answered, result.needles) == (2, 2, 2)
    for name in ("r2", "induction"):
        curve = found[name].curve
        assert curve is not None
        assert curve.heads == (0, 1, 4)
        assert curve.left[0] == 1.0
        assert curve.left[-1] == 0.0
        assert found[name].recall == {4: 1.0, 8: 1.0}
    echo = found["echo"].curve
    assert echo is not None
    assert echo.area.mean == 1.0
    assert echo.effect == "unclear"  # two needles say nothing
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


class KilledError(Exception):
    """Ends a run wherever it is."""


@pytest.mark.parametrize("last", [1, 3, 5])
def test_a_killed_run_goes_on_with_the_parts_that_it_has(
    demo: LoadedModel, plan: RefereePlan, result: RefereeResult, tmp_path: Path, last: int
) -> None:
    """Behind a run of detectors, in the midst of the knockout and between the prompts on budgets."""
    parts: list[str] = []

    def kill(part: str) -> None:
        parts.append(part)
        if len(parts) == last:
            raise KilledError

    killing = RefereeWatch(kill, lambda done, total: kill(f"{done} of {total}"))
    with pytest.raises(KilledError):
        judged(demo, plan, tmp_path, watch=killing)
    later: list[str] = []
    counting = RefereeWatch(later.append, lambda done, total: later.append(f"{done} of {total}"))
    again = judged(demo, plan, tmp_path, resume=True, watch=counting)
    assert [*parts, *later] == [
        "run|r2", "run|induction+echo", "3 of 4", "4 of 4", *(f"budgets|{prompt.trial_id}" for prompt in plan.asked),
    ][: len(parts) + len(later)]  # fmt: skip
    assert len(parts) + len(later) == 6
    timeless = [
        json.loads(json.dumps(one.record()), object_hook=lambda d: {k: v for k, v in d.items() if k != "seconds"})
        for one in (again, result)
    ]
    assert timeless[0] == timeless[1]


def test_scores_that_were_changed_meanwhile_are_refused(
    demo: LoadedModel, plan: RefereePlan, result: RefereeResult, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copy(folder / "scores" / "echo.json", tmp_path / "copy" / "scores" / "induction.json")
    with pytest.raises(ResumeError, match=r"induction.json was changed since this run wrote it: start over"):
        judged(demo, plan, tmp_path / "copy", resume=True)


def test_a_run_that_starts_over_forgets_the_knockout_too(
    demo: LoadedModel, plan: RefereePlan, result: RefereeResult, folder: Path, tmp_path: Path
) -> None:
    copy = RefereeFolder(tmp_path / "copy")
    shutil.copytree(folder, copy.path)
    with copy.journal(plan.describe(demo), plan.check(), resume=False, overwrite=True) as journal:
        assert journal.records == {}
    assert (folder / KNOCKOUT).exists()
    assert not copy.file(KNOCKOUT).exists()


def test_a_model_that_answers_nothing_is_an_error_that_says_what_to_do(
    demo: LoadedModel, plan: RefereePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KnockoutBench, "is_answered", lambda bench, prompt, response: False)
    with pytest.raises(NoPassingTrialError, match="none of 2 prompts with all its heads on.*: take easier --needles"):
        judged(demo, plan, tmp_path)
    assert not (tmp_path / "scores").exists()  # it is known before any detector runs


# -- scores that were there before ------------------------------------------------------------------------------------


def test_given_scores_are_judged_as_they_are(demo: LoadedModel, result: RefereeResult, tmp_path: Path) -> None:
    given = read_given([SHIPPED], OPTIONS.detectors, "demo")
    plan = RefereePlan.build(demo, OPTIONS, given)
    assert [tuple(e.name for e in job.estimators) for job in plan.jobs] == [("induction", "echo")]
    found = {verdict.name: verdict for verdict in judged(demo, plan, tmp_path).verdicts}
    shipped = read_score_file(SHIPPED)
    assert list(found) == list(OPTIONS.detectors)
    assert (found["r2"].mean == shipped.mean).all()
    assert (found["r2"].file, found["r2"].seconds) == ("demo--r2.json", None)
    assert (found["r2"].trials, found["r2"].passed) == (shipped.num_trials, shipped.num_passed)
    assert {path.stem for path in (tmp_path / "scores").iterdir()} == {"induction", "echo"}
    assert found["induction"].record()["knockout"] == {
        verdict.name: verdict for verdict in result.verdicts
    }["induction"].record()["knockout"]  # fmt: skip
    assert plan.describe(demo)["given"] == {"r2": read_any(SHIPPED).sha256}


def test_given_scores_of_other_weights_or_shapes_are_refused(demo: LoadedModel, tmp_path: Path) -> None:
    native = read_score_file(SHIPPED)
    owner = native.provenance.model
    assert (owner.dtype, owner.weights_sha256) == (demo.dtype, demo.weights_sha256)
    for changed, message in [
        (replace(owner, weights_sha256="0" * 64), "holds scores of other weights of demo than demo has"),
        (replace(owner, config_sha256="0" * 64), "holds scores of demo, which is not demo: another config"),
    ]:
        path = tmp_path / "other.json"
        write_score_file(path, replace(native, provenance=replace(native.provenance, model=changed)), overwrite=True)
        given = read_given([path], ("r2",), "demo")
        with pytest.raises(OptionError, match=message):
            RefereePlan.build(demo, OPTIONS, given)
    tiny = build_tiny_model("llama", tmp_path / "models")
    with pytest.raises(OptionError, match=r"demo--r2.json has 6 layers x 8 query heads, .* has 2 x 4: scores of"):
        read_given([SHIPPED], ("r2",), str(tiny))


def test_given_scores_that_cannot_be_judged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"demo--r2.json holds scores of 'r2', which is not judged: --detectors"):
        read_given([SHIPPED], ("mass", "qr"), "demo")
    twice = Path(shutil.copy(SHIPPED, tmp_path / "twice.json"))
    with pytest.raises(OptionError, match=r"demo--r2.json and .*twice.json both hold scores of r2"):
        read_given([SHIPPED, twice], ("r2",), "demo")
    foreign = tmp_path / "duo.tsv"
    foreign.write_text("0.1\t0.9\n0.5\t0.2\n")
    with pytest.raises(OptionError, match="is of format duo, which does not say whose weights it is of"):
        read_given([foreign], ("r2",), "demo")


def test_a_note_says_that_a_file_is_of_another_version_of_its_method(tmp_path: Path) -> None:
    native, now = read_score_file(SHIPPED), ESTIMATORS["r2"].version
    old = tmp_path / "old.json"
    write_score_file(old, replace(native, method=replace(native.method, version=now - 1)))
    assert given_notes(read_given([old], ("r2",), "demo")) == [f"{old} is of version {now - 1} of r2, today's is {now}"]
    new = tmp_path / "new.json"
    write_score_file(new, replace(native, method=replace(native.method, version=now)))
    assert given_notes(read_given([new], ("r2",), "demo")) == []


# -- what is refused --------------------------------------------------------------------------------------------------


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
        ({"heads": tuple(range(1, 66))}, "65 numbers of heads, need 1 to 64"),
        ({"draws": 1001}, "1,001 draws are too many, need at most 1,000"),
        ({"batch": 0}, "--batch is 0, need 1 to 1024"),
        ({"budgets": ()}, "no budget is given"),
        ({"detectors": ("nope",)}, "unknown method 'nope'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RefereeOptions(**options)


def test_more_heads_than_the_model_has_are_refused(demo: LoadedModel) -> None:
    with pytest.raises(OptionError, match="48 heads cannot be taken out, the model has 48"):
        RefereePlan.build(demo, RefereeOptions(detectors=("r2",), length=256, heads=(48,)))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"trial": "needles|0|?", "rows": [{"answered": 1}]}, "the field 'response' is missing"),
        ({"trial": "needles|1|?", "rows": []}, "the run has no such trial"),
        ({"trial": "budgets|?"}, "the field 'answered' is missing"),
        ({"trial": "budgets|?", "answered": {"r2|32": 1}}, "its answered is"),
        ({"trial": "budgets|other", "answered": {}}, "the run has no such prompt"),
        ({"trial": "run|r2", "seconds": -1.0, "unanswered": {}}, "its seconds is -1.0"),
        ({"trial": "run|r2", "seconds": 1.0, "unanswered": {"r2": 3}, "sha256": {}}, "its r2 is 3, need a text"),
        ({"trial": "run|r2", "seconds": 1.0, "unanswered": {}, "sha256": []}, "its sha256 is \\[\\], need an object"),
    ],
)
def test_a_damaged_part_is_refused(plan: RefereePlan, part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.check()(part | {"trial": part["trial"].replace("?", plan.asked[0].trial_id)})

"""Scoring in growing rounds, to stop as soon as the best heads are settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from headprobe.errors import OptionError
from headprobe.models.loading import LoadedModel
from headprobe.probes.plan import ProbePlan
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators.estimator import Estimator
from headprobe.profiling.journal import Journal
from headprobe.profiling.scoring import Record, ScoreRun, gather, score_prompts
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.stability import AGREEMENT, Stability, stability
from headprobe.scores.uncertainty import ClusteredTrials

FIRST_ROUND = 20
GROWTH = 1.5
GOLDEN = 0.6180339887498949


def check_until_stable(top: int | None, loaded: LoadedModel) -> None:
    """Refuse, before any work, a number of heads that cannot be settled. Raises `OptionError`."""
    layers, heads = loaded.geometry.shape
    most = layers * heads - 1
    if top is not None and not 1 <= top <= most:
        raise OptionError(f"until_stable is {top}, need 1 to {most} of the model's {most + 1} heads")


def score_until_stable(
    loaded: LoadedModel,
    plan: ProbePlan,
    prompts: Sequence[Prompt],
    estimators: Sequence[Estimator],
    journal: Journal,
    top: int,
    *,
    prefill_chunk: int = 8192,
    on_trial: Callable[[Record], None] | None = None,
    on_resume: Callable[[list[Record]], None] | None = None,
    command: str | None = None,
) -> ScoreRun:
    """As `score_prompts`, but in rounds of trials spread over the plan, until the `top` heads of every method are
    stable (`headprobe.scores.stability`) or the plan is done. The scores say so in their probes, as `until_stable`."""
    run, done = ScoreRun({}), 0
    order = spread_order(len(prompts))
    for total in round_totals(len(prompts)):
        batch = [prompts[i] for i in order[done:total]]
        score_prompts(
            loaded, plan, batch, estimators, journal, prefill_chunk=prefill_chunk, on_trial=on_trial,
            on_resume=None if done else on_resume,
        )  # fmt: skip
        done = total
        run = gather(loaded, plan, [prompts[i] for i in order[:done]], estimators, journal.records, command=command)
        if len(run.scores) == len(estimators) and all(settled(s, top).is_stable for s in run.scores.values()):
            break
    return replace(run, scores={name: _stating(scores, top) for name, scores in run.scores.items()})


def settled(scores: HeadScores, top: int) -> Stability:
    """How far the `top` heads are settled: what decides whether to stop."""
    return stability(ClusteredTrials.of(scores), top)


def round_totals(num_trials: int) -> list[int]:
    """How many trials there are after each round: 20, then half as many again each time.

    >>> round_totals(100), round_totals(8)
    ([20, 30, 45, 68, 100], [8])
    """
    totals = [min(FIRST_ROUND, num_trials)]
    while totals[-1] < num_trials:
        totals.append(min(round(totals[-1] * GROWTH + 0.01), num_trials))
    return totals


def spread_order(count: int) -> list[int]:
    """The numbers below `count` in an order of which every beginning is spread evenly (golden ratio).

    >>> spread_order(8)
    [0, 5, 2, 7, 4, 1, 6, 3]
    """
    return sorted(range(count), key=lambda i: i * GOLDEN % 1)


def _stating(scores: HeadScores, top: int) -> HeadScores:
    probes = {**scores.provenance.probes, "until_stable": {"top": top, "agreement": AGREEMENT}}
    return replace(scores, provenance=replace(scores.provenance, probes=probes))

"""The scoring stage: a loaded model and a plan in, one `HeadScores` per method out; in growing rounds if wished."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers

from headprobe._version import __version__
from headprobe.models.catalog import short_name
from headprobe.models.config import end_token_ids
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import chosen_sentence, rouge1_recall, token_f1
from headprobe.probes.needle import Needle
from headprobe.probes.plan import TrialSpec
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators.estimator import Estimator, Gate, method_block
from headprobe.profiling.job import Record, ScoreJob, Watch
from headprobe.profiling.journal import Journal
from headprobe.profiling.profiler import Measured, Profiler, Skipped
from headprobe.scores.head_scores import HeadScores, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance, TokenizerIdentity
from headprobe.scores.stability import AGREEMENT, Stability, stability
from headprobe.scores.uncertainty import ClusteredTrials

# The scoring stage: a loaded model and a probe plan in, one `HeadScores` per method out.


@dataclass(frozen=True)
class ScoreRun:
    """What a run gave: scores by method name, the trials that did not fit on the device with the reason, and for
    methods without any passing trial what the model said instead."""

    scores: dict[str, HeadScores]
    skipped: dict[str, str] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)


def score_prompts(
    loaded: LoadedModel,
    job: ScoreJob,
    journal: Journal,
    *,
    watch: Watch = Watch(),  # noqa: B008 - frozen
    command: str | None = None,
) -> ScoreRun:
    """Measure every prompt that `journal` does not hold yet and gather all trials of the job, in the plan's order.

    Trials that were skipped for lack of memory are tried again. Raises what `Profiler` raises.
    """
    specs = {spec.id: spec for spec in job.plan.trials()}
    stops = end_token_ids(loaded.model, loaded.tokenizer)
    profiler = Profiler(loaded.model, job.estimators, stops, prefill_chunk=job.options.prefill_chunk)
    if watch.on_resume and journal.records:
        watch.on_resume(list(journal.records.values()))
    with closing(profiler.measure(job.prompts, finished_trials(journal))) as measured:
        for prompt, result in measured:
            record = trial_record(prompt, result, specs[prompt.trial_id].needle, loaded)
            journal.add(record)
            if watch.on_trial:
                watch.on_trial(record)
    return gather(loaded, job, journal.records, command=command)


def finished_trials(journal: Journal) -> set[str]:
    """Ids of the trials that need not run again."""
    return {trial for trial, record in journal.records.items() if "skipped" not in record}


def trial_record(prompt: Prompt, result: Measured | Skipped, needle: Needle, loaded: LoadedModel) -> Record:
    """A finished trial as the journal keeps it: response, its agreement with the answer, scores `[L][H]` by method."""
    if isinstance(result, Skipped):
        return {"trial": prompt.trial_id, "skipped": result.reason}
    response = str(loaded.tokenizer.decode(list(result.produced), skip_special_tokens=True)).strip()
    return {
        "trial": prompt.trial_id,
        "response": response,
        "f1": token_f1(response, needle.answer),
        "rouge1_recall": rouge1_recall(response, needle.answer),
        "chose": chosen_sentence(response, needle),
        "num_steps": len(result.produced),
        "scores": {name: scores.tolist() for name, scores in result.scores.items()},
    }


def passed(record: Record, gate: Gate) -> bool:
    """Whether a finished trial gets through the gate: close enough to the answer, and not closer to the distractor.

    The second half is ours: two facts of the same form share enough words that the wrong one can pass the threshold.
    """
    return "skipped" not in record and bool(record[gate.metric] > gate.threshold) and record["chose"] != "distractor"


def gather(loaded: LoadedModel, job: ScoreJob, records: dict[str, Record], *, command: str | None = None) -> ScoreRun:
    """Finished records as `HeadScores`, one for each estimator that has a passing trial."""
    skipped = {i: r["skipped"] for i, r in records.items() if "skipped" in r}
    wanted = {prompt.trial_id for prompt in job.prompts}
    specs = [spec for spec in job.plan.trials() if spec.id in wanted and spec.id not in skipped]
    provenance = _provenance(loaded, job, skipped, command)
    reached = {prompt.trial_id: prompt.depth_reached for prompt in job.prompts}
    scores, unanswered = {}, {}
    for estimator in job.estimators:
        trials = tuple(_trial(spec, records[spec.id], estimator, reached[spec.id]) for spec in specs)
        if any(trial.passed for trial in trials):
            scores[estimator.name] = HeadScores(loaded.geometry, method_block(estimator), trials, provenance)
        else:
            unanswered[estimator.name] = _no_answer(estimator, trials)
    return ScoreRun(scores, skipped, unanswered)


def eos_token_ids(loaded: LoadedModel) -> set[int]:
    """All token ids that end a sequence, from the generation config and the tokenizer."""
    return end_token_ids(loaded.model, loaded.tokenizer)


def _trial(spec: TrialSpec, record: Record, estimator: Estimator, depth_reached: float | None) -> Trial:
    return Trial(
        id=spec.id,
        needle=spec.needle.id,
        length=spec.length,
        depth=spec.depth,
        passed=passed(record, estimator.gate),
        f1=record["f1"],
        response=record["response"],
        num_steps=record["num_steps"],
        scores=np.array(record["scores"][estimator.name], dtype=np.float64),
        extra={
            "rouge1_recall": record["rouge1_recall"],
            "chose": record["chose"],
            "depth_reached": depth_reached,
        },
    )


def _no_answer(estimator: Estimator, trials: Sequence[Trial]) -> str:
    shown = "; ".join(f"{t.id}: {t.response[:80]!r}" for t in trials[:: max(1, len(trials) // 3)][:3])
    return (
        f"the model answered none of {len(trials)} trials (gate of {estimator.name!r}: {estimator.gate.metric} > "
        f"{estimator.gate.threshold}), so no head can be scored; it said: {shown}"
    )


def _provenance(loaded: LoadedModel, job: ScoreJob, skipped: dict[str, str], command: str | None) -> Provenance:
    plan, prompts = job.plan, job.prompts
    probes = dict(plan.describe())
    haystack = dict(probes["haystack"])
    haystack["repeats"] = max((p.haystack_repeats for p in prompts), default=0.0)
    probes["limit"] = len(prompts) if len(prompts) < plan.num_trials else None
    probes.update(haystack=haystack, digest=plan.digest, skipped=[{"id": i, "reason": r} for i, r in skipped.items()])
    template = loaded.chat_template_sha256 if plan.chat else None
    return Provenance(
        ModelIdentity(
            id=short_name(loaded.name),
            revision=loaded.revision,
            config_sha256=loaded.config_sha256,
            architecture=loaded.architecture,
            dtype=loaded.dtype,
            attn_implementation=loaded.attn_implementation,
            weights_sha256=loaded.weights_sha256,
        ),
        TokenizerIdentity(short_name(loaded.name), loaded.tokenizer_sha256, template),
        probes,
        _environment(loaded, command),
    )


def _environment(loaded: LoadedModel, command: str | None) -> dict[str, Any]:
    device = torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else platform.machine()
    return {
        "headprobe": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "device": f"{loaded.device.type}: {device}",
        "command": command,
    }


# Scoring in growing rounds, to stop as soon as the best heads are settled.

FIRST_ROUND = 20
GROWTH = 1.5
GOLDEN = 0.6180339887498949


def score_until_stable(
    loaded: LoadedModel,
    job: ScoreJob,
    journal: Journal,
    *,
    watch: Watch = Watch(),  # noqa: B008 - frozen
    command: str | None = None,
) -> ScoreRun:
    """As `score_prompts`, but in rounds of trials spread over the plan, until the `until_stable` heads of every method
    are stable (`headprobe.scores.stability`) or the plan is done. The scores say so in their probes, as `until_stable`.
    """
    top = job.options.until_stable
    if top is None:
        raise ValueError("a job without until_stable has no heads to settle")
    run, done = ScoreRun({}), 0
    order = spread_order(len(job.prompts))
    for total in round_totals(len(job.prompts)):
        batch = replace(job, prompts=tuple(job.prompts[i] for i in order[done:total]))
        score_prompts(loaded, batch, journal, watch=watch if done == 0 else replace(watch, on_resume=None))
        done = total
        so_far = replace(job, prompts=tuple(job.prompts[i] for i in order[:done]))
        run = gather(loaded, so_far, journal.records, command=command)
        if len(run.scores) == len(job.estimators) and all(settled(s, top).is_stable for s in run.scores.values()):
            break
    return replace(run, scores={name: _stating(scores, top) for name, scores in run.scores.items()})


def settled(scores: HeadScores, top: int) -> Stability:
    """How stable the `top` heads are: what decides whether to stop."""
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

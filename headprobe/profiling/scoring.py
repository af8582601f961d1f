"""The scoring stage: a loaded model and a plan in, one `HeadScores` per method out; in growing rounds if wished."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers

from headprobe._version import __version__
from headprobe.events import RETRY, SKIP, TRIAL, emit
from headprobe.models.catalog import short_name
from headprobe.models.config import end_token_ids
from headprobe.models.head_spread import head_spread
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import chosen_sentence, rouge1_recall, token_f1
from headprobe.probes.deciding import answered_share
from headprobe.probes.needle import Needle
from headprobe.probes.prompt import Prompt
from headprobe.probes.reading import AnyPrompt, AnySpec, Reading
from headprobe.profiling.estimators.estimator import (
    ANSWERED_GATE,
    DECIDING_WORDS,
    NEEDLES,
    Estimator,
    Gate,
    method_block,
    prompts_of,
)
from headprobe.profiling.job import Record, ScoreJob, Watch
from headprobe.profiling.journal import Journal
from headprobe.profiling.profiler import Measured, Profiler, Skipped
from headprobe.scores.head_scores import HeadScores, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance, TokenizerIdentity
from headprobe.scores.stability import AGREEMENT, Stability, stability
from headprobe.scores.uncertainty import ClusteredTrials
from headprobe.stages import stage_record

# The scoring stage: a loaded model and a probe plan in, one `HeadScores` per method out.


@dataclass(frozen=True)
class ScoreRun:
    """What a run gave: scores by method name, the trials that did not fit on the device with the reason, and for
    methods without any passing trial what the model said instead. A shard gives its `records` instead of scores."""

    scores: dict[str, HeadScores]
    skipped: dict[str, str] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)
    records: tuple[Record, ...] = ()


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
    _measure(loaded, job, journal, finished_trials(journal), watch)
    return gather(loaded, job, journal.records, command=command)


def run_shard(
    loaded: LoadedModel,
    job: ScoreJob,
    journal: Journal,
    elsewhere: Collection[str] = (),
    *,
    watch: Watch = Watch(),  # noqa: B008 - frozen
) -> ScoreRun:
    """Measure the prompts of the job's shard that neither `journal` holds nor other journals do, whose finished trials
    are `elsewhere`. What it gives is in the journal: no scores, only what was skipped. Raises as `score_prompts`."""
    own = {prompt.trial_id for prompt in job.own_prompts}
    others = {prompt.trial_id for prompt in job.prompts} - own
    _measure(loaded, job, journal, finished_trials(journal) | others | set(elsewhere), watch)
    records = tuple(journal.records.values())
    return ScoreRun({}, {r["trial"]: r["skipped"] for r in records if "skipped" in r}, records=records)


def _measure(loaded: LoadedModel, job: ScoreJob, journal: Journal, done: set[str], watch: Watch) -> None:
    """Measure the job's prompts that are not `done`, and put them into the journal.

    All prompts of the job decide which prefixes are shared, so that a trial gives the same numbers whoever runs it.
    """
    needles = {spec.id: spec.needle for spec in ([] if job.needles is None else job.needles.trials())}
    stops = end_token_ids(loaded.model, loaded.tokenizer)

    def reads_on(prompt: Prompt, produced: Sequence[int]) -> bool:
        return answered_share(_text(loaded, produced), needles[prompt.trial_id]) <= ANSWERED_GATE.threshold

    profiler = Profiler(
        loaded.model, job.estimators, stops, prefill_chunk=job.options.prefill_chunk, window=loaded.window,
        reads_on=reads_on,
    )  # fmt: skip
    if watch.on_resume and journal.records:
        watch.on_resume(list(journal.records.values()))
    due = {prompt.trial_id for prompt in job.prompts} - done
    for trial, reason in skipped_trials(journal.records).items():
        if trial in due:
            emit(RETRY, trial=trial, reason=reason)
    with closing(profiler.measure(job.prompts, done)) as measured:
        for prompt, result in measured:
            record = trial_record(prompt, result, needles.get(prompt.trial_id), loaded)
            journal.add(record)
            _emit(record, len(prompt.input_ids))
            if watch.on_trial:
                watch.on_trial(record)


def _emit(record: Record, tokens: int) -> None:
    if "skipped" in record:
        emit(SKIP, trial=record["trial"], tokens=tokens, reason=record["skipped"])
    else:
        emit(TRIAL, trial=record["trial"], tokens=tokens, f1=record["f1"])


def skipped_trials(records: Mapping[str, Record]) -> dict[str, str]:
    """The trials that did not fit on the device, with the reason."""
    return {trial: record["skipped"] for trial, record in records.items() if "skipped" in record}


def finished_trials(journal: Journal) -> set[str]:
    """Ids of the trials that need not run again."""
    return {trial for trial, record in journal.records.items() if "skipped" not in record}


def trial_record(prompt: AnyPrompt, result: Measured | Skipped, needle: Needle | None, loaded: LoadedModel) -> Record:
    """A finished trial as the journal keeps it: response, its agreement with the answer, scores `[L][H]` by method.

    Where nothing is asked the response is empty and agrees with nothing; `copied` says how much was foretold.
    """
    if isinstance(result, Skipped):
        return {"trial": prompt.trial_id, "skipped": result.reason}
    tables = {name: scores.tolist() for name, scores in result.scores.items()}
    if isinstance(prompt, Reading) or needle is None:
        rows = len(prompt.again_span) if isinstance(prompt, Reading) else len(result.produced)
        silent = {"response": "", "f1": 0.0, "rouge1_recall": 0.0, DECIDING_WORDS: 0.0, "chose": "other"}
        return {"trial": prompt.trial_id, **silent, "num_steps": rows, "copied": result.copied, "scores": tables}
    response = _text(loaded, (*result.produced, *result.read_on))
    return {
        "trial": prompt.trial_id,
        "response": response,
        "f1": token_f1(response, needle.answer),
        "rouge1_recall": rouge1_recall(response, needle.answer),
        DECIDING_WORDS: answered_share(response, needle, ANSWERED_GATE.threshold),
        "chose": chosen_sentence(response, needle),
        "num_steps": len(result.produced),
        "num_read": len(result.produced) + len(result.read_on),
        "scores": tables,
    }


def passed(record: Record, gate: Gate | None) -> bool:
    """Whether a finished trial gets through the gate; see `Gate`. Without a gate every finished trial does."""
    if "skipped" in record or gate is None:
        return "skipped" not in record
    if not record[gate.metric] > gate.threshold:
        return False
    return gate.metric == DECIDING_WORDS or not gate.refuses_distractor or record["chose"] != "distractor"


def gather(
    loaded: LoadedModel, job: ScoreJob, records: Mapping[str, Record], *, command: str | None = None
) -> ScoreRun:
    """Finished records as `HeadScores`, one for each estimator that has a passing trial."""
    skipped = skipped_trials(records)
    reached = {prompt.trial_id: prompt.depth_reached for prompt in job.prompts}
    scores, unanswered = {}, {}
    for estimator in job.estimators:
        kind = prompts_of(estimator)
        specs = [spec for spec in job.plans[kind].trials() if spec.id in reached and spec.id not in skipped]
        trials = tuple(_trial(spec, records[spec.id], estimator, reached[spec.id]) for spec in specs)
        if any(trial.passed for trial in trials):
            provenance = _provenance(loaded, job, kind, skipped, command)
            scores[estimator.name] = HeadScores(loaded.geometry, method_block(estimator), trials, provenance)
        else:
            unanswered[estimator.name] = _no_answer(estimator, trials)
    return ScoreRun(scores, skipped, unanswered)


def _text(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    return str(loaded.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def eos_token_ids(loaded: LoadedModel) -> set[int]:
    """All token ids that end a sequence, from the generation config and the tokenizer."""
    return end_token_ids(loaded.model, loaded.tokenizer)


def _trial(spec: AnySpec, record: Record, estimator: Estimator, depth_reached: float | None) -> Trial:
    answered = {name: record.get(name) for name in ("rouge1_recall", DECIDING_WORDS, "chose", "num_read")}
    answered["depth_reached"] = depth_reached
    return Trial(
        id=spec.id,
        needle=spec.group,
        length=spec.length,
        depth=spec.depth,
        passed=passed(record, estimator.gate),
        f1=record["f1"],
        response=record["response"],
        num_steps=record["num_steps"],
        scores=np.array(record["scores"][estimator.name], dtype=np.float64),
        extra={"copied": record["copied"]} if prompts_of(estimator) != NEEDLES else answered,
    )


def _no_answer(estimator: Estimator, trials: Sequence[Trial]) -> str:
    if estimator.gate is None:
        return f"no trial of {estimator.name!r} fitted on the device, so no head can be scored"
    shown = "; ".join(f"{t.id}: {t.response[:80]!r}" for t in trials[:: max(1, len(trials) // 3)][:3])
    return (
        f"the model answered none of {len(trials)} trials (gate of {estimator.name!r}: {estimator.gate.metric} > "
        f"{estimator.gate.threshold}), so no head can be scored; it said: {shown}"
    )


def _provenance(
    loaded: LoadedModel, job: ScoreJob, kind: str, skipped: dict[str, str], command: str | None
) -> Provenance:
    plan, prompts = job.plans[kind], job.of_kind(kind)
    own = {prompt.trial_id for prompt in prompts}
    probes = dict(plan.describe())
    if "haystack" in probes:
        repeats = max((p.haystack_repeats for p in prompts), default=0.0)
        probes["haystack"] = {**probes["haystack"], "repeats": repeats}
    probes["limit"] = len(prompts) if len(prompts) < plan.num_trials else None
    probes["digest"] = plan.digest
    probes["skipped"] = [{"id": i, "reason": reason} for i, reason in skipped.items() if i in own]
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
            gguf=None if loaded.gguf is None else loaded.gguf.record(),
            quantization=loaded.quantization,
        ),
        TokenizerIdentity(short_name(loaded.name), loaded.tokenizer_sha256, template),
        probes,
        _environment(loaded, command),
    )


def _environment(loaded: LoadedModel, command: str | None) -> dict[str, Any]:
    device = torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else platform.machine()
    return (
        {
            "headprobe": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "device": f"{loaded.device.type}: {device}",
            "command": command,
        }
        | spread_over(loaded.model)
        | ({"stages": seconds} if (seconds := stage_record()) else {})
    )


def spread_over(model: Any) -> dict[str, Any]:
    """How the weights of a model are spread: over processes by heads, or over devices by layers; empty: neither."""
    heads, layers = head_spread(model), getattr(model, "hf_device_map", None) or {}
    devices = sorted({str(device) for device in layers.values()})
    found: dict[str, Any] = {} if heads is None else {"tensor_parallel": heads.size}
    return found | ({"device_map": devices} if len(devices) > 1 else {})


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

"""The scoring stage: a loaded model and a plan in, one `HeadScores` per method out; in growing rounds if wished."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace

from headprobe.events import RETRY, SKIP, TRIAL, emit
from headprobe.models.config import end_token_ids
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import answered_share, chosen_sentence, rouge1_recall, token_f1
from headprobe.probes.needle import Needle
from headprobe.probes.prompt import Prompt
from headprobe.probes.reading import AnyPrompt, Reading
from headprobe.profiling.estimators.estimator import (
    ANSWERED_GATE,
    DECIDING_WORDS,
)
from headprobe.profiling.gathering import ScoreFrame, ScoreRun, gather, skipped_trials
from headprobe.profiling.job import Record, ScoreJob, Watch
from headprobe.profiling.journal import Journal
from headprobe.profiling.passes import Skipped
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.stability import AGREEMENT, Stability, stability
from headprobe.scores.uncertainty import ClusteredTrials


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
    return gather(ScoreFrame.of(loaded, job, command), journal.records)


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


def _text(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    return str(loaded.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def eos_token_ids(loaded: LoadedModel) -> set[int]:
    """All token ids that end a sequence, from the generation config and the tokenizer."""
    return end_token_ids(loaded.model, loaded.tokenizer)


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
        run = gather(ScoreFrame.of(loaded, so_far, command), journal.records)
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

"""What `headprobe score` prints: the plan before, progress on stderr meanwhile, tables or JSON afterwards."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headprobe.commands.output import (
    SILENT_SECONDS,
    plan_value,
    print_table,
    stdout_console,
    tell,
    time_left,
    told_seconds,
    write_json,
)
from headprobe.models.loading import LoadedModel
from headprobe.models.memory import MemoryNeed
from headprobe.probes.prompt import Prompt, duplicate_prompts
from headprobe.probes.reading import COPIES
from headprobe.profiling.gathering import passed
from headprobe.profiling.job import ScoreJob
from headprobe.profiling.preflight import RunCost
from headprobe.profiling.scoring import settled
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.uncertainty import head_intervals

# What commands say about the prompts of a plan: which are the same, and where their needles really stand.


def tell_prompts(job: ScoreJob) -> None:
    """On stderr, what was given twice, and how many prompts are identical to one at another depth, with the reason."""
    groups = duplicate_prompts(job.prompts)
    removed = dict.fromkeys(name for plan in job.plans.values() for name in plan.removed)
    if removed:
        tell(f"given twice, used once: {', '.join(removed)}")
    if groups:
        extra = sum(len(group) - 1 for group in groups)
        found = {prompt.trial_id: prompt for prompt in job.prompts}[groups[0][0]]
        is_needle = isinstance(found, Prompt)
        told = f"at another depth ({_reason(found.depth_reached)})" if is_needle else "(the haystack has no other text)"
        tell(
            f"warning: {extra} of {len(job.prompts)} prompts are identical to one {told}, "
            f"such as {' and '.join(groups[0][:2])}"
        )


def _reason(reached: float | None) -> str:
    if reached is None:
        return "besides needle and question there is no room for background"
    return f"of all possible positions, {reached:g} % is the nearest to both"


def depths_reached(job: ScoreJob) -> list[float | None]:
    """For each depth of the plan the mean depth at which its needles really stand, in percent; None without any."""
    specs = {spec.id: spec for spec in job.plan.trials()}
    found: dict[float, list[float]] = {depth: [] for depth in job.plan.depths}
    for prompt in job.needle_prompts:
        if prompt.depth_reached is not None:
            found[specs[prompt.trial_id].depth].append(prompt.depth_reached)
    return [round(sum(reached) / len(reached), 2) if reached else None for reached in found.values()]


TOP_HEADS = 10
PLAN_NOTES = {
    "num_trials": "one needle at one depth and one length, or one text",
    "random_texts": f"random tokens, {COPIES} times over",
    "passage_texts": "passages of the haystack, to be repeated",
    "depths_reached": "where the needles are, on average",
    "tokens": "in all prompts and answers",
    "tokens_to_compute": "after sharing prefixes",
    "kv_bytes": "cache of the longest prompt, all layers",
    "seconds": "rough, from a short pass on this machine",
    "weights_bytes": "of the model",
    "activations_bytes": "of a chunk, and of the rows that are looked at",
    "kv_layer_bytes": "keys and values of the longest prompt in one layer",
    "needed_bytes": "weights, activations, keys and values of all layers, buffers",
    "free_bytes": "on the device, for all of that",
    "fits": "whether it does; keys and values go to the host's memory where they do not fit on a GPU",
}


def print_plan(loaded: LoadedModel, job: ScoreJob, cost: RunCost, as_json: bool) -> None:
    """The grid and what it will cost, as a table or as one JSON object."""
    grid: dict[str, Any] = (
        {}
        if job.needles is None
        else {
            "needles": job.needles.needles.name,
            "lengths": list(job.needles.lengths),
            "depths": list(job.needles.depths),
            "depths_reached": depths_reached(job),
        }
    )
    for kind, found in job.readings.items():
        grid |= {"lengths": list(found.lengths), f"{kind}_texts": found.num_trials}
    plan: dict[str, Any] = {
        "model": loaded.name,
        "methods": list(job.options.methods),
        **grid,
        "num_trials": len(job.prompts),
        "tokens": cost.tokens,
        "tokens_to_compute": cost.tokens_to_compute,
        "kv_bytes": cost.kv_bytes,
        "seconds": None if cost.seconds is None else round(cost.seconds, 1),
        **memory_plan(cost.memory, cost.free_bytes),
    }
    if as_json:
        write_json(plan)
    else:
        print_table(
            ("", "plan", ""), [(name, plan_value(value), PLAN_NOTES.get(name, "")) for name, value in plan.items()]
        )


def memory_plan(need: MemoryNeed, free_bytes: int | None) -> dict[str, Any]:
    """What a run needs and what there is, in bytes."""
    return {
        "weights_bytes": need.weights,
        "activations_bytes": need.activations,
        "kv_layer_bytes": need.kv_layer,
        "needed_bytes": need.total,
        "free_bytes": free_bytes,
        "fits": None if free_bytes is None else need.total <= free_bytes,
    }


LINES = 20  # in the log of a run, at most, unless it would be silent for `SILENT_SECONDS`
LINE_SECONDS = 30.0  # between two of them, at least


class ScoreProgress:
    """Trials done, pass rate and time left on stderr: on a terminal a bar, with the best heads so far; else a line now
    and then, none where the run is short.

    The time left goes by tokens, since long prompts take longer; trials of an earlier run do not count for the pace.
    """

    def __init__(self, job: ScoreJob, shown: bool = True) -> None:
        self._estimator = job.estimators[0]
        self._done = self._passed = self._elsewhere = 0
        self._sums: Any = 0.0
        self._tokens_left = {prompt.trial_id: len(prompt.input_ids) for prompt in job.own_prompts}
        self._tokens_read = 0
        self._is_terminal, self._shown = sys.stderr.isatty(), shown
        self._began = self._told = monotonic()
        self._told_done = 0
        self._total = len(job.own_prompts)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("passed {task.fields[rate]}  top {task.fields[top]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (shown and self._is_terminal),
        )
        name = "scoring" if job.options.shard is None else f"scoring, part {job.options.shard}"
        self._task = self._bar.add_task(name, total=self._total, rate="-", top="-")

    def resumed(self, records: list[dict[str, Any]]) -> None:
        """Start from the trials of an earlier run, which took no time in this one."""
        for record in records:
            self._count(record)
            self._tokens_left.pop(record["trial"], None)
        self._bar.reset(self._task, completed=self._done, rate=self._rate(), top=self._best())
        self._told_done = self._done

    def update(self, record: dict[str, Any]) -> None:
        """Count a finished trial."""
        self._count(record)
        self._tokens_read += self._tokens_left.pop(record["trial"], 0)
        self._bar.update(self._task, advance=1, rate=self._rate(), top=self._best())
        now = monotonic()
        wait = LINE_SECONDS if (self._done - self._told_done) * LINES >= self._total else SILENT_SECONDS
        is_due = now - self._told >= wait
        if self._shown and not self._is_terminal and is_due and self._done < self._total:
            self._told, self._told_done = now, self._done
            spent, left = now - self._began, sum(self._tokens_left.values())
            tell(
                f"{self._done:,} of {self._total:,} trials, {self._rate()} passed, {told_seconds(spent)} so far, about "
                f"{time_left(spent, self._tokens_read, left)} left"
            )

    def _count(self, record: dict[str, Any]) -> None:
        self._done += 1
        if self._estimator.name not in record.get("scores", {self._estimator.name}):
            self._elsewhere += 1  # a prompt of another kind, which the first method does not look at
        elif passed(record, self._estimator.gate):
            self._passed += 1
            self._sums = self._sums + np.array(record["scores"][self._estimator.name])

    def _rate(self) -> str:
        own = self._done - self._elsewhere
        return f"{self._passed / own:.0%}" if own else "-"

    def _best(self) -> str:
        if not self._passed:
            return "-"
        width = self._sums.shape[1]
        return " ".join(f"{i // width}-{i % width}" for i in np.argsort(-self._sums, axis=None, kind="stable")[:3])

    def __enter__(self) -> ScoreProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._bar.disable:  # older releases of rich print an empty line for a bar that was never shown
            self._bar.stop()


def tell_stability(results: Mapping[str, HeadScores], top: int, planned: int) -> None:
    """On stderr, after how many of the `planned` trials each method's `top` heads are how stable."""
    for name, scores in results.items():
        verdict = settled(scores, top).verdict
        tell(f"{name} after {scores.num_trials} of {planned} trials: {verdict}")


def print_shard(job: ScoreJob, journal: Path, as_json: bool) -> None:
    """What a shard did, and how its trials become scores."""
    part, own, all_of_them = str(job.options.shard), len(job.own_prompts), len(job.prompts)
    if as_json:
        write_json({"shard": part, "journal": str(journal), "num_trials": own, "num_trials_of_plan": all_of_them})
    else:
        console = stdout_console()
        console.print(f"part {part}: {own} of {all_of_them} trials, written to {journal}", soft_wrap=True, markup=False)
    tell(
        "when all parts are done, the same command with --resume and without --shard writes the scores, and so does "
        "`headprobe scores merge` on their journals, which needs no model"
    )


def print_scores(results: Sequence[tuple[HeadScores, Path]], as_json: bool) -> None:
    """Pass rates, top heads and path of each score file; `as_json`: an object with the same, a list for several."""
    if as_json:
        records = [_record(scores, path) for scores, path in results]
        write_json(records[0] if len(records) == 1 else records)
        return
    for scores, path in results:
        console = stdout_console()
        told = f"{scores.num_passed} of {scores.num_trials} trials passed"
        if scores.method.parameters.get("gate", "") is None:
            told = f"all {scores.num_trials} trials count, whatever the model says"
        console.print(f"{told}; by tokens (rows) and depth in percent (columns):\n")
        _print_pass_rates(scores)
        console.print(f"\ntop heads by {scores.method.name}:\n")
        _print_top_heads(scores)
        console.print(f"\nwritten to {path}", soft_wrap=True)


def _record(scores: HeadScores, path: Path) -> dict[str, Any]:
    return {
        "path": str(path),
        "method": scores.method.name,
        "num_trials": scores.num_trials,
        "num_passed": scores.num_passed,
        "top_heads": [{"layer": layer, "head": head, "score": score} for layer, head, score in scores.top(TOP_HEADS)],
    }


def _print_pass_rates(scores: HeadScores) -> None:
    rates = scores.pass_rates()
    lengths, depths = sorted({n for n, _ in rates}), sorted({d for _, d in rates})
    columns = ("tokens", *(f"{depth:.0f}" for depth in depths))
    cells = {key: f"{passed}/{total}" for key, (passed, total) in rates.items()}
    rows = [(str(n), *(cells.get((n, d), "") for d in depths)) for n in lengths]
    print_table(columns, rows, right=columns)


def _print_top_heads(scores: HeadScores) -> None:
    best = scores.top(TOP_HEADS)
    intervals = head_intervals(scores, [(layer, head) for layer, head, _ in best])
    rows = [
        (str(rank), str(la), str(h), f"{value:.3f}", f"{low:.3f} to {high:.3f}", f"{scores.normalized[la, h]:.1%}")
        for rank, ((la, h, value), (low, high)) in enumerate(zip(best, intervals, strict=True), 1)
    ]
    columns = ("rank", "layer", "head", "score", "95 % interval", "share")
    print_table(columns, rows, right=columns)

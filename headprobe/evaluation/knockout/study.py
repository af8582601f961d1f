"""Does a head matter? The best heads of a score file switched off, against as many random heads of the same layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from headprobe.evaluation.knockout.bench import (
    DEFAULT_NEEDLES,
    GATE,
    METRICS,
    WHOLE,
    KnockoutBench,
    KnockoutOptions,
    Record,
    Records,
)
from headprobe.evaluation.knockout.checks import RecordCheck, check_heads, check_model, model_of
from headprobe.evaluation.knockout.head_orders import HeadOrder, check_top, steps_for
from headprobe.evaluation.knockout.switched_off import HeadSet
from headprobe.evaluation.knockout.verdict import Sides, Step, Verdict, make_step, verdict_of, whole_estimates
from headprobe.geometry import ModelGeometry
from headprobe.home import shipped_needle_sets
from headprobe.models.catalog import short_name
from headprobe.models.loading import LoadedModel, load_model
from headprobe.probes.prompt import Prompt
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.uncertainty import Estimate
from headprobe.stages import stage_record, timed

SCHEMA = "headprobe-knockout/1"
ATTEMPTS = 50  # to draw a set of heads that was not drawn before


@dataclass(frozen=True, eq=False)
class KnockoutStudy:
    """All that is to run: `sets` maps (step, draw) to query heads, draw 0 being the best heads; `notes` in words."""

    bench: KnockoutBench
    order: HeadOrder
    steps: tuple[int, ...]
    sets: Mapping[tuple[int, int], HeadSet]
    notes: tuple[str, ...]

    @classmethod
    def build(cls, loaded: LoadedModel, scores: AnyScores, options: KnockoutOptions) -> KnockoutStudy:
        """Sets and prompts, before the model runs. Raises `OptionError` (heads, another model), `PlanError`, ..."""
        check_model(scores, loaded)
        order = HeadOrder.of(scores)
        steps = steps_for(options.top, len(order.ranked))
        bench = KnockoutBench.build(loaded, with_needles(options, scores))
        sets = _sets(order, steps, options, loaded.geometry)
        return cls(bench, order, steps, sets, tuple(_notes(order, steps, sets, options)))

    def describe(self) -> dict[str, Any]:
        """All that decides what the run gives: a journal belongs to exactly this."""
        return {**self.bench.describe(list(self.sets.values())), "steps": list(self.steps), "draws": self._num_draws}

    @property
    def _num_draws(self) -> int:
        return self.bench.options.draws

    def check(self) -> RecordCheck:
        """What a record in the journal must be."""
        return RecordCheck(self.bench, list(self.sets.values()))

    def run(self, journal: Records | None = None, on_record: Callable[[Record], None] | None = None) -> KnockoutResult:
        """Measure what `journal` does not hold. Raises as `KnockoutBench.measure`."""
        measured = self.bench.measure(list(self.sets.values()), journal, on_record)
        found, whole = measured.outcomes, measured.outcomes[WHOLE]
        clusters = self.bench.clusters(measured.prompts)
        steps = []
        for k in self.steps:
            random = [found[heads] for (step, draw), heads in self.sets.items() if step == k and draw]
            top = self.sets[k, 0]
            steps.append(make_step(k, len(top), Sides(whole, found[top], random), clusters, len(self.steps)))
        estimates = whole_estimates(whole, clusters)
        vocabulary = self.bench.loaded.model.config.get_text_config(decoder=True).vocab_size
        verdict = verdict_of(estimates, steps, len(set(clusters)), log(vocabulary))
        return KnockoutResult(self, measured.prompts, estimates, tuple(steps), verdict)


@dataclass(frozen=True, eq=False)
class KnockoutResult:
    """What was measured on `prompts`, those that the whole model answers: `whole` with all heads, `steps`, the verdict.

    `record()` is JSON, `causal()` the part of it that a score file can hold (`headprobe.scores.causal`).
    """

    study: KnockoutStudy
    prompts: tuple[Prompt, ...]
    whole: dict[str, Estimate]
    steps: tuple[Step, ...]
    verdict: Verdict
    stages: Mapping[str, float] = field(default_factory=stage_record)

    def causal(self) -> dict[str, Any]:
        """As an entry of `causal` in a score file."""
        bench = self.study.bench
        plan = bench.job.plan.describe()
        return {
            "mode": bench.options.mode,
            "effect": self.verdict.effect,
            "verdict": self.verdict.text,
            "num_asked": len(bench.prompts),
            "num_prompts": len(self.prompts),
            "num_needles": len(set(bench.clusters(self.prompts))),
            "needles": {name: plan["needles"][name] for name in ("name", "sha256")},
            "haystack": plan["haystack"],
            "lengths": plan["lengths"],
            "seed": bench.options.seed,
            "draws": bench.options.draws,
            "gate": GATE.record(),
            "heads": [list(head) for head in self.study.order.ranked[: self.study.steps[-1]]],
            "whole": {metric: self.whole[metric].record() for metric in METRICS},
            "steps": [step.record() for step in self.steps],
        }

    def record(self) -> dict[str, Any]:
        """As JSON: what was asked for, and all figures."""
        loaded = self.study.bench.loaded
        return {
            "schema": SCHEMA,
            "model": short_name(loaded.name),
            "dtype": loaded.dtype,
            "head_kind": self.study.order.heads,
            "batch": self.study.bench.batch,
            "notes": list(self.study.notes),
            **self.causal(),
            "stages": dict(self.stages),
        }


def with_needles(options: KnockoutOptions, scores: AnyScores) -> KnockoutOptions:
    """The options with a set of needles: where none is named, the one that the scores stand on if it is shipped."""
    if options.needles is not None:
        return options
    block = {} if scores.native is None else scores.native.provenance.probes.get("needles", {})
    name = block.get("name") if isinstance(block, dict) else None
    return replace(options, needles=name if name in shipped_needle_sets() else DEFAULT_NEEDLES)


# -- sets -----------------------------------------------------------------------------------------------------------


def _sets(
    order: HeadOrder, steps: tuple[int, ...], options: KnockoutOptions, geometry: ModelGeometry
) -> dict[tuple[int, int], HeadSet]:
    """By step and draw the query heads that are off; a step with too few others has no draws."""
    sets = {}
    for k in steps:
        sets[k, 0] = order.query_heads(order.ranked[:k], geometry)
        seen: set[HeadSet] = set()
        for draw in range(1, options.draws + 1):
            drawn = _draw(order, k, [options.seed, k, draw], seen)
            if drawn is not None:
                seen.add(drawn)
                sets[k, draw] = order.query_heads(drawn, geometry)
    return sets


def _draw(order: HeadOrder, k: int, seed: list[int], seen: set[HeadSet]) -> HeadSet | None:
    """One set of random heads, other than those in `seen` where the layers leave a choice."""
    drawn = None
    for attempt in range(ATTEMPTS):
        drawn = order.draw(k, np.random.default_rng([*seed, attempt]))
        if drawn is None or drawn not in seen:
            break
    return drawn


def _notes(
    order: HeadOrder, steps: tuple[int, ...], sets: Mapping[tuple[int, int], HeadSet], options: KnockoutOptions
) -> list[str]:
    kind = "KV heads" if order.heads == "kv" else "heads"
    notes = []
    if options.top is None and steps[-1] == len(order.ranked):
        notes.append(f"the file ranks {len(order.ranked)} {kind}: the last step switches all of them off")
    alone = [k for k in steps if (k, 1) not in sets]
    if alone:
        told = ", ".join(map(str, alone))
        notes.append(f"no random {kind} to compare with at {told}: fewer than that are left of {len(order.ranked)}")
    alike = [
        k for k in steps if k not in alone and len({sets[k, d] for d in range(1, options.draws + 1)}) < options.draws
    ]
    if alike:
        told = ", ".join(map(str, alike))
        notes.append(f"at {told} some draws are the same {kind}: their layers leave no other choice")
    if order.num_scored < steps[-1]:
        notes.append(f"only {order.num_scored} {kind} score above 0: behind them the order means nothing")
    if order.heads == "kv":
        notes.append("a KV head stands for all query heads that share it")
    return notes


# -- from Python ----------------------------------------------------------------------------------------------------


def knockout(
    scores: Path | str | AnyScores,
    model: str | LoadedModel | None = None,
    options: KnockoutOptions | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    on_record: Callable[[Record], None] | None = None,
) -> KnockoutResult:
    """Switch the best heads of `scores` off, and measure what that costs against as many random heads.

    `scores`: a score file of any format, or what `read_any` made of one; `model`: an alias, folder, hub id or a loaded
    model (None: the one that the file names). Nothing is written. Raises the errors of `headprobe.errors`.

    Example: `headprobe.knockout("scores/demo--r2.json", options=KnockoutOptions(top=(1, 4), limit=10)).verdict.text`
    """
    with timed():
        chosen = options or KnockoutOptions()
        given = scores if isinstance(scores, AnyScores) else read_any(scores)
        if isinstance(model, LoadedModel):
            check_top(chosen.top, given.mean.size)
            loaded = model
        else:
            name = model_of(given, model)
            check_heads(given, chosen, name)
            loaded = load_model(name, device=device, dtype=dtype)
        return KnockoutStudy.build(loaded, given, chosen).run(on_record=on_record)

"""A scoring job: from options to a plan with its prompts, ready to run, and who watches it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headprobe.errors import OptionError, refuse_empty
from headprobe.models.loading import LoadedModel
from headprobe.probes.haystack import load_haystack
from headprobe.probes.needle import load_needles
from headprobe.probes.plan import (
    MOST_PLACES,
    MOST_TRIALS,
    ProbePlan,
    check_length,
    check_number,
    even_depths,
    even_lengths,
)
from headprobe.probes.prompt import Prompt, PromptBuilder
from headprobe.profiling.estimators import estimators
from headprobe.profiling.estimators.estimator import Estimator
from headprobe.profiling.journal import RecordCheck

Record = dict[str, Any]


@dataclass(frozen=True)
class ScoreOptions:
    """What to measure, and on what.

    `methods`: names of `ESTIMATORS`, all in one pass; `needles`: a set's name or file (None: the one that suits
    the first method); `haystack`: a name, file or folder; `lengths`: prompt and answer together, in tokens (None:
    `num_lengths` lengths spread evenly up to `max_length`, which defaults to the model's window); `depths`: how many,
    spread evenly over 0..100 %; `needles_per_cell`: needles tried at each length and depth; `limit`: the most
    trials, spread evenly over the grid; `chat`: use the tokenizer's chat template where it has one; `until_stable`:
    stop early, once this many of the best heads are stable.
    """

    methods: tuple[str, ...] = ("r2",)
    needles: str | None = None
    haystack: str = "all"
    lengths: tuple[int, ...] | None = None
    max_length: int | None = None
    num_lengths: int = 5
    depths: int = 10
    needles_per_cell: int = 2
    seed: int = 0
    limit: int | None = None
    chat: bool = True
    with_trial_scores: bool = True
    prefill_chunk: int = 8192
    until_stable: int | None = None

    def __post_init__(self) -> None:
        refuse_empty({"needles": self.needles, "haystack": self.haystack})
        numbers = {"lengths": max(self.num_lengths, len(self.lengths or ())), "depths": self.depths}
        for noun, number in numbers.items():
            check_number(number, noun, MOST_PLACES)
        check_number(self.needles_per_cell, "needles per cell", MOST_TRIALS)


@dataclass(frozen=True)
class ScoreJob:
    """What a scoring run does: a plan with its prompts, and the methods to take on them."""

    options: ScoreOptions
    estimators: tuple[Estimator, ...]
    plan: ProbePlan
    prompts: tuple[Prompt, ...]

    def description(self, loaded: LoadedModel) -> dict[str, Any]:
        """All that decides what the trials give: a journal belongs to exactly this."""
        return {
            "plan": self.plan.describe(),
            "limit": self.options.limit,
            "prompts_sha256": _prompts_sha256(self.prompts),
            "methods": {e.name: e.version for e in self.estimators},
            "model": {
                "config_sha256": loaded.config_sha256,
                "revision": loaded.revision,
                "weights_sha256": loaded.weights_sha256,
                "dtype": loaded.dtype,
                "device": loaded.device.type,
            },
            "prefill_chunk": self.options.prefill_chunk,
        } | ({} if self.options.until_stable is None else {"until_stable": self.options.until_stable})

    def record_check(self, loaded: LoadedModel) -> RecordCheck:
        """What a trial in the journal must be."""
        trials = {prompt.trial_id for prompt in self.prompts}
        return RecordCheck(trials, tuple(e.name for e in self.estimators), loaded.geometry.shape)


def _prompts_sha256(prompts: Sequence[Prompt]) -> str:
    spans = [[p.trial_id, p.input_ids, p.answer_ids, vars(p.answer_span), p.distractor_span] for p in prompts]
    return hashlib.sha256(repr(spans).encode()).hexdigest()


def prepare(loaded: LoadedModel, options: ScoreOptions) -> ScoreJob:
    """Build the plan and its prompts. Raises `OptionError`, `PlanError` and `FileFormatError` before any model run."""
    chosen = estimators(options.methods)
    check_until_stable(options.until_stable, loaded)
    haystack = load_haystack(options.haystack)
    chat = options.chat and loaded.tokenizer.chat_template is not None
    plan = ProbePlan.build(
        needles=load_needles(chosen[0].default_needles if options.needles is None else options.needles),
        haystack=haystack,
        lengths=_lengths(options, loaded.window),
        depths=even_depths(options.depths),
        seed=options.seed,
        chat=chat,
        window=loaded.window,
        needles_per_cell=options.needles_per_cell,
    )
    check_needles(plan, chosen)
    builder = PromptBuilder(loaded.tokenizer, haystack, plan)
    specs = plan.trials() if options.limit is None else plan.limited(options.limit)
    return ScoreJob(options, chosen, plan, tuple(builder.build(spec) for spec in specs))


def _lengths(options: ScoreOptions, window: int) -> tuple[int, ...]:
    if options.lengths is None:
        longest = window if options.max_length is None else options.max_length
        check_length(longest, window)
        return even_lengths(longest, options.num_lengths)
    if options.max_length is not None:
        raise OptionError(f"lengths are given: leave out the longest length {options.max_length}")
    return options.lengths


def check_needles(plan: ProbePlan, estimators: Sequence[Estimator]) -> None:
    """Refuse a method that needs a distractor on needles that have none. Raises `OptionError`."""
    for estimator in estimators:
        lacking = [n.id for n in plan.needles.needles if n.distractor is None] if estimator.needs_distractor else []
        if lacking:
            raise OptionError(
                f"method {estimator.name!r} needs needles with a distractor: {len(lacking)} of "
                f"{len(plan.needles.needles)} in {plan.needles.name!r} have none (the first: {lacking[0]!r})"
            )


def check_until_stable(top: int | None, loaded: LoadedModel) -> None:
    """Refuse, before any work, an impossible number of heads for `until_stable`. Raises `OptionError`."""
    layers, heads = loaded.geometry.shape
    most = layers * heads - 1
    if top is not None and not 1 <= top <= most:
        raise OptionError(f"until_stable is {top}, need 1 to {most} of the model's {most + 1} heads")


@dataclass(frozen=True)
class Watch:
    """Who is called while a run goes on: `on_trial` with each newly finished record (`scoring.trial_record`),
    `on_resume` once with those that the journal held already, `on_cut` with the journal when its last line was cut
    short, so that this trial runs again."""

    on_trial: Callable[[Record], None] | None = None
    on_resume: Callable[[list[Record]], None] | None = None
    on_cut: Callable[[Path], None] | None = None

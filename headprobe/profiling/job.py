"""A scoring job: from options to a plan with its prompts, ready to run, and who watches it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headprobe.errors import OptionError, refuse_empty
from headprobe.models.loading import LoadedModel
from headprobe.probes.haystack import Haystack, load_haystack
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
from headprobe.probes.reading import PASSAGE, AnyPrompt, Reading, ReadingBuilder, ReadingPlan
from headprobe.profiling.estimators import estimators
from headprobe.profiling.estimators.estimator import NEEDLES, QUESTION, Estimator, prompts_of, rows_of
from headprobe.profiling.estimators.hits import PUBLISHED_RETRIEVAL
from headprobe.profiling.journal import Check
from headprobe.profiling.record_check import record_check
from headprobe.profiling.shards import Shard, trial_costs
from headprobe.profiling.steps import PUBLISHED_STEPS, check_steps

Record = dict[str, Any]
NULL_QUESTION = "N/A"  # as in QRHead


@dataclass(frozen=True)
class ScoreOptions:
    """What to measure, and on what.

    `methods`: names of `ESTIMATORS`, those on one kind of prompt taken in one pass; `needles`: a set's name or file
    (None: the one that suits the first method on needles); `haystack`: a name, file or folder; `lengths`: prompt and
    answer together, in tokens (None: `num_lengths` lengths spread evenly up to `max_length`, by default the model's
    window); `depths`: how many, spread evenly over 0..100 % (methods without needles: so many texts for each length);
    `needles_per_cell`: needles tried at each length and depth; `limit`: the most trials of each kind of prompt,
    spread evenly over the grid; `chat`: use the tokenizer's chat template where it has one; `until_stable`: stop early,
    once this many of the best heads are stable; `shard`: run only this part of the plan, and leave its journal for the
    run that collects (`headprobe.profiling.shards`); `steps`: how many tokens are scored and read by the gate, one of
    `headprobe.profiling.steps.STEP_RULES`.
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
    shard: Shard | None = None
    steps: str = "answer"

    def __post_init__(self) -> None:
        check_steps(self.steps, self.methods)
        refuse_empty({"needles": self.needles, "haystack": self.haystack})
        numbers = {"lengths": max(self.num_lengths, len(self.lengths or ())), "depths": self.depths}
        for noun, number in numbers.items():
            check_number(number, noun, MOST_PLACES)
        check_number(self.needles_per_cell, "needles per cell", MOST_TRIALS)
        if self.shard is not None and self.until_stable is not None:
            raise OptionError(f"until_stable is {self.until_stable}, but shard {self.shard} sees only its own trials")


@dataclass(frozen=True)
class ScoreJob:
    """What a scoring run does: the prompts of its plans, and the methods to take on them.

    `readings` are the plans of the methods without needles, by kind of prompt.
    """

    options: ScoreOptions
    estimators: tuple[Estimator, ...]
    needles: ProbePlan | None
    prompts: tuple[AnyPrompt, ...]
    readings: Mapping[str, ReadingPlan] = field(default_factory=dict)

    @property
    def plan(self) -> ProbePlan:
        """The plan of the needles. Raises `OptionError` in a job without any."""
        if self.needles is None:
            raise OptionError(f"{', '.join(e.name for e in self.estimators)} take no needles")
        return self.needles

    @property
    def plans(self) -> dict[str, ProbePlan | ReadingPlan]:
        """All plans by kind of prompt, needles first."""
        return ({} if self.needles is None else {NEEDLES: self.needles}) | dict(self.readings)

    def of_kind(self, kind: str) -> tuple[AnyPrompt, ...]:
        """The prompts of one kind."""
        return tuple(prompt for prompt in self.prompts if kind_of(prompt) == kind)

    @property
    def needle_prompts(self) -> tuple[Prompt, ...]:
        """The prompts with needles."""
        return tuple(prompt for prompt in self.prompts if isinstance(prompt, Prompt))

    def description(self, loaded: LoadedModel) -> dict[str, Any]:
        """All that decides what the trials give: a journal belongs to exactly this."""
        first, *others = self.plans.items()
        return {
            "plan": first[1].describe(),
            **{f"{kind}_plan": plan.describe() for kind, plan in others},
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
            "steps": self.options.steps,
        } | ({} if self.options.until_stable is None else {"until_stable": self.options.until_stable})

    @property
    def own_prompts(self) -> tuple[AnyPrompt, ...]:
        """The prompts of the job's shard, which deals them out by their estimated cost; all where there is none."""
        if self.options.shard is None:
            return self.prompts
        tokens = [len(prompt.input_ids) + len(prompt.answer_ids) for prompt in self.prompts]
        return tuple(self.prompts[i] for i in self.options.shard.dealt(trial_costs(tokens)))

    def record_check(self, loaded: LoadedModel) -> Check:
        """What a trial in the journal must be."""
        ids = {kind: {prompt.trial_id for prompt in self.of_kind(kind)} for kind in self.plans}
        return record_check(ids, self.estimators, loaded.geometry.shape)


def estimators_of(methods: Sequence[str], steps: str) -> tuple[Estimator, ...]:
    """The methods of a run: with published steps the published `retrieval`. Raises `OptionError`."""
    return (PUBLISHED_RETRIEVAL,) if steps == PUBLISHED_STEPS.name else estimators(methods)


def kind_of(prompt: AnyPrompt) -> str:
    """The kind of prompts that it belongs to: `NEEDLES`, `RANDOM` or `PASSAGE`."""
    return prompt.kind if isinstance(prompt, Reading) else NEEDLES


def _prompts_sha256(prompts: Sequence[AnyPrompt]) -> str:
    return hashlib.sha256(repr([_parts(prompt) for prompt in prompts]).encode()).hexdigest()


def _parts(prompt: AnyPrompt) -> list[Any]:
    if isinstance(prompt, Reading):
        return [prompt.trial_id, prompt.input_ids, prompt.first_span, prompt.again_span]
    spans = [prompt.trial_id, prompt.input_ids, prompt.answer_ids, vars(prompt.answer_span), prompt.distractor_span]
    return spans if prompt.null is None else [*spans, prompt.question_span, prompt.null]


def prepare(loaded: LoadedModel, options: ScoreOptions) -> ScoreJob:
    """Build plans and prompts. Raises `OptionError`, `PlanError` and `FileFormatError` before any model run."""
    chosen = estimators_of(options.methods, options.steps)
    check_until_stable(options.until_stable, loaded)
    kinds = list(dict.fromkeys(prompts_of(e) for e in chosen))
    haystack = load_haystack(options.haystack)
    on_needles = [e for e in chosen if prompts_of(e) == NEEDLES]
    plan, prompts = _needle_prompts(loaded, options, on_needles, haystack) if on_needles else (None, ())
    if not on_needles and options.needles is not None:
        raise OptionError(f"{', '.join(options.methods)} take no needles: leave out {options.needles!r:.60}")
    readings = {kind: _reading_plan(loaded, options, kind, haystack) for kind in kinds if kind != NEEDLES}
    read = [prompt for found in readings.values() for prompt in _readings(loaded, found, options.limit, haystack)]
    return ScoreJob(options, chosen, plan, (*prompts, *read), readings)


def _needle_prompts(
    loaded: LoadedModel, options: ScoreOptions, chosen: Sequence[Estimator], haystack: Haystack
) -> tuple[ProbePlan, tuple[Prompt, ...]]:
    plan = ProbePlan.build(
        needles=load_needles(chosen[0].default_needles if options.needles is None else options.needles),
        haystack=haystack,
        lengths=_lengths(options, loaded.window),
        depths=even_depths(options.depths),
        seed=options.seed,
        chat=_has_chat(loaded, options),
        window=loaded.window,
        needles_per_cell=options.needles_per_cell,
    )
    check_needles(plan, chosen)
    null = NULL_QUESTION if any(rows_of(e) == QUESTION for e in chosen) else None
    builder = PromptBuilder(loaded.tokenizer, haystack, plan, null)
    return plan, tuple(builder.build(spec) for spec in plan.limited(options.limit))


def _reading_plan(loaded: LoadedModel, options: ScoreOptions, kind: str, haystack: Haystack) -> ReadingPlan:
    is_passage = kind == PASSAGE
    return ReadingPlan(
        kind=kind,
        lengths=_lengths(options, loaded.window),
        per_length=len(even_depths(options.depths)),
        seed=options.seed,
        haystack_name=haystack.name if is_passage else None,
        haystack_sha256=haystack.sha256 if is_passage else None,
        chat=is_passage and _has_chat(loaded, options),
        window=loaded.window,
    )


def _readings(loaded: LoadedModel, plan: ReadingPlan, limit: int | None, haystack: Haystack) -> Iterator[Reading]:
    vocabulary = int(loaded.model.config.get_text_config(decoder=True).vocab_size)
    source = haystack if plan.kind == PASSAGE else None
    builder = ReadingBuilder(loaded.tokenizer, plan, source, vocabulary)
    return (builder.build(spec) for spec in plan.limited(limit))


def _has_chat(loaded: LoadedModel, options: ScoreOptions) -> bool:
    return options.chat and loaded.tokenizer.chat_template is not None


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
    `on_resume` once with those that the journal held already, `on_cut` with a journal and how many damaged lines
    at its end have been dropped, so that their trials run again."""

    on_trial: Callable[[Record], None] | None = None
    on_resume: Callable[[list[Record]], None] | None = None
    on_cut: Callable[[Path, int], None] | None = None

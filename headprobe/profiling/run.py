"""`headprobe.score(...)`: from options to score files, the whole way in one call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from headprobe.errors import NoPassingTrialError, OptionError, OutputExistsError, refuse_empty
from headprobe.models.loading import LoadedModel, load_model
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
from headprobe.profiling.journal import Journal, RecordCheck
from headprobe.profiling.preflight import check_outputs, journal_path, output_paths
from headprobe.profiling.scoring import (
    Record,
    ScoreRun,
    check_needles,
    check_until_stable,
    finished_trials,
    score_prompts,
    score_until_stable,
)
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.score_file import holds, write_score_file


@dataclass(frozen=True)
class ScoreOptions:
    """What to measure, and on what.

    `methods`: names of `ESTIMATORS`, all taken in one pass; `needles`: a set's name or file (None: the one that suits
    the first method); `haystack`: a name, file or folder; `lengths`: prompt and answer together, in tokens (None:
    `num_lengths` lengths spread evenly up to `max_length`, which defaults to the model's window); `depths`: how many,
    spread evenly over 0..100 %; `needles_per_cell`: needles tried at each length and depth; `limit`: at most so many
    trials, spread evenly over the grid; `chat`: use the tokenizer's chat template where it has one; `until_stable`:
    stop early, once so many of the best heads are settled.
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
class Prepared:
    """A plan with its prompts, ready to run."""

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


def prepare(loaded: LoadedModel, options: ScoreOptions) -> Prepared:
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
    return Prepared(options, chosen, plan, tuple(builder.build(spec) for spec in specs))


def _lengths(options: ScoreOptions, window: int) -> tuple[int, ...]:
    if options.lengths is None:
        longest = window if options.max_length is None else options.max_length
        check_length(longest, window)
        return even_lengths(longest, options.num_lengths)
    if options.max_length is not None:
        raise OptionError(f"lengths are given: leave out the longest length {options.max_length}")
    return options.lengths


def score(
    model: str | LoadedModel = "demo",
    options: ScoreOptions | None = None,
    *,
    output: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    on_trial: Callable[[Record], None] | None = None,
) -> ScoreRun:
    """Score the heads of `model` and write a score file for each method; returns the scores too.

    `model`: an alias, folder, hub id or a model from `load_model`. `output`: the file (with several methods a folder);
    default `scores/<model>--<method>.json`. Finished trials go to a journal beside it, from which `resume=True` goes
    on after an interruption. Raises the errors of `headprobe.errors`.

    Example: `headprobe.score("demo", ScoreOptions(lengths=(512,)), output="demo.json").scores["r2"].top(10)`
    """
    chosen = options or ScoreOptions()
    name = model if isinstance(model, str) else model.name
    paths = output_paths(name, [e.name for e in estimators(chosen.methods)], output)
    check_outputs(paths, resume=resume, overwrite=overwrite)
    loaded = load_model(model, device=device, dtype=dtype) if isinstance(model, str) else model
    prepared = prepare(loaded, chosen)
    return run(loaded, prepared, paths, resume=resume, overwrite=overwrite, on_trial=on_trial)


def run(
    loaded: LoadedModel,
    prepared: Prepared,
    paths: dict[str, Path],
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_trial: Callable[[Record], None] | None = None,
    on_resume: Callable[[list[Record]], None] | None = None,
    on_cut: Callable[[Path], None] | None = None,
    command: str | None = None,
) -> ScoreRun:
    """Run a prepared plan and write one score file per method to `paths`.

    With `resume` the journal's trials are kept, with `overwrite` alone they are not. `on_cut` is called with the
    journal when its last line was cut short, so that this trial runs again. Raises `NoPassingTrialError` when a method
    has no passing trial, after the files of the others are written.
    """
    check_outputs(paths, resume=resume, overwrite=overwrite)
    with Journal.open(
        journal_path(paths), prepared.description(loaded), resume=resume, overwrite=overwrite,
        check=prepared.record_check(loaded),
    ) as journal:  # fmt: skip
        if journal.was_cut and on_cut is not None:
            on_cut(journal.path)
        _check_replacing(paths, prepared, journal, overwrite=overwrite)
        until = prepared.options.until_stable
        work = score_prompts if until is None else partial(score_until_stable, top=until)
        result = work(
            loaded, prepared.plan, prepared.prompts, prepared.estimators, journal,
            prefill_chunk=prepared.options.prefill_chunk, on_trial=on_trial, on_resume=on_resume, command=command,
        )  # fmt: skip
        for name, scores in result.scores.items():
            _write(paths[name], scores, prepared.options.with_trial_scores, resume=resume, overwrite=overwrite)
        if not result.skipped or not result.unanswered:
            journal.discard()
    if result.unanswered:
        written = ", ".join(str(paths[name]) for name in result.scores)
        told = next(iter(result.unanswered.values()))
        raise NoPassingTrialError(f"{told} (other methods: {written})" if written else told)
    return result


def _check_replacing(paths: dict[str, Path], prepared: Prepared, journal: Journal, *, overwrite: bool) -> None:
    """A resumed run that still has work to do must be able to write its files in the end."""
    there = [path for path in paths.values() if path.exists()]
    left = {prompt.trial_id for prompt in prepared.prompts} - finished_trials(journal)
    if there and left and not overwrite:
        raise OutputExistsError(
            f"{there[0]} exists and would be replaced: move it away, or add --overwrite to --resume "
            f"({len(left)} of {len(prepared.prompts)} trials are left)"
        )


def _write(path: Path, scores: HeadScores, with_trial_scores: bool, *, resume: bool, overwrite: bool) -> None:
    """Write a score file, unless a run that was killed after writing it left the very same one."""
    if not (resume and path.exists() and holds(path, scores, with_trial_scores)):
        write_score_file(path, scores, overwrite=overwrite, with_trial_scores=with_trial_scores)

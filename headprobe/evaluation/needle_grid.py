"""Needles on compressed caches: policy x budget x length x depth; one row per trial, fairly ordered from the start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from headprobe.compression.budgets import check_budget
from headprobe.compression.generation import generate
from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.compression.session import check_serving, compress, make_plan
from headprobe.errors import NonFiniteError, OptionError
from headprobe.evaluation.known_scores import with_recommended_window
from headprobe.evaluation.needle_trial import GridTrial, run_trials
from headprobe.evaluation.questions import context_end
from headprobe.evaluation.shares import ALL, Asking, PromptWork, Share, run_share
from headprobe.evaluation.trials import Row, Running
from headprobe.evaluation.variants import BASELINES, PolicyOptions, Variant, in_formats, variants
from headprobe.models.loading import LoadedModel
from headprobe.probes.encoding import resolve_template
from headprobe.probes.plan import MOST_PLACES, TrialSpec, check_number
from headprobe.probes.prompt import Prompt
from headprobe.profiling.job import ScoreJob, ScoreOptions, prepare
from headprobe.profiling.journal import Journal
from headprobe.profiling.scoring import eos_token_ids

DEFAULT_POLICIES = ("full", "snapkv", "ada-snapkv", "headkv-r2")
DEFAULT_BUDGETS = (16, 32, 64, 128)
WARM_UP_TOKENS = 32


@dataclass(frozen=True)
class GridOptions:
    """What is to be compared, and on what.

    `policies`: names; `budgets`: mean entries per KV head, window and sinks included; `lengths` in tokens, prompt and
    answer together (None: half of the model's window and all of it); `depths`: how many, evenly over 0..100 %;
    `needles`: a set's name or file; `scores`: score files (none: those in `scores/`, and the shipped ones);
    `baselines`: of `random` and `shuffled`, for each policy that takes scores; `query_agnostic`: compress the context
    before the question is seen. `chat`: use the tokenizer's chat template where it has one. `kv_cache_dtypes`: how
    entries are held, every variant once for each.
    """

    policies: tuple[str, ...] = DEFAULT_POLICIES
    budgets: tuple[int, ...] = DEFAULT_BUDGETS
    lengths: tuple[int, ...] | None = None
    depths: int = 10
    needles: str = "reasoning"
    needles_per_cell: int = 1
    haystack: str = "all"
    scores: tuple[Path, ...] = ()
    baselines: tuple[str, ...] = BASELINES
    policy_options: PolicyOptions = field(default_factory=PolicyOptions)
    gqa: str = "mean"
    query_agnostic: bool = False
    seed: int = 0
    chat: bool = True
    attention: str = "auto"
    prefill_chunk: int | None = None
    kv_cache_dtypes: tuple[str, ...] = (AUTO,)

    def __post_init__(self) -> None:
        score_options(self, 1)  # refuses what no scoring run could have either
        check_number(len(self.budgets), "budgets", MOST_PLACES)
        for budget in self.budgets:
            check_budget(budget)
        check_serving(self.attention, self.gqa, self.prefill_chunk, self.kv_cache_dtypes)
        for name in self.baselines:
            if name not in BASELINES:
                raise OptionError(f"no baseline is called {name!r}; there are {', '.join(BASELINES)}")


@dataclass(frozen=True, eq=False)
class NeedleGrid:
    """All that is to run: `prompts` in their order of work, `variants` with `full` first, `budgets` rising.

    `contexts`: by prompt the tokens that are compressed before the question is seen; empty where it is seen.
    """

    options: GridOptions
    prepared: ScoreJob
    prompts: tuple[tuple[TrialSpec, Prompt], ...]
    variants: tuple[Variant, ...]
    budgets: tuple[int, ...]
    contexts: dict[str, int]

    @classmethod
    def build(cls, loaded: LoadedModel, options: GridOptions) -> NeedleGrid:
        """Prompts, variants and plans, checked before the model runs.

        Raises `OptionError` (policy, budget, scores, lengths), `PlanError`, `FileFormatError`.
        """
        given = options.policy_options
        policies = [
            with_recommended_window(loaded, policy, given.window, given.pool)
            for policy in given.apply(options.policies)
        ]
        plain = variants(loaded, policies, options.scores, baselines=options.baselines, gqa=options.gqa)
        found = in_formats(plain, options.kv_cache_dtypes)
        budgets = tuple(sorted(set(options.budgets)))
        check_plans(loaded, found, budgets)
        prepared = prepare(loaded, score_options(options, loaded.window))
        specs = {spec.id: spec for spec in prepared.plan.trials()}
        prompts = tuple((specs[prompt.trial_id], prompt) for prompt in prepared.needle_prompts)
        contexts = context_tokens(loaded, prepared) if options.query_agnostic else {}
        return cls(options, prepared, fair_order(prompts), found, budgets, contexts)

    def trials_of(self, spec: TrialSpec, prompt: Prompt) -> Iterator[GridTrial]:
        """`full` once, then every other variant at every budget."""
        for variant in self.variants:
            budgets: Sequence[int | None] = (None,) if variant.policy.keeps_all else self.budgets
            for budget in budgets:
                yield GridTrial(spec, prompt, variant, budget, self.contexts.get(prompt.trial_id))

    def trials(self) -> Iterator[GridTrial]:
        """All trials, in the order in which they run."""
        for spec, prompt in self.prompts:
            yield from self.trials_of(spec, prompt)

    def work(self) -> list[PromptWork[GridTrial]]:
        """All prompts, with their trials."""
        return [
            PromptWork(len(prompt.input_ids) + len(prompt.answer_ids), partial(self.trials_of, spec, prompt))
            for spec, prompt in self.prompts
        ]

    @property
    def trials_per_prompt(self) -> int:
        """How many trials every prompt goes through."""
        return sum(1 if variant.policy.keeps_all else len(self.budgets) for variant in self.variants)

    @property
    def num_trials(self) -> int:
        """How many rows the whole grid gives."""
        return self.trials_per_prompt * len(self.prompts)

    def describe(self, loaded: LoadedModel) -> dict[str, Any]:
        """All that decides what the trials give: a journal belongs to exactly this."""
        given = self.prepared.description(loaded)
        return {
            "evaluation": "needles",
            "plan": given["plan"],
            "prompts_sha256": given["prompts_sha256"],
            "model": given["model"],
            "variants": {variant.name: variant.describe() for variant in self.variants},
            "budgets": list(self.budgets),
            "gqa": self.options.gqa,
            "query_agnostic": self.options.query_agnostic,
            "attention": self.options.attention,
            "prefill_chunk": self.options.prefill_chunk,
        }


def run_grid(
    loaded: LoadedModel,
    grid: NeedleGrid,
    journal: Journal,
    *,
    seconds: float | None = None,
    together: bool = False,
    on_trial: Callable[[GridTrial, Row], None] | None = None,
    share: Share = ALL,
) -> list[Row]:
    """Run every trial that `journal` does not hold, and give all rows of the grid that are there by then, in order.

    Each prompt is read once for all trials that are left of it. Trials that ran out of memory before are tried again.
    After `seconds` no new prompt is begun. `together`: variants are decoded in batches, which is faster and leaves
    `s_per_token` unmeasured. `on_trial` is called behind each new row. `share`: the part that is asked here.
    """
    given, eos = grid.options, eos_token_ids(loaded)
    running = Running(frozenset(eos), given.seed, given.attention, given.prefill_chunk, together)
    asking = Asking(
        lambda trials: run_trials(loaded, trials, running), lambda: warm_up(loaded, grid, eos), on_trial
    )  # fmt: skip
    about = {"work": "needles", "model": loaded.name, "prompts": len(grid.prompts)}
    run_share(grid.work(), journal, asking, share=share, seconds=seconds, about=about)
    return rows_of(grid, journal)


def rows_of(grid: NeedleGrid, journal: Journal) -> list[Row]:
    """The rows that the journal holds of this grid, in the grid's order."""
    return [journal.records[trial.id] for trial in grid.trials() if trial.id in journal.records]


def warm_up(loaded: LoadedModel, grid: NeedleGrid, eos: set[int]) -> None:
    """A few tokens through the full cache, so that the first row's times are not those of a cold start.

    Raises `NonFiniteError`, which names the first trial.
    """
    try:
        with compress(loaded.model, "full", attention=grid.options.attention) as session:
            generate(session, grid.prompts[0][1].input_ids[:WARM_UP_TOKENS], max_new_tokens=2, eos_token_ids=eos)
    except NonFiniteError as error:
        raise NonFiniteError(f"before trial {next(grid.trials()).id}: {error}") from error


def check_plans(loaded: LoadedModel, found: Sequence[Variant], budgets: Sequence[int]) -> None:
    """Raise `OptionError`, which names the policy, for a budget that cannot be."""
    if not budgets and any(not variant.policy.keeps_all for variant in found):
        raise OptionError("no budget is given: --budgets takes at least one")
    for variant in found:
        for budget in () if variant.policy.keeps_all else budgets:
            try:
                make_plan(loaded.model, variant.policy, budget=budget, scores=variant.scores)
            except OptionError as error:
                raise OptionError(f"{variant.policy.name}: {error}") from None


def score_options(options: GridOptions, window: int) -> ScoreOptions:
    """The prompts of a grid, as a scoring run would have them."""
    return ScoreOptions(
        needles=options.needles,
        haystack=options.haystack,
        lengths=(max(1, window // 2), window) if options.lengths is None else options.lengths,
        depths=options.depths,
        needles_per_cell=options.needles_per_cell,
        seed=options.seed,
        chat=options.chat,
    )


def context_tokens(loaded: LoadedModel, prepared: ScoreJob) -> dict[str, int]:
    """By prompt how many of its tokens stand before the words that lead to the question."""
    template = resolve_template(loaded.tokenizer, prepared.plan.template, prepared.plan.chat)
    return {prompt.trial_id: context_end(loaded, prompt, template) for prompt in prepared.needle_prompts}


def fair_order(prompts: Sequence[tuple[TrialSpec, Prompt]]) -> tuple[tuple[TrialSpec, Prompt], ...]:
    """The prompts so that whatever comes first is spread over the grid.

    All lengths take turns, depths come in the order of van der Corput's sequence (first, far, middle, ...), and a
    cell's second needle waits until every cell has had its first.
    """
    depths = sorted({spec.depth for spec, _ in prompts})
    seen: Counter[tuple[int, float]] = Counter()
    keyed = []
    for spec, prompt in prompts:
        nth = seen[spec.length, spec.depth]
        seen[spec.length, spec.depth] += 1
        keyed.append(((nth, _mirrored(depths.index(spec.depth)), spec.length), spec, prompt))
    return tuple((spec, prompt) for _, spec, prompt in sorted(keyed, key=lambda item: item[0]))


def _mirrored(number: int) -> float:
    """Van der Corput: the binary digits of `number` behind the point in reverse; in [0, 1).

    >>> [_mirrored(i) for i in range(4)]
    [0.0, 0.5, 0.25, 0.75]
    """
    mirrored, place = 0.0, 0.5
    while number:
        mirrored += place * (number & 1)
        number, place = number >> 1, place / 2
    return mirrored

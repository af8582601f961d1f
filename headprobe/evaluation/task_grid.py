"""Tasks on compressed caches: every prompt under every policy and budget, a row each, as they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from headprobe.compression.budgets import check_budget
from headprobe.compression.generation import check_new_tokens, generate
from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.compression.session import check_serving, compress
from headprobe.errors import NonFiniteError, OptionError
from headprobe.evaluation.known_scores import with_recommended_window
from headprobe.evaluation.needle_grid import WARM_UP_TOKENS, check_plans
from headprobe.evaluation.shares import ALL, Asking, PromptWork, Share, run_share
from headprobe.evaluation.task import Task, TaskRequest, TaskSet, load_sets
from headprobe.evaluation.task_prompts import CUTS, TaskPrompt, prompts_of, prompts_sha256
from headprobe.evaluation.task_trial import TaskTrial, answers_of
from headprobe.evaluation.trials import Row, Running
from headprobe.evaluation.variants import BASELINES, PolicyOptions, Variant, in_formats, variants
from headprobe.models.loading import LoadedModel
from headprobe.probes.plan import MOST_PLACES, MOST_TRIALS, check_number
from headprobe.profiling.journal import Journal
from headprobe.profiling.scoring import eos_token_ids


@dataclass(frozen=True)
class TaskOptions:
    """What is to be compared, and on which tasks.

    `tasks`: as `parse_tasks` gives them; `asked`: files, limit, lengths, seed; `policies`: names; `budgets`: mean
    entries per KV head, window and sinks included; `scores`: score files (none: those in `scores/`, and the shipped
    ones); `baselines`: of `random` and `shuffled`, for each policy that takes scores; `cut`: what is left out of a
    prompt that is longer than the window (None: as the task has it); `max_new_tokens`: overrules the tasks' own;
    `query_agnostic`: the context is compressed before the question is seen; `kv_cache_dtypes`: how entries are held,
    every variant once for each.
    """

    tasks: tuple[tuple[Task, str], ...]
    asked: TaskRequest = field(default_factory=TaskRequest)
    policies: tuple[str, ...] = ("full", "snapkv", "ada-snapkv", "headkv-r2")
    budgets: tuple[int, ...] = (64, 128)
    scores: tuple[Path, ...] = ()
    baselines: tuple[str, ...] = ()
    policy_options: PolicyOptions = field(default_factory=PolicyOptions)
    gqa: str = "mean"
    cut: str | None = None
    max_new_tokens: int | None = None
    query_agnostic: bool = False
    attention: str = "auto"
    prefill_chunk: int | None = None
    kv_cache_dtypes: tuple[str, ...] = (AUTO,)

    def __post_init__(self) -> None:
        check_number(len(self.budgets), "budgets", MOST_PLACES)
        for budget in self.budgets:
            check_budget(budget)
        check_serving(self.attention, self.gqa, self.prefill_chunk, self.kv_cache_dtypes)
        for name in self.baselines:
            if name not in BASELINES:
                raise OptionError(f"no baseline is called {name!r}; there are {', '.join(BASELINES)}")
        if self.cut is not None and self.cut not in CUTS:
            raise OptionError(f"--cut is {self.cut!r}, need one of {', '.join(CUTS)}")
        if self.max_new_tokens is not None:
            check_new_tokens(self.max_new_tokens)
        if self.asked.limit is not None and self.asked.limit < 1:
            raise OptionError(f"--limit is {self.asked.limit}, need at least 1")

    def sets(self) -> tuple[TaskSet, ...]:
        """The sets of all tasks, read; no model is needed. Raises as `load_sets`."""
        return load_sets(self.tasks, self.asked)


@dataclass(frozen=True, eq=False)
class TaskGrid:
    """All that is to run: `prompts` of all sets by turns, `variants` with `full` first, `budgets` rising."""

    options: TaskOptions
    prompts: tuple[TaskPrompt, ...]
    variants: tuple[Variant, ...]
    budgets: tuple[int, ...]

    @classmethod
    def build(cls, loaded: LoadedModel, options: TaskOptions, sets: Sequence[TaskSet]) -> TaskGrid:
        """Prompts, variants and plans, checked before the model runs.

        Raises `OptionError` (policy, budget, scores), `PlanError` (lengths, prompts that do not fit).
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
        prompts = prompts_of(
            loaded, sets, limit=options.asked.limit, cut=options.cut, chat=options.asked.chat,
            max_new_tokens=options.max_new_tokens,
        )  # fmt: skip
        if options.query_agnostic:
            _check_contexts(prompts)
        return cls(options, prompts, found, budgets)

    def trials_of(self, prompt: TaskPrompt) -> Iterator[TaskTrial]:
        """`full` once, then every other variant at every budget."""
        for variant in self.variants:
            budgets: Sequence[int | None] = (None,) if variant.policy.keeps_all else self.budgets
            for budget in budgets:
                yield TaskTrial(prompt, variant, budget, self.options.query_agnostic)

    def trials(self) -> Iterator[TaskTrial]:
        """All trials, in the order in which they run."""
        for prompt in self.prompts:
            yield from self.trials_of(prompt)

    def work(self) -> list[PromptWork[TaskTrial]]:
        """All prompts, with their trials."""
        return [PromptWork(len(p.input_ids) + p.max_new_tokens, partial(self.trials_of, p)) for p in self.prompts]

    @property
    def num_trials(self) -> int:
        """How many rows the whole run gives."""
        each = sum(1 if variant.policy.keeps_all else len(self.budgets) for variant in self.variants)
        return each * len(self.prompts)

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the sets, in order."""
        return tuple(dict.fromkeys(prompt.set for prompt in self.prompts))

    def remarks(self) -> list[str]:
        """What a reader of the results has to know of prompts and budgets, in words."""
        cut = [prompt for prompt in self.prompts if prompt.cut_tokens]
        found = []
        if cut:
            tokens = sum(prompt.cut_tokens for prompt in cut) / len(cut)
            found.append(
                f"{len(cut)} of {len(self.prompts)} prompts are longer than the window: {tokens:,.0f} tokens are left "
                "out of each on average"
            )
        for budget in self.budgets:
            short = sum(budget >= next(iter(self.trials_of(p))).compressed_tokens for p in self.prompts)
            if short:
                found.append(
                    f"budget {budget}: {short} of {len(self.prompts)} prompts fit into it and run as full, nothing is "
                    "evicted"
                )
        special = Counter(prompt.special for prompt in self.prompts if prompt.special is not None)
        found += [f"{count} prompts hold {token!r}, which the tokenizer reads as a token of its own"
                  for token, count in special.items()]  # fmt: skip
        return found

    def describe(self, loaded: LoadedModel) -> dict[str, Any]:
        """All that decides what the trials give: a journal belongs to exactly this."""
        options = self.options
        return {
            "evaluation": "tasks",
            "sets": list(self.sets),
            "limit": options.asked.limit,
            "seed": options.asked.seed,
            "prompts_sha256": prompts_sha256(self.prompts),
            "model": {
                "config_sha256": loaded.config_sha256,
                "revision": loaded.revision,
                "weights_sha256": loaded.weights_sha256,
                "dtype": loaded.dtype,
                "device": loaded.device.type,
            },
            "variants": {variant.name: variant.describe() for variant in self.variants},
            "budgets": list(self.budgets),
            "gqa": options.gqa,
            "query_agnostic": options.query_agnostic,
            "attention": options.attention,
            "prefill_chunk": options.prefill_chunk,
        }


def _check_contexts(prompts: Sequence[TaskPrompt]) -> None:
    without = next((prompt for prompt in prompts if prompt.context_tokens is None), None)
    if without is not None:
        raise OptionError(
            f"{without.set} has no context apart from its question, so that nothing can be compressed before that is "
            "seen: leave out --query-agnostic"
        )


def run_tasks(
    loaded: LoadedModel,
    grid: TaskGrid,
    journal: Journal,
    *,
    seconds: float | None = None,
    together: bool = False,
    on_trial: Callable[[TaskTrial, Row], None] | None = None,
    share: Share = ALL,
) -> list[Row]:
    """Run every trial that `journal` does not hold, and give all rows that are there by then, in order.

    Trials that ran out of memory before are tried again. After `seconds` no new prompt is begun. `together`: variants
    are decoded in batches, which is faster and leaves `s_per_token` unmeasured. `on_trial` is called behind each new
    row. `share`: the part of the run that is asked here.
    """
    options, eos = grid.options, frozenset(eos_token_ids(loaded))
    running = Running(eos, options.asked.seed, options.attention, options.prefill_chunk, together)
    asking = Asking(
        lambda trials: answers_of(loaded, trials, running),
        lambda: _warm_up(loaded, grid.prompts[0], running),
        on_trial,
    )  # fmt: skip
    about = {"work": "tasks", "model": loaded.name, "prompts": len(grid.prompts), "sets": list(grid.sets)}
    run_share(grid.work(), journal, asking, share=share, seconds=seconds, about=about)
    return [journal.records[trial.id] for trial in grid.trials() if trial.id in journal.records]


def _warm_up(loaded: LoadedModel, prompt: TaskPrompt, running: Running) -> None:
    """A few tokens through the full cache, so that the first row's times are not those of a cold start."""
    try:
        with compress(loaded.model, "full", attention=running.attention) as session:
            generate(session, prompt.input_ids[:WARM_UP_TOKENS], max_new_tokens=2)
    except NonFiniteError as error:
        raise NonFiniteError(f"before {prompt.trial_id}: {error}") from error


def check_trials(grid: TaskGrid) -> None:
    """Raise `OptionError` for a run without prompts, or of more than a million rows."""
    if not grid.prompts:
        raise OptionError("there is no prompt to run")
    if grid.num_trials > 100 * MOST_TRIALS:
        raise OptionError(
            f"{grid.num_trials:,} trials are more than {100 * MOST_TRIALS:,}: --limit takes fewer prompts"
        )

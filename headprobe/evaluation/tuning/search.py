"""How small can the cache be: policies and budgets tried on one half of the prompts, the smallest proved on the other.

The choice rests on the calibration prompts alone; the held-out ones are run afterwards, under the full cache and what
was chosen. What counts is the share of the full cache's score that a compressed one keeps, and its one-sided bound
from a bootstrap that draws whole clusters of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from statistics import fmean
from typing import Any, ClassVar

from headprobe.compression.policies import Policy, has_option, make_policy, make_policy_with
from headprobe.compression.session import make_plan
from headprobe.errors import NoPassingTrialError, OptionError, PlanError
from headprobe.evaluation.known_scores import with_recommended_window
from headprobe.evaluation.task import TaskSet
from headprobe.evaluation.task_folder import SUMMARY, TaskFolder
from headprobe.evaluation.task_grid import TaskGrid, TaskOptions, run_tasks
from headprobe.evaluation.task_prompts import TaskPrompt, prompts_of
from headprobe.evaluation.task_trial import TaskTrial
from headprobe.evaluation.trials import Row
from headprobe.evaluation.tuning.kept_share import FULL, UNKNOWN, Candidate, Kept, candidates_of, in_order, smallest
from headprobe.evaluation.tuning.policy_file import ModelNamed, PolicyFile, ScoresNamed
from headprobe.evaluation.variants import Variant, variants
from headprobe.models.loading import LoadedModel
from headprobe.profiling.journal import Journal

POLICY = "policy.json"
LEAST_CLUSTERS = 5  # on either side of the split
SEARCHED = ("window", "pool", "beta")


@dataclass(frozen=True)
class TuneOptions:
    """What is searched, and for what.

    `task`: tasks, policies, budgets, score files and how they are run; `keep`: the share of the full cache's score that
    has to stay, in (0, 1]; `windows`, `pools`, `betas`: tried on every policy that has such an option (none: the
    recommended one, or its own); `calibration`: share of the clusters that the choice rests on.
    """

    task: TaskOptions
    keep: float
    windows: tuple[int, ...] = ()
    pools: tuple[int, ...] = ()
    betas: tuple[float, ...] = ()
    calibration: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0:
            raise OptionError(f"--keep is {self.keep:g}, need a share of the score: more than 0 and at most 1")
        if not 0.0 < self.calibration < 1.0:
            raise OptionError(f"--calibration is {self.calibration:g}, need a share between 0 and 1")
        names = [name for name in self.task.policies if not make_policy(name).keeps_all]
        if not names:
            raise OptionError("there is nothing to search: --policies names none that evicts")
        for option, values in zip(SEARCHED, (self.windows, self.pools, self.betas), strict=True):
            if values and not any(has_option(make_policy(name), option) for name in names):
                raise OptionError(f"none of {', '.join(names)} has a {option} (given: {values[0]:g})")
        self.policies()

    def policies(self) -> list[Policy]:
        """Every policy under every setting, each once, by its plain name. Raises `OptionError` for a bad setting."""
        found = []
        settings = product(self.windows or (None,), self.pools or (None,), self.betas or (None,))
        for name, (window, pool, beta) in product(self.task.policies, list(settings)):
            policy = make_policy_with(name, {"window": window, "pool": pool, "beta": beta})
            if not policy.keeps_all and policy not in found:
                found.append(policy)
        return found

    def label(self, policy: Policy) -> str:
        """Its name and those of its settings that are searched: `headkv-r2 window=2 beta=1.1`."""
        searched = zip(SEARCHED, (self.windows, self.pools, self.betas), strict=True)
        told = [key for key, values in searched if values and has_option(policy, key)]
        parts = {key: getattr(policy.selector, key, getattr(policy.allocator, key, None)) for key in told}
        return " ".join([policy.name, *(f"{key}={value}" for key, value in parts.items())])


@dataclass(frozen=True, eq=False)
class SearchGrid(TaskGrid):
    """Prompts under `full` and all candidates, but for those pairs of a label and a budget that cannot be."""

    left_out: frozenset[tuple[str, int]] = frozenset()

    def trials_of(self, prompt: TaskPrompt) -> Iterator[TaskTrial]:
        """`full` once, then every candidate."""
        for trial in super().trials_of(prompt):
            if (trial.variant.name, trial.budget) not in self.left_out:
                yield trial

    @property
    def num_trials(self) -> int:
        """How many rows the whole run gives."""
        return sum(1 for _ in self.trials())


@dataclass(frozen=True, eq=False)
class TuneGrid:
    """A search: `everything` on all prompts, of which `calibration` are for the choice and `test` are held out.

    `plain`: each candidate's policy under its own name, by its label.
    """

    options: TuneOptions
    everything: SearchGrid
    calibration: tuple[TaskPrompt, ...]
    test: tuple[TaskPrompt, ...]
    plain: dict[str, Policy]

    @classmethod
    def build(cls, loaded: LoadedModel, options: TuneOptions, sets: Sequence[TaskSet]) -> TuneGrid:
        """Prompts, split and candidates, checked before the model runs.

        Raises `OptionError` (policy, scores, no budget that can be), `PlanError` for too few prompts.
        """
        task = options.task
        looks = options.windows, options.pools  # what was asked for comes before what the model recommends
        plain: dict[str, Policy] = {}
        for policy in options.policies():
            own = with_recommended_window(loaded, policy, *(each[0] if each else None for each in looks))
            plain.setdefault(options.label(own), own)
        named = [replace(policy, name=label) for label, policy in plain.items()]
        found = tuple(variants(loaded, [make_policy(FULL), *named], task.scores, baselines=(), gqa=task.gqa))
        budgets = tuple(sorted(set(task.budgets)))
        left_out = _impossible(loaded, found, budgets, task.gqa)
        prompts = prompts_of(
            loaded, sets, limit=task.asked.limit, cut=task.cut, chat=task.asked.chat,
            max_new_tokens=task.max_new_tokens,
        )  # fmt: skip
        calibration, test = split(prompts, options.calibration, task.asked.seed)
        everything = SearchGrid(task, prompts, found, budgets, left_out)
        return cls(options, everything, calibration, test, plain)

    @property
    def search(self) -> SearchGrid:
        """What runs before the choice."""
        return replace(self.everything, prompts=self.calibration)

    def proof(self, chosen: Candidate) -> SearchGrid:
        """What runs after it: the held-out prompts under the full cache and the chosen one."""
        found = tuple(v for v in self.everything.variants if v.name in (FULL, chosen.label))
        return replace(self.everything, prompts=self.test, variants=found, budgets=(chosen.budget,))

    def remarks(self) -> list[str]:
        """What a reader has to know of prompts, budgets and settings, in words."""
        pairs = ", ".join(f"{name} at {budget}" for name, budget in sorted(self.everything.left_out)[:4])
        more = len(self.everything.left_out) - 4
        left_out = f"left out, since the budget is below the window: {pairs}{f' and {more} more' if more > 0 else ''}"
        return [*self.everything.remarks(), *([left_out] if pairs else [])]

    def describe(self, loaded: LoadedModel) -> dict[str, Any]:
        """All that decides what the trials give. `keep` does not: another choice may be made from the same rows."""
        own = {"evaluation": "tune", "calibration": self.options.calibration}
        return {**self.everything.describe(loaded), **own}


@dataclass(frozen=True)
class TuneFolder(TaskFolder):
    """Where a search is written: `rows.jsonl` is the run itself; `summary.json` and `policy.json` are made from it."""

    derived: ClassVar[tuple[str, ...]] = (SUMMARY, POLICY)


def split(
    prompts: Sequence[TaskPrompt], share: float, seed: int
) -> tuple[tuple[TaskPrompt, ...], tuple[TaskPrompt, ...]]:
    """The prompts for the choice and those held out: whole clusters, `share` of those of each set, by `seed`.

    Only the names of clusters and sets are looked at. A cluster that stands in two sets counts to the first. Raises
    `PlanError` where either side has fewer than five clusters.
    """
    first: dict[str, str] = {}
    for prompt in prompts:
        first.setdefault(prompt.cluster, prompt.set)
    chosen: set[str] = set()
    for name in dict.fromkeys(first.values()):
        own = [cluster for cluster, of in first.items() if of == name]
        own.sort(key=lambda cluster: sha256(f"{seed}/{cluster}".encode()).digest())
        chosen |= set(own[: round(share * len(own))])
    sides = len(chosen), len(first) - len(chosen)
    if min(sides) < LEAST_CLUSTERS:
        raise PlanError(
            f"{len(prompts)} prompts in {len(first)} clusters are too few: {sides[0]} clusters would be for the choice "
            f"and {sides[1]} held out, need at least {LEAST_CLUSTERS} each"
        )
    return tuple(p for p in prompts if p.cluster in chosen), tuple(p for p in prompts if p.cluster not in chosen)


def _impossible(
    loaded: LoadedModel, found: Sequence[Variant], budgets: Sequence[int], gqa: str
) -> frozenset[tuple[str, int]]:
    """The pairs of a label and a budget that no cache can have: a window beyond the budget."""
    left_out, reason = set(), "no budget is given: --budgets takes at least one"
    pairs = [(v, budget) for v in found if not v.policy.keeps_all for budget in budgets]
    for variant, budget in pairs:
        try:
            make_plan(loaded.model, variant.policy, budget=budget, scores=variant.scores, gqa=gqa)
        except OptionError as error:
            left_out.add((variant.name, budget))
            reason = f"{variant.name}: {error}"
    if len(left_out) == len(pairs):
        raise OptionError(reason)
    return frozenset(left_out)


# -- the search -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuned:
    """What a search found: `candidates` by size, the `chosen` one (None: none keeps enough), and what it keeps of the
    score `held_out`; None where nothing could be measured there, and `unproved` says why. `held_bytes`: mean bytes of
    the chosen cache on those prompts, and of the full one.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate | None = None
    held_out: Kept | None = None
    unproved: str | None = None
    held_bytes: tuple[float, float] | None = None

    def verdict(self, keep: float) -> tuple[str, str] | None:
        """As `Kept.verdict`; None where nothing was chosen."""
        if self.chosen is None:
            return None
        return (UNKNOWN, self.unproved or "") if self.held_out is None else self.held_out.verdict(keep)


OnTrial = Callable[[TaskTrial, Row], None]


def tune(
    loaded: LoadedModel,
    grid: TuneGrid,
    journal: Journal,
    *,
    on_trial: OnTrial | None = None,
    on_choice: Callable[[Candidate], None] | None = None,
) -> Tuned:
    """Run what `journal` does not hold, choose on the calibration prompts, then run the choice on those held out.

    `on_trial` is called behind each new row, `on_choice` before the held-out prompts run.

    Raises `NoPassingTrialError` where the full cache scores 0 on the calibration prompts, and as `run_tasks`.
    """
    found = tuple(candidates_of(run_tasks(loaded, grid.search, journal, together=True, on_trial=on_trial)))
    chosen = smallest(found, grid.options.keep)
    if chosen is None:
        return Tuned(found)
    if on_choice is not None:
        on_choice(chosen)
    rows = run_tasks(loaded, grid.proof(chosen), journal, together=True, on_trial=on_trial)
    full, own = (in_order([row for row in rows if (row["policy"] == FULL) is is_full]) for is_full in (True, False))
    if any(row["error"] is not None for row in rows):
        return Tuned(found, chosen, unproved="memory ran out on the held-out prompts")
    try:
        kept = Kept.of(own, full)
    except NoPassingTrialError as error:
        return Tuned(found, chosen, unproved=f"of the held-out prompts: {error}")
    sizes = fmean(row["kv_bytes"] for row in own), fmean(row["kv_bytes"] for row in full)
    return Tuned(found, chosen, kept, None, sizes)


def policy_file_of(loaded: LoadedModel, grid: TuneGrid, tuned: Tuned) -> PolicyFile | None:
    """What was chosen, to be written down; None where nothing was."""
    if tuned.chosen is None:
        return None
    label, keep = tuned.chosen.label, grid.options.keep
    scores = next(variant.scores for variant in grid.everything.variants if variant.name == label)
    verdict = tuned.verdict(keep)
    return PolicyFile(
        policy=grid.plain[label],
        model=ModelNamed.of(loaded),
        budget=tuned.chosen.budget,
        gqa=grid.options.task.gqa,
        scores=None if scores is None else ScoresNamed(scores.path.name, scores.sha256),
        found={
            "by": "headprobe tune",
            "sets": list(grid.everything.sets),
            "query_agnostic": grid.options.task.query_agnostic,
            "keep": keep,
            "held_out": None if tuned.held_out is None else dict(vars(tuned.held_out)),
            "verdict": None if verdict is None else verdict[0],
        },
    )

"""Answers on budgets that detectors' scores divide: each prompt is read once, for all detectors and budgets."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from headprobe.compression.policies import make_policy
from headprobe.compression.session import on_kv_heads
from headprobe.errors import DeviceMemoryError
from headprobe.evaluation.knockout.ablated_runs import most_read
from headprobe.evaluation.knockout.bench import KnockoutBench
from headprobe.evaluation.known_scores import with_recommended_window
from headprobe.evaluation.referee.plan import RefereeOptions
from headprobe.evaluation.referee.result import EVEN, NOISE
from headprobe.evaluation.trials import AskedPrompt, Running, answered
from headprobe.evaluation.variants import RANDOM, REAL, Variant
from headprobe.models.loading import LoadedModel
from headprobe.probes.prompt import Prompt
from headprobe.profiling.scoring import eos_token_ids
from headprobe.scores.any_scores import AnyScores


@dataclass(frozen=True, eq=False)
class BudgetTrial:
    """One prompt's cache by the scores of `name` (a detector, or `even` and `random`), at a budget."""

    name: str
    variant: Variant
    budget: int

    @property
    def id(self) -> str:
        """Unique among the trials of a prompt: `r2|64`."""
        return f"{self.name}|{self.budget}"


def budget_trials(
    loaded: LoadedModel, scores: Mapping[str, AnyScores], options: RefereeOptions
) -> tuple[BudgetTrial, ...]:
    """`headkv-r2` by each detector's scores and by random ones, and `snapkv`, which gives every head the same; at every
    budget."""
    even, by_scores = (with_recommended_window(loaded, make_policy(name)) for name in ("snapkv", "headkv-r2"))
    settled = {name: on_kv_heads(given, loaded.geometry, options.gqa) for name, given in scores.items()}
    variants = {name: Variant(by_scores, REAL, given) for name, given in settled.items()}
    variants[EVEN] = Variant(even)
    for given in list(settled.values())[:1]:
        variants[NOISE] = Variant(by_scores, RANDOM, given)
    return tuple(
        BudgetTrial(name, variant, budget)
        for name, variant in variants.items()
        for budget in dict.fromkeys(options.budgets)
    )


def answers_on_budgets(
    bench: KnockoutBench, prompt: Prompt, trials: tuple[BudgetTrial, ...], seed: int
) -> dict[str, bool]:
    """By trial whether the prompt is answered on its cache, by the gate of scoring.

    Raises `DeviceMemoryError`, and `NonFiniteError`, which names the trial.
    """
    loaded, tokens = bench.loaded, prompt.input_ids
    asked = AskedPrompt(prompt.trial_id, tokens, len(tokens), most_read(loaded, prompt))
    running = Running(frozenset(eos_token_ids(loaded)), seed=seed, together=True)
    found = {}
    with closing(answered(loaded, asked, trials, running)) as answers:
        for trial, given in answers:
            if isinstance(given, DeviceMemoryError):
                raise DeviceMemoryError(f"{prompt.trial_id} by {trial.name} on {trial.budget} entries: {given}")
            found[trial.id] = bench.is_answered(prompt, bench.text_of(given.made.tokens))
    return {trial.id: found[trial.id] for trial in trials}

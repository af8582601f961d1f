"""Trials of a needle grid: a prompt that is read once, answered on caches of many policies and budgets."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from headprobe.compression.generation import Generation
from headprobe.errors import DeviceMemoryError
from headprobe.evaluation.trials import Answered, AskedPrompt, Row, Running, answered, asked_entries, cost_of
from headprobe.evaluation.variants import Variant
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import chosen_sentence, exact_match, token_f1
from headprobe.probes.plan import TrialSpec
from headprobe.probes.prompt import Prompt

MEASURED = (
    "response", "exact_match", "answer_f1", "chose", "new_tokens", "kv_entries", "kv_entries_asked", "kv_bytes",
    "kv_bytes_asked", "full_kv_bytes", "peak_bytes", "ttft_s", "s_per_token", "kernel",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class GridTrial:
    """A prompt, a variant, and the budget in mean entries per KV head (None: `full`, which has none).

    `context_tokens`: tokens that are compressed before the question is seen; None where it is seen.
    """

    spec: TrialSpec
    prompt: Prompt
    variant: Variant
    budget: int | None
    context_tokens: int | None = None

    @property
    def id(self) -> str:
        """Unique in a grid: `reasoning-09@256@0|snapkv|64`."""
        return f"{self.prompt.trial_id}|{self.variant.name}|{'-' if self.budget is None else self.budget}"

    def head(self) -> Row:
        """The fields of its row that are known before it runs."""
        return {
            "trial": self.id,
            "prompt": self.prompt.trial_id,
            "needle": self.spec.needle.id,
            "length": self.spec.length,
            "depth": self.spec.depth,
            "depth_reached": self.prompt.depth_reached,
            "prompt_tokens": len(self.prompt.input_ids),
            "context_tokens": self.context_tokens,
            **self.variant.row_head(),
            "budget": self.budget,
            "query_agnostic": self.context_tokens is not None,
        }


def run_trials(
    loaded: LoadedModel, trials: Sequence[GridTrial], running: Running
) -> Generator[tuple[GridTrial, Row], None, None]:
    """The rows of `trials`, all of one prompt, which is read once for all of them.

    The answer may be as long as the gold answer, as in scoring. Where memory runs out, everything that was to be
    measured is None and `error` says why. Raises `NonFiniteError`, which names the trial.
    """
    if not trials:
        return
    prompt, cut = trials[0].prompt, trials[0].context_tokens
    read = len(prompt.input_ids) if cut is None else cut
    asked = AskedPrompt(prompt.trial_id, prompt.input_ids, read, len(prompt.answer_ids))
    with closing(answered(loaded, asked, trials, running)) as found:
        for trial, given in found:
            yield trial, trial.head() | _measured(loaded, trial, given, read)


def _measured(loaded: LoadedModel, trial: GridTrial, given: Answered | DeviceMemoryError, read: int) -> Row:
    if isinstance(given, DeviceMemoryError):
        return dict.fromkeys(MEASURED) | {"error": str(given)}
    entries = asked_entries(given.cache, trial.budget, read)
    return _answer(loaded, trial, given.made) | _cost(given, entries) | {"error": None}


def _answer(loaded: LoadedModel, trial: GridTrial, made: Generation) -> Row:
    needle = trial.spec.needle
    response = str(loaded.tokenizer.decode(list(made.tokens), skip_special_tokens=True)).strip()
    return {
        "response": response,
        "exact_match": exact_match(response, needle.answer),
        "answer_f1": token_f1(response, needle.answer),
        "chose": chosen_sentence(response, needle),
        "new_tokens": len(made.tokens),
    }


def _cost(given: Answered, entries: int) -> Row:
    cost = cost_of(given.made)
    asked = {"kv_entries_asked": entries, "kv_bytes_asked": entries * given.cache.stores[0].entry_nbytes}
    return {name: (cost | asked)[name] for name in MEASURED if name in cost or name in asked}

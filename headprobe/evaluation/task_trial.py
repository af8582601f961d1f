"""One prompt of a task, answered on caches of many policies and budgets: a row each."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from headprobe.errors import DeviceMemoryError
from headprobe.evaluation.task_prompts import TaskPrompt
from headprobe.evaluation.trials import Answered, AskedPrompt, Row, Running, answered, asked_entries, cost_of
from headprobe.evaluation.variants import Variant
from headprobe.models.loading import LoadedModel

MEASURED = (
    "response", "score", "new_tokens", "evicts", "kv_entries", "kv_entries_asked", "full_kv_entries", "kv_bytes",
    "full_kv_bytes", "peak_bytes", "ttft_s", "s_per_token", "seconds", "kernel",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TaskTrial:
    """A prompt, a variant, and the budget in mean entries per KV head (None: `full`, which has none).

    `query_agnostic`: the context is compressed before what stands behind it is seen.
    """

    prompt: TaskPrompt
    variant: Variant
    budget: int | None
    query_agnostic: bool = False

    @property
    def id(self) -> str:
        """Unique in a run: `longbench:qasper/3|snapkv|64`."""
        return f"{self.prompt.trial_id}|{self.variant.name}|{'-' if self.budget is None else self.budget}"

    @property
    def compressed_tokens(self) -> int:
        """Tokens that are read before the cache is compressed."""
        context = self.prompt.context_tokens if self.query_agnostic else None
        return len(self.prompt.input_ids) if context is None else context

    def head(self) -> Row:
        """The fields of its row that are known before it runs."""
        prompt = self.prompt
        return {
            "trial": self.id,
            "set": prompt.set,
            "prompt": prompt.trial_id,
            "cluster": prompt.cluster,
            "metric": prompt.metric,
            "prompt_tokens": len(prompt.input_ids),
            "context_tokens": prompt.context_tokens if self.query_agnostic else None,
            "cut_tokens": prompt.cut_tokens,
            **self.variant.row_head(),
            "budget": self.budget,
            "query_agnostic": self.query_agnostic,
        }


def answers_of(
    loaded: LoadedModel, trials: Sequence[TaskTrial], running: Running
) -> Generator[tuple[TaskTrial, Row], None, None]:
    """The rows of `trials`, all of one prompt, which is read once for all of them.

    Where memory runs out, everything that was to be measured is None and `error` says why. Raises `NonFiniteError`,
    which names the trial, at NaN or infinity in the logits.
    """
    if not trials:
        return
    prompt = trials[0].prompt
    asked = AskedPrompt(prompt.trial_id, prompt.input_ids, trials[0].compressed_tokens, prompt.max_new_tokens)
    with closing(answered(loaded, asked, trials, running)) as found:
        for trial, given in found:
            if isinstance(given, DeviceMemoryError):
                yield trial, trial.head() | dict.fromkeys(MEASURED) | {"error": str(given)}
            else:
                yield trial, row_of(loaded, trial, given)


def row_of(loaded: LoadedModel, trial: TaskTrial, given: Answered) -> Row:
    """The row of a trial that has run."""
    response = str(loaded.tokenizer.decode(list(given.made.tokens), skip_special_tokens=True))
    found = cost_of(given.made) | {
        "response": response,
        "score": trial.prompt.score(response),
        "new_tokens": len(given.made.tokens),
        "evicts": trial.budget is not None and trial.budget < trial.compressed_tokens,
        "kv_entries_asked": asked_entries(given.cache, trial.budget, trial.compressed_tokens),
        "full_kv_entries": asked_entries(given.cache, None, trial.compressed_tokens),
        "seconds": given.seconds,
    }
    return trial.head() | {name: found[name] for name in MEASURED} | {"error": None}

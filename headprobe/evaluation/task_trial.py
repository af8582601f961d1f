"""One prompt of a task, read once and answered on caches of many policies and budgets: a row each."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from headprobe.compression.generation import AnswerOptions, Generation, generate
from headprobe.compression.many_answers import Asked, answer_together, batched
from headprobe.compression.policies import CompressionPlan
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.read_once import Reading, read_once
from headprobe.compression.session import compress, make_plan
from headprobe.errors import DeviceMemoryError, NonFiniteError
from headprobe.evaluation.needle_trial import asked_entries
from headprobe.evaluation.task_prompts import TaskPrompt
from headprobe.evaluation.variants import Variant
from headprobe.models.loading import LoadedModel

Row = dict[str, Any]
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
            "policy": self.variant.policy.name,
            "scores": self.variant.source,
            "budget": self.budget,
            "query_agnostic": self.query_agnostic,
        }


@dataclass(frozen=True)
class Running:
    """How trials are run: what ends an answer, the seed of baselines, and `gqa`, `attention`, `prefill_chunk` as in
    `compress`. `together`: variants are decoded in batches, which is faster and leaves `s_per_token` unmeasured.
    """

    eos_token_ids: frozenset[int] = frozenset()
    seed: int = 0
    gqa: str = "mean"
    attention: str = "auto"
    prefill_chunk: int | None = None
    together: bool = False


def answers_of(
    loaded: LoadedModel, trials: Sequence[TaskTrial], running: Running
) -> Generator[tuple[TaskTrial, Row], None, None]:
    """The rows of `trials`, all of one prompt, which is read once for all of them.

    Slack is what is read behind the compressed tokens and the new ones take, so that the bytes held are not those of
    room that stays empty. Where memory runs out, everything that was to be measured is None and `error` says why.
    Raises `NonFiniteError`, which names the trial, at NaN or infinity in the logits.
    """
    if not trials:
        return
    if len(trials) == 1:
        yield trials[0], _run_alone(loaded, trials[0], running)
        return
    prompt, cut = trials[0].prompt, trials[0].compressed_tokens
    plans = [
        make_plan(loaded.model, trial.variant.policy, budget=trial.budget, scores=scores, gqa=running.gqa)
        for trial in trials
        for scores in [trial.variant.scores_for(prompt.trial_id, running.seed, loaded.geometry)]
    ]
    later, new_tokens = prompt.input_ids[cut:], prompt.max_new_tokens
    asked = Asked(AnswerOptions(new_tokens, running.eos_token_ids), later, slack=new_tokens + len(later))
    policies = [plan.policy for plan in plans]
    with read_once(loaded.model, policies, attention=running.attention, prefill_chunk=running.prefill_chunk) as reader:
        reading = reader.read(prompt.input_ids[:cut])
        batches = batched(reading, plans, asked) if running.together else [[place] for place in range(len(trials))]
        for places in batches:
            found = _rows(loaded, reading, [(trials[place], plans[place]) for place in places], asked)
            yield from zip([trials[place] for place in places], found, strict=True)


def _rows(
    loaded: LoadedModel, reading: Reading, pairs: Sequence[tuple[TaskTrial, CompressionPlan]], asked: Asked
) -> Iterator[Row]:
    """The rows of trials that are decoded as one batch; one by one where that fails, so that each gets what is its."""
    started = time.perf_counter() - reading.cost.seconds
    try:
        made, cache = answer_together(reading, [plan for _, plan in pairs], asked)
    except (NonFiniteError, DeviceMemoryError) as error:
        if len(pairs) == 1:
            yield _failed(pairs[0][0], error)
            return
        made = ()
    if not made:
        for pair in pairs:
            yield from _rows(loaded, reading, [pair], asked)
        return
    seconds = time.perf_counter() - started
    for (trial, _), given in zip(pairs, made, strict=True):
        yield row_of(loaded, trial, given, cache, seconds)


def _run_alone(loaded: LoadedModel, trial: TaskTrial, running: Running) -> Row:
    """The row of a trial that reads its prompt for itself."""
    started = time.perf_counter()
    try:
        made, cache = _answer(loaded, trial, running)
    except (NonFiniteError, DeviceMemoryError) as error:
        return _failed(trial, error)
    return row_of(loaded, trial, made, cache, time.perf_counter() - started)


def _failed(trial: TaskTrial, error: NonFiniteError | DeviceMemoryError) -> Row:
    """The row of a trial for which memory ran out; `NonFiniteError`, which names the trial, for broken numbers."""
    if isinstance(error, NonFiniteError):
        raise NonFiniteError(f"trial {trial.id}: {error}") from error
    return trial.head() | dict.fromkeys(MEASURED) | {"error": str(error)}


def _answer(loaded: LoadedModel, trial: TaskTrial, running: Running) -> tuple[Generation, RaggedCache]:
    prompt, variant = trial.prompt, trial.variant
    scores = variant.scores_for(prompt.trial_id, running.seed, loaded.geometry)
    later = len(prompt.input_ids) - trial.compressed_tokens
    with compress(
        loaded.model, variant.policy, budget=trial.budget, scores=scores, gqa=running.gqa,
        slack=prompt.max_new_tokens + later, attention=running.attention, prefill_chunk=running.prefill_chunk,
    ) as session:  # fmt: skip
        made = generate(
            session, prompt.input_ids, max_new_tokens=prompt.max_new_tokens, eos_token_ids=running.eos_token_ids,
            context_tokens=trial.compressed_tokens if later else None,
        )  # fmt: skip
        assert session.cache is not None
        return made, session.cache


def row_of(loaded: LoadedModel, trial: TaskTrial, made: Generation, cache: RaggedCache, seconds: float) -> Row:
    """The row of a trial that has run; `seconds` it took, or its batch, reading the prompt included."""
    response = str(loaded.tokenizer.decode(list(made.tokens), skip_special_tokens=True))
    asked = asked_entries(cache, trial.budget, trial.compressed_tokens)
    return trial.head() | {
        "response": response,
        "score": trial.prompt.score(response),
        "new_tokens": len(made.tokens),
        "evicts": trial.budget is not None and trial.budget < trial.compressed_tokens,
        "kv_entries": made.kv_entries,
        "kv_entries_asked": asked,
        "full_kv_entries": asked_entries(cache, None, trial.compressed_tokens),
        "kv_bytes": made.kv_bytes,
        "full_kv_bytes": made.full_kv_bytes,
        "peak_bytes": made.peak_bytes,
        "ttft_s": made.ttft_s,
        "s_per_token": None if made.tokens_per_s is None else 1.0 / made.tokens_per_s,
        "seconds": seconds,
        "kernel": made.kernel,
        "error": None,
    }

"""Trials of a needle grid: a prompt that is read once, answered on caches of many policies and budgets."""

from __future__ import annotations

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
from headprobe.evaluation.variants import Variant
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import chosen_sentence, exact_match, token_f1
from headprobe.probes.plan import TrialSpec
from headprobe.probes.prompt import Prompt

Row = dict[str, Any]
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
            "policy": self.variant.policy.name,
            "scores": self.variant.source,
            "budget": self.budget,
            "query_agnostic": self.context_tokens is not None,
        }


@dataclass(frozen=True)
class Running:
    """How trials are run: what ends an answer, the seed of baselines, and `attention`, `prefill_chunk` as in
    `compress`. `together`: variants are decoded in batches, which is faster and leaves `s_per_token` unmeasured.
    """

    eos_token_ids: frozenset[int] = frozenset()
    seed: int = 0
    attention: str = "auto"
    prefill_chunk: int | None = None
    together: bool = False


def run_trials(
    loaded: LoadedModel, trials: Sequence[GridTrial], running: Running
) -> Generator[tuple[GridTrial, Row], None, None]:
    """The rows of `trials`, all of one prompt, which is read once for all of them.

    The answer may be as long as the gold answer, as in scoring. Slack is what the new tokens take, so that the bytes
    held are not those of room that stays empty. Where memory runs out, everything that was to be measured is None and
    `error` says why. Raises `NonFiniteError`, which names the trial, at NaN or infinity in the logits.
    """
    if len(trials) == 1:
        yield trials[0], _run_alone(loaded, trials[0], running)
        return
    prompt, cut = trials[0].prompt, trials[0].context_tokens
    plans = [
        make_plan(loaded.model, trial.variant.policy, budget=trial.budget, scores=scores)
        for trial in trials
        for scores in [trial.variant.scores_for(prompt.trial_id, running.seed, loaded.geometry)]
    ]
    later = prompt.input_ids[len(prompt.input_ids) if cut is None else cut :]
    new_tokens = len(prompt.answer_ids)
    asked = Asked(AnswerOptions(new_tokens, running.eos_token_ids), later, slack=new_tokens + len(later))
    policies = [plan.policy for plan in plans]
    with read_once(loaded.model, policies, attention=running.attention, prefill_chunk=running.prefill_chunk) as reader:
        reading = reader.read(prompt.input_ids[:cut])
        batches = batched(reading, plans, asked) if running.together else [[place] for place in range(len(trials))]
        for places in batches:
            found = _rows(loaded, reading, [(trials[place], plans[place]) for place in places], asked)
            yield from zip([trials[place] for place in places], found, strict=True)


def _rows(
    loaded: LoadedModel, reading: Reading, pairs: Sequence[tuple[GridTrial, CompressionPlan]], asked: Asked
) -> Iterator[Row]:
    """The rows of trials that are decoded as one batch; one by one where that fails, so that each gets what is its."""
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
    for (trial, _), given in zip(pairs, made, strict=True):
        yield _row(loaded, trial, given, cache)


def _run_alone(loaded: LoadedModel, trial: GridTrial, running: Running) -> Row:
    """The row of a trial that reads its prompt for itself."""
    prompt, variant = trial.prompt, trial.variant
    new_tokens = len(prompt.answer_ids)
    read_later = 0 if trial.context_tokens is None else len(prompt.input_ids) - trial.context_tokens
    scores = variant.scores_for(prompt.trial_id, running.seed, loaded.geometry)
    try:
        with compress(
            loaded.model, variant.policy, budget=trial.budget, scores=scores,
            slack=new_tokens + read_later, attention=running.attention, prefill_chunk=running.prefill_chunk,
        ) as session:  # fmt: skip
            made = generate(
                session, prompt.input_ids, max_new_tokens=new_tokens, eos_token_ids=running.eos_token_ids,
                context_tokens=trial.context_tokens,
            )  # fmt: skip
            assert session.cache is not None
            return _row(loaded, trial, made, session.cache)
    except (NonFiniteError, DeviceMemoryError) as error:
        return _failed(trial, error)


def _failed(trial: GridTrial, error: NonFiniteError | DeviceMemoryError) -> Row:
    """The row of a trial for which memory ran out; `NonFiniteError`, which names the trial, for broken numbers."""
    if isinstance(error, NonFiniteError):
        raise NonFiniteError(f"trial {trial.id}: {error}") from error
    return trial.head() | dict.fromkeys(MEASURED) | {"error": str(error)}


def _row(loaded: LoadedModel, trial: GridTrial, made: Generation, cache: RaggedCache) -> Row:
    asked = asked_entries(cache, trial.budget, trial.context_tokens or len(trial.prompt.input_ids))
    return trial.head() | _answer(loaded, trial, made) | _cost(made, asked, entry_bytes(cache)) | {"error": None}


def asked_entries(cache: RaggedCache, budget: int | None, tokens: int) -> int:
    """Entries that the budget allows for `tokens` tokens, over all layers and KV heads that are compressed."""
    each = tokens if budget is None else min(budget, tokens)
    return each * cache.plan.num_layers * cache.plan.num_kv_heads


def entry_bytes(cache: RaggedCache) -> int:
    """Bytes of one entry of one KV head: its key and its value."""
    return cache.stores[0].entry_nbytes


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


def _cost(made: Generation, asked: int, per_entry: int) -> Row:
    return {
        "kv_entries": made.kv_entries,
        "kv_entries_asked": asked,
        "kv_bytes": made.kv_bytes,
        "kv_bytes_asked": asked * per_entry,
        "full_kv_bytes": made.full_kv_bytes,
        "peak_bytes": made.peak_bytes,
        "ttft_s": made.ttft_s,
        "s_per_token": None if made.tokens_per_s is None else 1.0 / made.tokens_per_s,
        "kernel": made.kernel,
    }

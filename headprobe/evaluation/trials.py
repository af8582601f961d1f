"""Trials: one prompt, read once, answered on the caches of many policies and budgets."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from headprobe.compression.generation import AnswerOptions, Generation, generate
from headprobe.compression.many_answers import Asked, answer_together, batched
from headprobe.compression.policies import CompressionPlan
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.read_once import Reading, read_once
from headprobe.compression.session import compress, make_plan
from headprobe.errors import DeviceMemoryError, NonFiniteError
from headprobe.evaluation.variants import Variant
from headprobe.events import RETRY, SKIP, TRIAL, emit
from headprobe.models.loading import LoadedModel
from headprobe.stages import DECODE, PREFILL, move_seconds, stage

Row = dict[str, Any]


class Trial(Protocol):
    """A variant at a budget in mean entries per KV head (None: `full`, which has none), on one prompt."""

    @property
    def variant(self) -> Variant:
        """The policy and its scores."""

    @property
    def budget(self) -> int | None:
        """Mean entries per KV head."""

    @property
    def id(self) -> str:
        """Unique in a run."""


AnyTrial = TypeVar("AnyTrial", bound=Trial)


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


@dataclass(frozen=True)
class AskedPrompt:
    """What all trials of a prompt share: `id`, by which baselines are drawn, `input_ids`, of which the first `read` are
    compressed before the rest is seen, and the most tokens of an answer."""

    id: str
    input_ids: tuple[int, ...]
    read: int
    max_new_tokens: int


@dataclass(frozen=True, eq=False)
class Answered:
    """An answer, the cache that it was given on, and the `seconds` that it took, reading the prompt included."""

    made: Generation
    cache: RaggedCache
    seconds: float


def answered(
    loaded: LoadedModel, prompt: AskedPrompt, trials: Sequence[AnyTrial], running: Running
) -> Generator[tuple[AnyTrial, Answered | DeviceMemoryError], None, None]:
    """The answers of `trials`, all of one prompt, which is read once for all of them.

    Slack is what is read behind the compressed tokens and the new ones take, so that the bytes held are not those of
    room that stays empty. Where memory runs out its error is given instead. Raises `NonFiniteError`, which names the
    trial, at NaN or infinity in the logits.
    """
    if len(trials) == 1:
        yield trials[0], _alone(loaded, prompt, trials[0], running)
    if len(trials) < 2:
        return
    plans = [
        make_plan(loaded.model, trial.variant.policy, budget=trial.budget, scores=scores)
        for trial in trials
        for scores in [trial.variant.scores_for(prompt.id, running.seed, loaded.geometry)]
    ]
    later = prompt.input_ids[prompt.read :]
    options = AnswerOptions(prompt.max_new_tokens, running.eos_token_ids)
    slack = prompt.max_new_tokens + len(later)
    policies = [plan.policy for plan in plans]
    with read_once(loaded.model, policies, attention=running.attention, prefill_chunk=running.prefill_chunk) as reader:
        with stage(PREFILL):
            reading = reader.read(prompt.input_ids[: prompt.read])
        for kv_cache_dtype, own in _by_kv_cache_dtype(trials):
            asked = Asked(options, later, slack=slack, kv_cache_dtype=kv_cache_dtype)
            some = [plans[place] for place in own]
            batches = batched(reading, some, asked) if running.together else [[number] for number in range(len(own))]
            for numbers in batches:
                places = [own[number] for number in numbers]
                yield from _answers(reading, [(trials[place], plans[place]) for place in places], asked)


def _by_kv_cache_dtype(trials: Sequence[Trial]) -> list[tuple[str, list[int]]]:
    """The places of `trials` by how their caches hold entries, which is one way for a batch."""
    places: dict[str, list[int]] = {}
    for place, trial in enumerate(trials):
        places.setdefault(trial.variant.kv_cache_dtype, []).append(place)
    return list(places.items())


def _answers(
    reading: Reading, pairs: Sequence[tuple[AnyTrial, CompressionPlan]], asked: Asked
) -> Iterator[tuple[AnyTrial, Answered | DeviceMemoryError]]:
    """The answers of trials that are decoded as one batch; one by one where that fails, so that each gets its own."""
    began = time.perf_counter()
    try:
        with stage(DECODE):
            made, cache = answer_together(reading, [plan for _, plan in pairs], asked)
    except (NonFiniteError, DeviceMemoryError) as error:
        if len(pairs) == 1:
            yield pairs[0][0], _out_of_memory(pairs[0][0], error)
            return
        made = ()
        emit(RETRY, trials=[trial.id for trial, _ in pairs], reason=f"one by one, since together: {error}")
    if not made:
        for pair in pairs:
            yield from _answers(reading, [pair], asked)
        return
    move_seconds(made[0].ttft_s - reading.cost.seconds, DECODE, PREFILL)  # the caches are made before the first token
    seconds = reading.cost.seconds + (time.perf_counter() - began) / len(pairs)
    for (trial, _), given in zip(pairs, made, strict=True):
        yield trial, Answered(given, cache, seconds)


def _alone(loaded: LoadedModel, prompt: AskedPrompt, trial: Trial, running: Running) -> Answered | DeviceMemoryError:
    """The answer of a trial that reads its prompt for itself, and so needs the full cache of one layer at a time."""
    later = len(prompt.input_ids) - prompt.read
    scores = trial.variant.scores_for(prompt.id, running.seed, loaded.geometry)
    began = time.perf_counter()
    try:
        with compress(
            loaded.model, trial.variant.policy, budget=trial.budget, scores=scores,
            slack=prompt.max_new_tokens + later, attention=running.attention, prefill_chunk=running.prefill_chunk,
            kv_cache_dtype=trial.variant.kv_cache_dtype,
        ) as session:  # fmt: skip
            with stage(DECODE):
                made = generate(
                    session, prompt.input_ids, max_new_tokens=prompt.max_new_tokens,
                    eos_token_ids=running.eos_token_ids, context_tokens=prompt.read if later else None,
                )  # fmt: skip
            move_seconds(made.ttft_s, DECODE, PREFILL)
            assert session.cache is not None
            return Answered(made, session.cache, time.perf_counter() - began)
    except (NonFiniteError, DeviceMemoryError) as error:
        return _out_of_memory(trial, error)


def _out_of_memory(trial: Trial, error: NonFiniteError | DeviceMemoryError) -> DeviceMemoryError:
    """The error of a trial for which memory ran out; raises `NonFiniteError`, which names the trial, for the other."""
    if isinstance(error, NonFiniteError):
        raise NonFiniteError(f"trial {trial.id}: {error}") from error
    return error


def emit_row(row: Row, tokens: int) -> None:
    """Say that the trial of a row, of `tokens` tokens, has run, or that it did not fit."""
    if row["error"] is None:
        emit(TRIAL, trial=row["trial"], tokens=tokens)
    else:
        emit(SKIP, trial=row["trial"], tokens=tokens, reason=row["error"])


def asked_entries(cache: RaggedCache, budget: int | None, tokens: int) -> int:
    """Entries that the budget allows for `tokens` tokens, over all layers and KV heads that are compressed."""
    each = tokens if budget is None else min(budget, tokens)
    return each * cache.plan.num_layers * cache.plan.num_kv_heads


def cost_of(made: Generation) -> Row:
    """What an answer took, as rows state it."""
    return {
        "kv_entries": made.kv_entries,
        "kv_bytes": made.kv_bytes,
        "full_kv_bytes": made.full_kv_bytes,
        "peak_bytes": made.peak_bytes,
        "ttft_s": made.ttft_s,
        "s_per_token": None if made.tokens_per_s is None else 1.0 / made.tokens_per_s,
        "kernel": made.kernel,
    }

"""Answers of many policies and budgets to prompts that were read once: one after another, or decoded together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from headprobe.compression.generation import AnswerOptions, Generation, ReadCache, finished, memory_advice
from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.compression.policies import CompressionPlan
from headprobe.compression.ragged_cache import DEFAULT_SLACK, RaggedCache
from headprobe.compression.read_once import Reading
from headprobe.models.devices import PeakMemory

MOST_TOGETHER = 64  # sequences that are decoded in one batch


@dataclass(frozen=True)
class VariantAnswer:
    """What one plan gave: a `Generation` for each prompt of the batch. `place`: where the plan stands among all asked.

    `together`: how many sequences were decoded in one batch; only where it is 1 has a `Generation` a speed.
    `read_again`: why the prompt was read for this plan alone, None where what was read once has served.
    """

    place: int
    plan: CompressionPlan
    generations: tuple[Generation, ...]
    together: int
    read_again: str | None


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked behind prompts that were read once, and how it is answered.

    `later`: tokens, the same for all prompts or `[B, T]`, that are read behind the prompts once these are compressed (a
    question that the cache did not know of); `slack`, `keep_positions` and `kv_cache_dtype` as in `compress`.
    """

    options: AnswerOptions = field(default_factory=AnswerOptions)
    later: torch.Tensor | Sequence[int] = ()
    slack: int = DEFAULT_SLACK
    keep_positions: bool = False
    kv_cache_dtype: str = AUTO


def answer(
    reading: Reading, plan: CompressionPlan, asked: Asked | None = None
) -> tuple[tuple[Generation, ...], RaggedCache]:
    """The answer to each prompt of `reading` on a cache compressed by `plan`, and that cache.

    Tokens are those of a run of its own; `ttft_s` is the reading's time and that of making this cache, `peak_bytes`
    counts what the reading holds. Raises `DeviceMemoryError` when memory runs out, `NonFiniteError` at NaN or infinity
    in the logits.
    """
    return answer_together(reading, [plan], asked)


def answers(
    reading: Reading, plans: Sequence[CompressionPlan], asked: Asked | None = None, *, most_bytes: int | None = None
) -> Iterator[VariantAnswer]:
    """The answers under all `plans`, in batches as `batched` makes them; each batch as it ends, not in their order.

    Raises as `answer`.
    """
    given = Asked() if asked is None else asked
    for places in batched(reading, plans, given, most_bytes=most_bytes):
        made, _ = answer_together(reading, [plans[place] for place in places], given)
        for number, place in enumerate(places):
            own = made[number * reading.batch : (number + 1) * reading.batch]
            yield VariantAnswer(place, plans[place], own, len(made), reading.refusal)


def answer_together(
    reading: Reading, plans: Sequence[CompressionPlan], asked: Asked | None = None
) -> tuple[tuple[Generation, ...], RaggedCache]:
    """The answers to the prompts of `reading` under each of `plans`, decoded as one batch; and its cache.

    Generation `p * B + b` answers prompt `b` under plan `p`. Raises as `answer`, and `OptionError` for plans that can't
    share a cache.
    """
    given, model = Asked() if asked is None else asked, reading.reader.model
    with memory_advice(model, f"{len(plans)} compressed caches of {reading.given.ids.shape[1]} tokens"):
        peak = PeakMemory(model.device)
        peak.start()
        began = time.perf_counter() - reading.cost.seconds
        cache, logits = reading.cache(
            plans, slack=given.slack, keep_positions=given.keep_positions, kv_cache_dtype=given.kv_cache_dtype
        )
        later = _rows(given.later, len(cache.pads), logits.device)
        made = finished(ReadCache(model, cache, logits, later, began, peak), given.options)
    return tuple(replace(each, peak_bytes=_peak(reading, each.peak_bytes)) for each in made), cache


def batched(
    reading: Reading, plans: Sequence[CompressionPlan], asked: Asked, *, most_bytes: int | None = None
) -> list[list[int]]:
    """The places of `plans`, in batches that can be decoded together.

    Plans share a batch where they use one kernel and none evicts while decoding, or all are of one policy that does;
    drawn tokens (`options.sampler`) never share one. `most_bytes`: what the caches of one batch may take together;
    None: what the largest cache of a single plan takes, so that memory is never more than the full cache and that one.
    """
    if asked.options.sampler is not None or not reading.can_join:
        return [[place] for place in range(len(plans))]
    sizes = [cache_nbytes(reading, plan, asked.slack, asked.kv_cache_dtype) for plan in plans]
    if (spread := plans[0].spread if plans else None) is not None:  # all processes must make the same batches
        sizes = [spread.total(size, reading.given.ids.device) for size in sizes]
    most = max(sizes, default=0) if most_bytes is None else most_bytes
    kinds: list[tuple[object, list[list[int]]]] = []
    for place, plan in enumerate(plans):
        name = reading.reader.kernel(plan.policy, asked.kv_cache_dtype)[0].name
        kind = (name, plan.policy if plan.policy.evicts_while_decoding else None)
        batches = next((found for known, found in kinds if known == kind), None)
        if batches is None:
            batches = [[]]
            kinds.append((kind, batches))
        held = sum(sizes[other] for other in batches[-1])
        full = (len(batches[-1]) + 1) * reading.batch > MOST_TOGETHER or held + sizes[place] > most
        if full and batches[-1]:
            batches.append([])
        batches[-1].append(place)
    return [batch for _, batches in kinds for batch in batches]


def cache_nbytes(reading: Reading, plan: CompressionPlan, slack: int, kv_cache_dtype: str = AUTO) -> int:
    """Bytes that the cache of `plan` will take: room for new tokens, scales and sliding windows included."""
    total = reading.windows_nbytes
    widths = reading.entry_nbytes_as(kv_cache_dtype)
    for tokens in reading.tokens:
        evicts = plan.policy.evicts_while_decoding
        rooms = plan.limits(tokens) + 1 if evicts else plan.capacities(tokens) + slack
        total += sum(int(room.sum()) * width for room, width in zip(rooms, widths, strict=True))
    return total


def _rows(later: torch.Tensor | Sequence[int], sequences: int, device: torch.device) -> torch.Tensor:
    """`[P * B, T]`: what is read later, once for each plan."""
    rows = torch.as_tensor(later, dtype=torch.long, device=device)
    rows = rows[None] if rows.ndim == 1 else rows
    return rows.repeat(sequences // len(rows), 1)


def _peak(reading: Reading, own: int | None) -> int | None:
    """The most memory of a reading and an answer, of which the answer comes on top of what the reading holds."""
    if not reading.is_shared:
        return own
    if own is None or reading.cost.peak_bytes is None:
        return None
    return max(reading.cost.peak_bytes, reading.nbytes + reading.scores_nbytes + own)

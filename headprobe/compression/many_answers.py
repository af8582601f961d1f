"""Answers of many policies and budgets to prompts that were read once: one after another, or decoded together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from headprobe.compression.generation import AnswerOptions, Generation, ReadCache, finished, memory_advice
from headprobe.compression.plan import CompressionPlan
from headprobe.compression.ragged_cache import DEFAULT_SLACK, RaggedCache
from headprobe.compression.read_once import Reading
from headprobe.models.memory import PeakMemory

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


def answer(
    reading: Reading,
    plan: CompressionPlan,
    options: AnswerOptions | None = None,
    *,
    later: torch.Tensor | Sequence[int] = (),
    slack: int = DEFAULT_SLACK,
    keep_positions: bool = False,
) -> tuple[tuple[Generation, ...], RaggedCache]:
    """The answer to each prompt of `reading` on a cache compressed by `plan`, and that cache.

    `later`: tokens, the same for all prompts or `[B, T]`, that are read behind the prompts once these are compressed
    (a question that the cache did not know of). The rest as in `compress` and `generate`. Tokens are those of a run of
    its own; `ttft_s` is the reading's time and that of making this cache, `peak_bytes` counts what the reading holds.

    Raises `DeviceMemoryError` when memory runs out, `NonFiniteError` at NaN or infinity in the logits.
    """
    given = AnswerOptions() if options is None else options
    cache, made = _answered(reading, [plan], given, later, slack, keep_positions)
    return made, cache


def answers(
    reading: Reading,
    plans: Sequence[CompressionPlan],
    options: AnswerOptions | None = None,
    *,
    later: torch.Tensor | Sequence[int] = (),
    slack: int = DEFAULT_SLACK,
    most_bytes: int | None = None,
) -> Iterator[VariantAnswer]:
    """The answers under all `plans`, decoded together as far as that can be; as each batch ends, not in their order.

    Plans share a batch where they use one kernel and none evicts while decoding, or all are of one policy that does;
    drawn tokens (`options.sampler`) never share one. `most_bytes`: what the caches of one batch may take together;
    None: what the largest cache of a single plan takes, so that memory is never more than the full cache and that one.
    Raises as `answer`.
    """
    given = AnswerOptions() if options is None else options
    alone = given.sampler is not None or not reading.can_join
    batches = [[place] for place in range(len(plans))] if alone else batched(reading, plans, slack, most_bytes)
    for places in batches:
        _, made = _answered(reading, [plans[place] for place in places], given, later, slack, False)
        for number, place in enumerate(places):
            own = made[number * reading.batch : (number + 1) * reading.batch]
            yield VariantAnswer(place, plans[place], own, len(made), reading.refusal)


def batched(reading: Reading, plans: Sequence[CompressionPlan], slack: int, most_bytes: int | None) -> list[list[int]]:
    """The places of `plans` in batches that can be decoded together and take `most_bytes` at most, if more than one."""
    sizes = [cache_nbytes(reading, plan, slack) for plan in plans]
    most = max(sizes) if most_bytes is None else most_bytes
    kinds: list[tuple[object, list[list[int]]]] = []
    for place, plan in enumerate(plans):
        kind = (reading.reader.kernel(plan.policy)[0].name, plan.policy if plan.policy.evicts_while_decoding else None)
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


def cache_nbytes(reading: Reading, plan: CompressionPlan, slack: int) -> int:
    """Bytes that the cache of `plan` will take: room for new tokens and sliding windows included."""
    total = reading.windows_nbytes
    for tokens in reading.tokens:
        evicts = plan.policy.evicts_while_decoding
        rooms = plan.limits(tokens) + 1 if evicts else plan.capacities(tokens) + slack
        total += sum(int(room.sum()) * width for room, width in zip(rooms, reading.entry_nbytes, strict=True))
    return total


def _answered(
    reading: Reading,
    plans: Sequence[CompressionPlan],
    options: AnswerOptions,
    later: torch.Tensor | Sequence[int],
    slack: int,
    keep_positions: bool,
) -> tuple[RaggedCache, tuple[Generation, ...]]:
    model = reading.reader.model
    with memory_advice(model, f"{len(plans)} compressed caches of {reading.given.ids.shape[1]} tokens"):
        peak = PeakMemory(model.device)
        peak.start()
        began = time.perf_counter() - reading.cost.seconds
        cache, logits = reading.cache(plans, slack=slack, keep_positions=keep_positions)
        read = ReadCache(model, cache, logits, _rows(later, len(cache.pads), logits.device), began, peak)
        return cache, tuple(
            replace(made, peak_bytes=_peak(reading, made.peak_bytes)) for made in finished(read, options)
        )


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

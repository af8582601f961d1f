"""An answer on a compressed cache, or several as one batch, and what it took."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch

from headprobe.compression.conversation import Conversation
from headprobe.compression.decoding import Decoder, Sampler, run_step, up_to_end
from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.compression.layers import RaggedLayer, WindowedLayer
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.session import CompressionSession
from headprobe.errors import DeviceMemoryError, OptionError
from headprobe.models.devices import PeakMemory, is_out_of_memory

# Prompts that were read one after another, brought together into one batch.


def join(caches: Sequence[RaggedCache]) -> RaggedCache:
    """One cache with the sequences of all `caches`, in their order, for decoding them together.

    Each sequence goes on as if it were alone: sequences that have seen fewer tokens than the longest count as padded on
    the left by the difference, as in a batch of left-padded prompts. Layers are joined one after another, and the
    parts' are emptied as they are taken over, so that no more than one layer is held twice.

    Raises `OptionError` for no cache, caches of different plans or models, one that has read no prompt, and layers that
    are neither compressed nor have a sliding window.

        caches = []
        for ids in prompts:
            model(input_ids=ids, **with_cache(model, session.new_cache()))
            caches.append(session.cache)
        session.cache = join(caches)
    """
    _check_joinable(caches)
    tokens = max(cache.tokens_seen - pad for cache in caches for pad in cache.pads)
    pads = [tokens - (cache.tokens_seen - pad) for cache in caches for pad in cache.pads]
    joined = copy(caches[0])
    joined.layers, joined.pads = [], pads
    joined.conversation = Conversation.joined([cache.conversation for cache in caches], pads, tokens)
    for index in range(len(caches[0].layers)):
        parts: list[Any] = [cache.layers[index] for cache in caches]
        joined.layers.append(type(parts[0]).joined(parts, tokens))
        for part in parts:
            part.reset()
    for cache in caches:
        cache.pads, cache.conversation = [], Conversation()
    return joined


def _check_joinable(caches: Sequence[RaggedCache]) -> None:
    if not caches:
        raise OptionError("there is nothing to join: 0 caches")
    first = caches[0]
    if len({id(cache) for cache in caches}) < len(caches):
        raise OptionError(f"one of {len(caches)} caches is there twice: each can be joined once")
    for index, cache in enumerate(caches):
        if not cache.pads or len(cache.stores) < len(cache.ragged_layers):
            raise OptionError(f"cache {index} has read no prompt: there is nothing to join")
        if _kind(cache) != _kind(first):
            raise OptionError(f"cache {index} has another policy, budget or model than cache 0: they can't be joined")
    others = [type(layer).__name__ for layer in first.layers if not isinstance(layer, RaggedLayer | WindowedLayer)]
    if others:
        raise OptionError(f"caches with a {others[0]} can't be joined, only full attention and sliding windows")


def _kind(cache: RaggedCache) -> tuple[object, ...]:
    """What caches must have in common."""
    plan = cache.plan
    widths = [(store.num_kv_heads, *store.widths, store.dtype, store.kv_cache_dtype) for store in cache.stores]
    return plan.policy, plan.budget, plan.ratio, [type(layer) for layer in cache.layers], widths


# An answer on a compressed cache, and what it took.


@dataclass(frozen=True)
class Generation:
    """What was produced for one prompt.

    `tokens`: the answer, an end-of-sequence token included; `lengths` `[L][G]`: entries that each KV head held when the
    prompt had been read; `kv_entries` their sum, `kv_bytes` the storage held then (slack and uncompressed layers
    included), `full_kv_bytes` what all keys and values of the prompt would take. `ttft_s`: seconds to the first token;
    `tokens_per_s`: of those behind the first, None when there is none. `peak_bytes`: memory beyond the model's, None
    where the system does not report it. `kv_cache_dtype`: how entries were held; `kv_scale_bytes`: the part of
    `kv_bytes` that is scales and offsets. `sampler`: what drew the tokens, None where the most likely were taken.
    `graph_refusal`: why decoding did not run from a captured graph, None where it did; `fused_refusal`: why its layers
    were not fused, None where they were.
    """

    tokens: tuple[int, ...]
    prompt_tokens: int
    lengths: tuple[tuple[int, ...], ...]
    kv_entries: int
    kv_bytes: int
    full_kv_bytes: int
    peak_bytes: int | None
    ttft_s: float
    tokens_per_s: float | None
    kernel: str
    sampler: Sampler | None = None
    graph_refusal: str | None = None
    fused_refusal: str | None = None
    kv_cache_dtype: str = AUTO
    kv_scale_bytes: int = 0

    @property
    def used_graph(self) -> bool:
        """Whether steps were replayed from a captured graph."""
        return self.graph_refusal is None


@dataclass(frozen=True)
class BatchGeneration:
    """What was produced for several prompts that were read one after another and answered together.

    `tokens` of each prompt, an end-of-sequence token included; `prefill_s`: seconds until all prompts had been read and
    joined; `tokens_per_s`: of all sequences together, behind their first ones. The rest as in `Generation`.
    """

    tokens: tuple[tuple[int, ...], ...]
    prompt_tokens: tuple[int, ...]
    kv_entries: int
    kv_bytes: int
    peak_bytes: int | None
    prefill_s: float
    tokens_per_s: float | None
    kernel: str
    graph_refusal: str | None = None
    fused_refusal: str | None = None


@dataclass(frozen=True)
class AnswerOptions:
    """How long an answer may be and what ends it, what draws its tokens (None: the most likely are taken), and whether
    steps may be captured as CUDA graphs. Raises `OptionError` for an answer of less than one token.
    """

    max_new_tokens: int = 64
    eos_token_ids: frozenset[int] = frozenset()
    sampler: Sampler | None = None
    graphs: bool = True

    def __post_init__(self) -> None:
        check_new_tokens(self.max_new_tokens)


def generate(
    session: CompressionSession,
    input_ids: Sequence[int],
    *,
    max_new_tokens: int = 64,
    eos_token_ids: Collection[int] = (),
    context_tokens: int | None = None,
    sampler: Sampler | None = None,
    graphs: bool = True,
) -> Generation:
    """The answer to `input_ids` on a fresh cache of `session`: the most likely tokens, or those that `sampler` draws.

    `context_tokens`: tokens that are read and compressed before the rest (the question) is seen, as a cache does
    that is to serve several questions; the rest is then added to it. Raises `OptionError` for an empty prompt or no
    token to produce, `DeviceMemoryError` when memory runs out, `NonFiniteError` at NaN or infinity in the logits.
    """
    _check(input_ids, context_tokens)
    options = AnswerOptions(max_new_tokens, frozenset(eos_token_ids), sampler, graphs)
    with memory_advice(session.model, f"{len(input_ids)} tokens"):
        made: Generation = _generate(session, input_ids, context_tokens, options)
    return made


def generate_batch(
    session: CompressionSession,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    eos_token_ids: Collection[int] = (),
    sampler: Sampler | None = None,
    graphs: bool = True,
) -> BatchGeneration:
    """The answers to `prompts`, which are read and compressed one after another, joined, and decoded together.

    So memory for one prompt's full keys and values in one layer is enough, however many prompts there are. Without a
    sampler every sequence gets the tokens that it gets alone. Raises as `generate`.
    """
    if not prompts:
        raise OptionError("there are 0 prompts: need at least one")
    for input_ids in prompts:
        _check(input_ids, None)
    options = AnswerOptions(max_new_tokens, frozenset(eos_token_ids), sampler, graphs)
    longest = max(len(input_ids) for input_ids in prompts)
    with memory_advice(session.model, f"{len(prompts)} prompts of up to {longest} tokens"):
        made: BatchGeneration = _generate_batch(session, prompts, options)
    return made


@torch.inference_mode()
def _generate(session, input_ids, context_tokens, options):  # type: ignore[no-untyped-def]
    model, device = session.model, session.model.device
    peak = PeakMemory(device)
    peak.start()
    began = time.perf_counter()
    cache = session.new_cache()
    ids = torch.tensor([list(input_ids)], device=device)
    cut = ids.shape[1] if context_tokens is None else context_tokens
    logits = run_step(model, cache, ids[:, :cut])
    return finished(ReadCache(model, cache, logits, ids[:, cut:], began, peak), options)[0]


@dataclass(frozen=True, eq=False)
class ReadCache:
    """A cache that has read its prompts, and what is to come.

    `logits` `[B, vocabulary]` behind the prompts; `later` int64 `[B, T]`: tokens that are read before the answer begins
    (T may be 0); `began`: when the run began, as `time.perf_counter` counts; `peak`: what measures its memory.
    """

    model: Any
    cache: RaggedCache
    logits: torch.Tensor
    later: torch.Tensor
    began: float
    peak: PeakMemory


@torch.inference_mode()
def finished(read: ReadCache, options: AnswerOptions) -> tuple[Generation, ...]:
    """The answer of each sequence of `read`. Of several together no speed is said: they share one clock."""
    cache, logits = read.cache, read.logits
    held = [_held(cache, sequence) for sequence in range(len(cache.pads))]
    if read.later.shape[1]:
        logits = run_step(read.model, cache, read.later, behind(cache, read.later))
    decoded = _decode(read.model, cache, logits, options)
    alone, peak_bytes = len(decoded.rows) == 1, read.peak.bytes()
    return tuple(
        Generation(
            tokens=row,
            prompt_tokens=before.tokens + read.later.shape[1],
            lengths=before.lengths,
            kv_entries=sum(map(sum, before.lengths)),
            kv_bytes=before.nbytes,
            full_kv_bytes=before.full_nbytes,
            peak_bytes=peak_bytes,
            ttft_s=decoded.started - read.began,
            tokens_per_s=(len(row) - 1) / decoded.seconds if alone and len(row) > 1 else None,
            kernel=cache.kernel.name,
            sampler=options.sampler,
            graph_refusal=decoded.graph_refusal,
            fused_refusal=decoded.fused_refusal,
            kv_cache_dtype=cache.kv_cache_dtype,
            kv_scale_bytes=before.scale_nbytes,
        )
        for row, before in zip(decoded.rows, held, strict=True)
    )


def behind(cache: RaggedCache, tokens: torch.Tensor) -> torch.Tensor | None:
    """Positions `[B, T]` of `tokens` `[B, T]` that `cache` is to read next; None where no sequence is padded."""
    if not any(cache.pads):
        return None
    return cache.next_positions(tokens.device) + torch.arange(tokens.shape[1], device=tokens.device)


@dataclass(frozen=True)
class _Held:
    """What one sequence of a cache holds: tokens read, entries `[L][G]`, bytes, those of scales among them, and the
    bytes of all its entries as the model computes them."""

    tokens: int
    lengths: tuple[tuple[int, ...], ...]
    nbytes: int
    scale_nbytes: int
    full_nbytes: int


def _held(cache: RaggedCache, sequence: int) -> _Held:
    batch, groups = len(cache.pads), cache.plan.own_kv_heads
    others = sum(getattr(layer, "nbytes", 0) for layer in cache.layers if layer not in cache.ragged_layers) // batch
    tokens = cache.tokens_seen - cache.pads[sequence]
    own = slice(sequence * groups, (sequence + 1) * groups)
    rooms = sum(int(store.capacities[own].sum()) * store.entry_nbytes for store in cache.stores)
    scales = sum(int(store.capacities[own].sum()) * store.scale_nbytes // store.total for store in cache.stores)
    full = sum(tokens * groups * store.plain_entry_nbytes for store in cache.stores)
    lengths = torch.from_numpy(cache.lengths[:, sequence])
    sums = [rooms + others, scales, full + others]
    spread, device = cache.plan.spread, cache.stores[0].device
    if spread is not None:
        lengths = spread.gathered(lengths.to(device), 1)
        sums = [spread.total(number, device) for number in sums]
    return _Held(tokens, tuple(tuple(layer) for layer in lengths.tolist()), *sums)


@torch.inference_mode()
def _generate_batch(session, prompts, options):  # type: ignore[no-untyped-def]
    model, device = session.model, session.model.device
    peak = PeakMemory(device)
    peak.start()
    started = time.perf_counter()
    caches, logits = [], []
    for input_ids in prompts:
        caches.append(session.new_cache())
        logits.append(run_step(model, caches[-1], torch.tensor([list(input_ids)], device=device)))
    session.cache = cache = join(caches)
    entries, kv_bytes = int(cache.lengths.sum()), cache.nbytes
    if (spread := cache.plan.spread) is not None:
        entries, kv_bytes = (spread.total(number, device) for number in (entries, kv_bytes))
    decoded = _decode(model, cache, torch.cat(logits), options)
    produced = sum(len(row) - 1 for row in decoded.rows)
    return BatchGeneration(
        tokens=decoded.rows,
        prompt_tokens=tuple(len(input_ids) for input_ids in prompts),
        kv_entries=entries,
        kv_bytes=kv_bytes,
        peak_bytes=peak.bytes(),
        prefill_s=decoded.started - started,
        tokens_per_s=produced / decoded.seconds if produced else None,
        kernel=cache.kernel.name,
        graph_refusal=decoded.graph_refusal,
        fused_refusal=decoded.fused_refusal,
    )


@dataclass(frozen=True)
class _Decoded:
    """`rows`: each sequence's tokens up to its end; `started`: when decoding began; `seconds` it took."""

    rows: tuple[tuple[int, ...], ...]
    started: float
    seconds: float
    graph_refusal: str | None
    fused_refusal: str | None


def _decode(model, cache, logits, options):  # type: ignore[no-untyped-def]
    """Decode behind `logits`, which are waited for first."""
    if logits.is_cuda:
        torch.cuda.synchronize(logits.device)
    started = time.perf_counter()
    decoder = Decoder(model, cache, sampler=options.sampler, graphs=options.graphs)
    eos = options.eos_token_ids
    tokens = decoder.run(logits, options.max_new_tokens, eos).tolist()
    seconds = time.perf_counter() - started
    refusal = decoder.graph_refusal
    if refusal is None and not decoder.uses_graph:
        refusal = "there were too few steps to capture one"
    rows = tuple(tuple(up_to_end(row, eos)) for row in tokens)
    return _Decoded(rows, started, seconds, refusal, decoder.fused_refusal)


def check_new_tokens(number: int) -> None:
    """Raise `OptionError` for an answer of less than one token."""
    if number < 1:
        raise OptionError(f"{number} new tokens are too few, need at least 1")


def _check(input_ids: Sequence[int], context_tokens: int | None) -> None:
    if not input_ids:
        raise OptionError("the prompt is empty: need at least one token")
    if context_tokens is not None and not 0 < context_tokens <= len(input_ids):
        raise OptionError(f"a context of {context_tokens} tokens for a prompt of {len(input_ids)}")


@contextmanager
def memory_advice(model: Any, what: str) -> Iterator[None]:
    """Turn running out of memory into a `DeviceMemoryError` that says what to change."""
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    raise DeviceMemoryError(_what_fits(model, what))


def _what_fits(model: Any, what: str) -> str:
    device = model.device
    room = ""
    if device.type == "cuda":
        room = f" ({torch.cuda.mem_get_info(device)[0] / 2**30:.1f} GiB are free)"
    return (
        f"{what} do not fit on {device}{room}: take --prefill-chunk 2048 or less, a shorter prompt, or --dtype bfloat16"
    )

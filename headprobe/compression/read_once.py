"""A prompt is read once by the full model; every policy at every budget then gets its cache from what was read.

No policy changes what a model computes while it reads: attention over the prompt is dense, and entries are chosen when
all of it has been read. So keys, values and what the selectors say of them are all that differs between a hundred
variants, and a cache made from them is the one that a run of its own would have made.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from headprobe.compression.conversation import Conversation
from headprobe.compression.generation import behind, memory_advice
from headprobe.compression.kernels.choice import Kernel, pick_kernel
from headprobe.compression.kv_cache_dtypes import AUTO, FORMATS
from headprobe.compression.layers import RaggedLayer, WindowedLayer
from headprobe.compression.policies import CompressionPlan, Policy, make_policy
from headprobe.compression.prefill import Watched
from headprobe.compression.ragged_cache import DEFAULT_SLACK, RaggedCache
from headprobe.compression.reading_layer import ReadingLayer, SeenLayer, distinct_selectors, place_of
from headprobe.compression.refusals import check_mask
from headprobe.compression.session import bare_model, kernel_needs, make_plan, on_ragged_caches
from headprobe.errors import DeviceMemoryError, OptionError
from headprobe.models.devices import PeakMemory
from headprobe.models.releases import with_cache

Prompt = torch.Tensor | Sequence[int]


@contextmanager
def read_once(
    model: Any, policies: Sequence[Policy | str], *, attention: str = "auto", prefill_chunk: int | None = None
) -> Iterator[Reader]:
    """Inside the block `reader.read(prompt)` reads prompts of `model` once for all `policies`.

    `policies`: all that are to be tried, at whatever budget and with whatever scores; policies that differ in their
    window or pool are different ones. `attention` and `prefill_chunk` as in `compress`.
    Raises `OptionError` for an unknown policy or kernel, `ModelError` for a model whose cache can't be compressed.

        with read_once(model, ["snapkv", "h2o"]) as reader:
            read = reader.read(tokenizer(text).input_ids)
            for budget in (64, 256):
                cache = read.cache([make_plan(model, "snapkv", budget=budget)])
    """
    model = bare_model(model)
    chosen = [policy if isinstance(policy, Policy) else make_policy(policy) for policy in policies]
    reader = Reader(model, chosen, attention)
    with on_ragged_caches(model, prefill_chunk):
        yield reader


class Reader:
    """Reads prompts of `model`, each once, for all of `policies`."""

    def __init__(self, model: Any, policies: Sequence[Policy], attention: str) -> None:
        self.model, self.policies = model, tuple(policies)
        self.selectors = distinct_selectors(policies)
        self._watched = Watched.by(policies)
        self._everything = make_plan(model, "full")
        self._attention = attention
        self._kernels: dict[tuple[bool, bool, str], tuple[Kernel, str]] = {}
        for policy in policies:
            self.kernel(policy)

    def kernel(self, policy: Policy, kv_cache_dtype: str = AUTO) -> tuple[Kernel, str]:
        """The attention kernel for `policy` on a cache of such entries, and why."""
        # all that policies differ in for a kernel
        asked = policy.compensates, policy.evicts_while_decoding, kv_cache_dtype
        if asked not in self._kernels:
            self._kernels[asked] = pick_kernel(self._attention, kernel_needs(self.model, policy, kv_cache_dtype))
        return self._kernels[asked]

    def read(self, prompt: Prompt, attention_mask: torch.Tensor | None = None) -> Reading:
        """What the model saw of `prompt`: token ids, of one prompt or `[B, N]` of a batch, padded on the left.

        Where the full cache of the prompt does not fit into memory the reading says so (`refusal`), and each cache that
        is asked of it comes from a run of its own, which needs the full keys and values of one layer at a time.
        Raises `OptionError` for an empty prompt or pads that don't fit.
        """
        ids = torch.as_tensor(prompt, device=self.model.device)
        ids = ids[None] if ids.ndim == 1 else ids
        if not ids.numel():
            raise OptionError("the prompt is empty: need at least one token")
        pads = [0] * len(ids) if attention_mask is None else check_mask(attention_mask, *ids.shape)
        given = GivenTokens(ids, attention_mask, tuple(pads))
        peak = PeakMemory(self.model.device)
        peak.start()
        began = time.perf_counter()
        refusal = None
        try:
            with memory_advice(self.model, f"{ids.shape[1]} tokens"):
                cache, logits = self._read(given)
        except DeviceMemoryError:
            refusal = f"the full cache of {ids.shape[1]} tokens does not fit: each policy reads the prompt for itself"
        if refusal is not None:
            return Reading(self, given, None, refusal, Cost(0.0, None))
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        return Reading(self, given, Seen(cache, logits), None, Cost(time.perf_counter() - began, peak.bytes()))

    def _read(self, given: GivenTokens) -> tuple[RaggedCache, torch.Tensor]:
        config = self.model.config.get_text_config(decoder=True)
        kernel, _ = pick_kernel("auto", kernel_needs(self.model, self._everything.policy))
        cache = RaggedCache(config, self._everything, kernel)
        for index, layer in enumerate(cache.layers):
            if isinstance(layer, RaggedLayer):
                cache.layers[index] = ReadingLayer(self._everything, layer.layer, kernel, self.selectors, self._watched)
        return cache, given.read_by(self.model, cache)


@dataclass(frozen=True, eq=False)
class GivenTokens:
    """Prompts `ids` `[B, N]`, with their padding `mask` `[B, N]` (None: no pads) and the `pads` before each."""

    ids: torch.Tensor
    mask: torch.Tensor | None
    pads: tuple[int, ...]

    @torch.inference_mode()
    def read_by(self, model: Any, cache: RaggedCache) -> torch.Tensor:
        """Logits `[B, vocabulary]` behind the prompts, which `cache` has read then."""
        mask = None if self.mask is None else self.mask.to(self.ids.device)
        positions = None if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)
        out = model(
            input_ids=self.ids, attention_mask=mask, position_ids=positions, **with_cache(model, cache), use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        logits: torch.Tensor = out.logits[:, -1].clone()
        return logits


@dataclass(frozen=True, eq=False)
class Seen:
    """The cache that holds all of the prompts, and the logits `[B, vocabulary]` behind them."""

    cache: RaggedCache
    logits: torch.Tensor


@dataclass(frozen=True)
class Cost:
    """Seconds that reading took, and its memory beyond the model's at its peak (None: the system does not say)."""

    seconds: float
    peak_bytes: int | None


class Reading:
    """Prompts that were read once. `cache(plans)` gives compressed caches, as many as are asked for.

    `given`: the prompts; `refusal`: why each cache comes from a run of its own after all, None where it does not;
    `cost`: of the reading. It holds the full keys and values of all layers until `release()`, or until it is dropped.
    """

    def __init__(self, reader: Reader, given: GivenTokens, seen: Seen | None, refusal: str | None, cost: Cost) -> None:
        self.reader, self.given, self.refusal, self.cost = reader, given, refusal, cost
        self._seen = seen

    def release(self) -> None:
        """Let go of the keys and values; caches asked for later come from runs of their own."""
        self._seen, self.refusal = None, self.refusal or "what was read has been released"

    @property
    def is_shared(self) -> bool:
        """Whether caches are made from one reading."""
        return self._seen is not None

    @property
    def batch(self) -> int:
        """How many prompts there are."""
        return len(self.given.pads)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held, sliding-window layers included."""
        return 0 if self._seen is None else self._seen.cache.nbytes

    @property
    def scores_nbytes(self) -> int:
        """Bytes that all selectors' scores take beside them."""
        return sum(layer.scores_nbytes for layer in self._layers())

    @property
    def tokens(self) -> list[int]:
        """Tokens of each prompt, its pads left out."""
        return [self.given.ids.shape[1] - pad for pad in self.given.pads]

    @property
    def entry_nbytes(self) -> list[int]:
        """Of each compressed layer the bytes of one entry of one KV head: its key and its value."""
        return [layer.entry_nbytes for layer in self._layers()]

    def entry_nbytes_as(self, kv_cache_dtype: str) -> list[int]:
        """As `entry_nbytes`, held in this number format."""
        quantized = FORMATS.get(kv_cache_dtype)
        if quantized is None:
            return self.entry_nbytes
        return [sum(map(quantized.row_nbytes, layer.widths)) for layer in self._layers()]

    @property
    def windows_nbytes(self) -> int:
        """Bytes of the layers that are not compressed."""
        return self.nbytes - sum(layer.nbytes for layer in self._layers())

    @property
    def can_join(self) -> bool:
        """Whether several plans can share one cache: only where all layers are full attention or sliding windows."""
        known = RaggedLayer | WindowedLayer
        return self._seen is not None and all(isinstance(layer, known) for layer in self._seen.cache.layers)

    def _layers(self) -> list[SeenLayer]:
        layers = [] if self._seen is None else self._seen.cache.ragged_layers
        return [
            layer.seen_layer for layer in layers if isinstance(layer, ReadingLayer) and layer.seen_layer is not None
        ]

    # -- caches -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def cache(
        self,
        plans: Sequence[CompressionPlan],
        *,
        slack: int = DEFAULT_SLACK,
        keep_positions: bool = False,
        kv_cache_dtype: str = AUTO,
    ) -> tuple[RaggedCache, torch.Tensor]:
        """A new cache that has read the prompts under each of `plans`, and the logits `[P * B, vocabulary]` behind it.

        Sequence `p * B + b` is prompt `b` under plan `p`; `slack`, `keep_positions` and `kv_cache_dtype` as in
        `compress`. Of several plans the cache carries the first as its own.

        Raises `OptionError` for plans that can't share a cache (policies that evict while decoding only share it with
        themselves), and for a policy that was not named before the reading.
        """
        check_together(plans, self.can_join)
        most = max((plan.policy for plan in plans), key=lambda policy: policy.compensates)
        kernel, _ = self.reader.kernel(most, kv_cache_dtype)
        config = self.reader.model.config.get_text_config(decoder=True)
        cache = RaggedCache(config, plans[0], kernel, slack, keep_positions, kv_cache_dtype)
        if self._seen is None:
            return cache, self.given.read_by(self.reader.model, cache)
        for plan in plans:
            if not plan.policy.keeps_all:
                place_of(plan.policy, self.reader.selectors)
        _fill(cache, self._seen.cache, plans)
        return cache, self._seen.logits.repeat(len(plans), 1)

    @torch.inference_mode()
    def logits_of(self, plan: CompressionPlan, tokens: torch.Tensor) -> torch.Tensor:
        """Logits `[B, T, vocabulary]` from which each of `tokens` `[B, T]`, behind the prompts, would be predicted.

        What scores a given continuation on a compressed cache: row `t` has read the prompts and `tokens[:, :t]`.
        """
        cache, first = self.cache([plan], slack=max(1, tokens.shape[1]))
        if tokens.shape[1] == 1:
            return first[:, None]
        model, rest = self.reader.model, tokens[:, :-1].to(first.device)
        out = model(input_ids=rest, position_ids=behind(cache, rest), **with_cache(model, cache), use_cache=True)
        return torch.cat([first[:, None], out.logits], 1)


def check_together(plans: Sequence[CompressionPlan], can_join: bool) -> None:
    """Raise `OptionError` unless `plans` can share one cache."""
    if not plans:
        raise OptionError("a cache needs at least one plan")
    if len(plans) == 1:
        return
    if not can_join:
        raise OptionError(f"{len(plans)} plans in one cache: that takes a shared reading of layers that can be joined")
    first, evicting = plans[0].policy, [plan.policy for plan in plans if plan.policy.evicts_while_decoding]
    if evicting and any(plan.policy != first for plan in plans):
        names = ", ".join(sorted({plan.policy.name for plan in plans}))
        raise OptionError(f"{evicting[0].name} evicts while decoding and can't share a cache with others ({names})")


def _fill(cache: RaggedCache, seen: RaggedCache, plans: Sequence[CompressionPlan]) -> None:
    """Let `cache` hold, for each of `plans`, what stays of all that `seen` holds."""
    pads = list(seen.pads)
    sources: list[Any] = seen.layers
    for index, source in enumerate(sources):
        layer: Any = cache.layers[index]
        if isinstance(source, ReadingLayer):
            assert source.seen_layer is not None
            layer.seen = source.seen
            kept = [head for plan in plans for head in source.seen_layer.kept(plan)]
            layer.fill(kept, source.seen_layer.shape, pads * len(plans))
        elif len(plans) == 1:
            cache.layers[index] = copy.deepcopy(source)
        else:
            cache.layers[index] = WindowedLayer.joined([source] * len(plans), seen.tokens_seen)
    cache.pads = pads * len(plans)
    conversations = [seen.conversation] * len(plans)
    cache.conversation = Conversation.joined(conversations, cache.pads, seen.tokens_seen)

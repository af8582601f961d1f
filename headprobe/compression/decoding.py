"""The decode loop: the model and the choice of the next token, captured as a CUDA graph if possible."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from headprobe.compression.capture import captured
from headprobe.compression.fused.layers import FusedLayers
from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.errors import OptionError
from headprobe.models.config import moving_rope
from headprobe.models.devices import is_out_of_memory
from headprobe.models.finite import non_finite, usable
from headprobe.models.releases import with_cache

# Which token comes next: drawn from the logits on the device, without a number that the host would have to know.

SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Sampler:
    """Samples tokens with `p ~ softmax(logits / temperature)`.

    `temperature` above 0; `top_k`: only the k most likely tokens (0: all); `top_p` in (0, 1]: only the most likely
    whose probabilities reach it; `seed`: the same one gives the same tokens on the same device. The filters are those
    of transformers, applied in its order. Raises `OptionError` for values out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and isfinite(self.temperature)):
            raise OptionError(f"a temperature of {self.temperature} is out of range, need more than 0")
        if self.top_k < 0:
            raise OptionError(f"top-k is {self.top_k}, need at least 1 token, or 0 for all")
        if not 0.0 < self.top_p <= 1.0:
            raise OptionError(f"a top-p of {self.top_p} is out of range, need more than 0 and at most 1")
        if self.seed < 0:
            raise OptionError(f"the seed is {self.seed}, need 0 or more")

    @cached_property
    def _warpers(self) -> LogitsProcessorList:
        warpers = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers

    def generator(self, device: torch.device) -> torch.Generator:
        """A fresh source of randomness on `device`."""
        return torch.Generator(device).manual_seed(self.seed)

    def draw(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A token for each row of `logits` `[B, vocabulary]`: int64 `[B]`.

        `argmax(log p - log e)` with `e` exponentially distributed is distributed as `p` (the Gumbel trick).
        """
        no_ids: Any = None  # the filters look at the scores alone
        warped = self._warpers(no_ids, logits.float())
        noise = torch.empty_like(warped).exponential_(generator=generator).clamp_min_(SMALLEST)
        return (warped - noise.log()).argmax(-1)


# The decode loop: the model, the choice of the next token and writing it down, captured as a CUDA graph if possible.
#
# `model.generate()` on the session's cache gives the same tokens, up to rounding; this loop is what is fast on a GPU,
# where a step of a small cache is bound by the time that Python takes to launch kernels.

WARM_UP_STEPS = 2  # eager steps before a capture: they make tables, compile kernels and allocate workspaces
LOOK_EVERY = 8  # steps between two looks of the host at the tokens, where steps beyond the end can be taken back
ROOM_AT_A_TIME = 256  # entries: new tokens for which a cache is laid out at once before it is captured
PIECES = 64  # of a row of logits, searched for the largest side by side
UNUSABLE = -1  # stands for a token that was chosen from logits with NaN or infinity


class Decoder:
    """Produces tokens with a model on a compressed cache that has read its prompt.

    `sampler` draws the tokens; None takes the most likely. On a CUDA device a step is captured once a few have run, and
    replayed; when the cache has been laid out again, it is recaptured. `graphs=False` never captures.
    `graph_refusal` says why steps are not captured; None as long as nothing stands against it. `fused`: a layer's step
    takes few launches where it is of a known form (`compression.fused`).
    """

    def __init__(
        self, model: Any, cache: RaggedCache, *, sampler: Sampler | None = None, graphs: bool = True, fused: bool = True
    ) -> None:
        self.cache = cache
        self.graph_refusal = _refusal(model, cache) if graphs else "graphs are switched off"
        self._step = DecodeStep(model, cache, sampler, fused=fused)
        self._graph: CapturedStep | None = None
        self._has_begun = False
        self._warm_layout: tuple[int, ...] = ()
        self._warm_steps = 0

    @property
    def fused_refusal(self) -> str | None:
        """Why the layers' steps are not fused, None where they are."""
        return self._step.layers.refusal

    @property
    def uses_graph(self) -> bool:
        """Whether steps are replayed from a captured graph by now."""
        return self._graph is not None

    @torch.inference_mode()
    def run(self, logits: torch.Tensor, max_new_tokens: int, eos_token_ids: Collection[int] = ()) -> torch.Tensor:
        """Up to `max_new_tokens` tokens behind `logits` `[B, vocabulary]` of what was read last: int64 `[B, n]`.

        It ends when every sequence has come to one of `eos_token_ids`; behind its own end a sequence repeats that
        token. The cache has then read all of the `n` tokens but the last. Raises `NonFiniteError` where a token came
        from logits with NaN or infinity, `OptionError` where an earlier step was broken off between two layers.
        """
        ends, first = frozenset(eos_token_ids), self.cache.tokens_seen
        chosen = self._step.choose(logits)
        self._begin(chosen)
        rows: list[list[int]] = [[token] for token in marked(chosen, logits).tolist()]
        self._check_usable(rows)
        look_every = 1 if self.graph_refusal is not None or self.cache.evicts else LOOK_EVERY
        while len(rows[0]) < max_new_tokens and any(ends.isdisjoint(row) for row in rows):
            left = max_new_tokens - len(rows[0])
            count = min(look_every, left)
            self._advance(count, left)
            for row, new in zip(rows, self._step.recent[:, :count].tolist(), strict=True):
                row += new
            self._check_usable([up_to_end(row, ends) for row in rows])
        kept = [up_to_end(row, ends) for row in rows]
        length = max(len(row) for row in kept)
        if length < len(rows[0]):
            self.cache.take_back(len(rows[0]) - length)
        read = torch.tensor([row[: length - 1] for row in rows], dtype=torch.int64, device=logits.device)
        self.cache.conversation.catch_up(read, first, self.cache.tokens_seen)
        return torch.tensor([row + row[-1:] * (length - len(row)) for row in kept], device=logits.device)

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits `[B, vocabulary]` behind `tokens` `[B]`, one more for each sequence; the next step overwrites them."""
        first = self.cache.tokens_seen
        self._begin(tokens)
        self._advance(1, 1)
        self.cache.conversation.catch_up(tokens[:, None], first, self.cache.tokens_seen)
        assert self._step.logits is not None
        return self._step.logits

    def _begin(self, tokens: torch.Tensor) -> None:
        self.cache.conversation.check_whole()
        if self._has_begun and self._graph is None:
            self._step.layers.renew()
        self._has_begun = True
        self._step.begin(tokens)

    def _check_usable(self, rows: list[list[int]]) -> None:
        """Raise `NonFiniteError` for the first sequence that holds `UNUSABLE`."""
        for number, row in enumerate(rows):
            if UNUSABLE in row:
                which = f" of sequence {number}" if len(rows) > 1 else ""
                what = f"NaN or infinity in the logits of new token {row.index(UNUSABLE) + 1}{which}"
                raise non_finite(self._step.model, what)

    def _advance(self, count: int, expected: int) -> None:
        """Do `count` steps, at most `LOOK_EVERY`; `expected` are those that may come in all."""
        self._step.column.zero_()
        for done in range(count):
            if self._is_captured(count - done, expected):
                assert self._graph is not None
                self._graph.replay(count - done)
                return
            self._step()

    def _is_captured(self, count: int, expected: int) -> bool:
        """Whether `count` steps can be replayed; warms up and captures where that is yet to be done."""
        if self.graph_refusal is not None:
            return False
        fits = self.cache.layout == self._warm_layout and self.cache.has_room(count)
        if self._graph is not None and fits:
            return True
        if not fits:
            self._graph = None
            self.cache.make_room(max(count, min(expected, ROOM_AT_A_TIME)))
            self._warm_layout, self._warm_steps = self.cache.layout, 0
        self._warm_steps += 1
        if self._warm_steps > WARM_UP_STEPS:
            self._capture()
        return self._graph is not None

    def _capture(self) -> None:
        try:
            self._graph = CapturedStep(self._step)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.graph_refusal = f"a step could not be captured: {str(error).splitlines()[0]}"
            self._step.renew_generator()


class DecodeStep:
    """One step on fixed buffers: `tokens` and `positions` int64 `[B, 1]`, which it moves on by one.

    `recent` int64 `[B, LOOK_EVERY]` takes the new tokens, at `column`, `UNUSABLE` in place of those from broken logits;
    `logits` `[B, vocabulary]` are the step's.
    """

    def __init__(self, model: Any, cache: RaggedCache, sampler: Sampler | None, *, fused: bool = True) -> None:
        self.model, self.cache, self.sampler = model, cache, sampler
        self.layers = FusedLayers(model, cache, wanted=fused)
        self.device = model.device
        self.positions = cache.next_positions(self.device)
        self.tokens = torch.zeros_like(self.positions)
        self.recent = self.tokens.repeat(1, LOOK_EVERY)
        self.column = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.logits: torch.Tensor | None = None
        self.generator = None if sampler is None else sampler.generator(self.device)

    def begin(self, tokens: torch.Tensor) -> None:
        """Take `tokens` `[B]`, which the model is to read next, where the cache stands now."""
        self.tokens.copy_(tokens[:, None])
        self.positions.copy_(self.cache.next_positions(self.device))

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of each sequence, int64 `[B]`."""
        if self.sampler is None or self.generator is None:
            return most_likely(logits)
        return self.sampler.draw(logits, self.generator)

    def __call__(self) -> None:
        """Read `tokens`, choose those behind them."""
        self.cache.announce()
        with self.layers.in_place():
            self.logits = run_step(self.model, self.cache, self.tokens, self.positions)
        self.positions += 1
        chosen = self.choose(self.logits)
        self.tokens.copy_(chosen[:, None])
        self.recent.index_copy_(1, self.column, marked(chosen, self.logits)[:, None])
        self.column += 1

    def renew_generator(self) -> None:
        """Draw from another generator: the old one is left in a capture that failed."""
        if self.sampler is not None:
            self.generator = replace(self.sampler, seed=self.sampler.seed + 1).generator(self.device)


class CapturedStep:
    """A decode step as a CUDA graph.

    Capturing runs the Python code once without computing anything, so what it counts on the host is set back.
    """

    def __init__(self, step: DecodeStep) -> None:
        self.cache = step.cache
        counted = self.cache.counters
        try:
            self.graph = captured(step, step.device, step.generator)
        finally:
            self.cache.counters = counted

    def replay(self, count: int) -> None:
        """Do `count` steps, for which there must be room."""
        for _ in range(count):
            self.graph.replay()
        self.cache.advance(count)


def run_step(
    model: Any, cache: RaggedCache, tokens: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits `[B, vocabulary]` behind `tokens` `[B, T]` at `positions` `[B, T]` (None: those that follow, no pads)."""
    given = with_cache(model, cache)
    out = model(input_ids=tokens, position_ids=positions, **given, use_cache=True, logits_to_keep=1)
    logits: torch.Tensor = out.logits[:, -1]
    return logits


def _refusal(model: Any, cache: RaggedCache) -> str | None:
    """Why steps of `model` can't be captured; None where they can, as far as is known beforehand."""
    if model.device.type != "cuda":
        return f"graphs need a CUDA device, not {model.device.type}"
    if not cache.is_fixed:
        return "sliding-window and linear layers allocate at every step"
    if cache.plan.spread is not None:
        return "the model's heads lie on several processes"
    if len({store.device for store in cache.stores}) > 1:
        return "the model's layers lie on several devices"
    if cache.kv_cache_dtype != AUTO:
        return f"a cache of {cache.kv_cache_dtype} entries is read step by step"
    moving = moving_rope(model)
    return None if moving is None else f"{moving} rotary embeddings look at positions on the host"


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """`logits.argmax(-1)`, int64 `[B]`, in two steps where the vocabulary can be divided into `PIECES`: a GPU walks one
    long row with a single block of threads."""
    batch, vocabulary = logits.shape
    if vocabulary % PIECES:
        return logits.argmax(-1)
    values, places = logits.view(batch, PIECES, -1).max(-1)
    piece = values.argmax(-1, keepdim=True)
    return (piece * (vocabulary // PIECES) + places.gather(1, piece))[:, 0]


def marked(chosen: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """`chosen` `[B]` with `UNUSABLE` where its row of `logits` is: the host then sees it together with the tokens."""
    return torch.where(usable(logits), chosen, UNUSABLE)


def up_to_end(row: list[int], ends: Collection[int]) -> list[int]:
    """The tokens of `row` up to the first of `ends`, that one included; all where there is none."""
    return row[: next((index + 1 for index, token in enumerate(row) if token in ends), len(row))]

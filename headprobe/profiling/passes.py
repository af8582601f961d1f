"""Passes of one model on top of a cache of what it has read, in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from headprobe.attention.rows import Consumer, wanted_rows
from headprobe.errors import DeviceMemoryError
from headprobe.events import RETRY, emit
from headprobe.models.config import moving_rope
from headprobe.models.devices import is_out_of_memory
from headprobe.models.placement import head_spread
from headprobe.models.releases import with_cache
from headprobe.profiling.prefix import PrefixCache, crop
from headprobe.stages import PREFILL, stage

MIN_CHUNK = 256
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Skipped:
    """A trial that did not fit on the device even in the smallest pieces."""

    reason: str


class Passes:
    """Puts tokens through `model`, whose cache holds those before them.

    `chunk`: most tokens that go through the model at a time; halved when the device runs out of memory, down to 256;
    then keys and values move to the host's memory (`on_host`), once, and after that a trial is skipped.
    `is_moving`: rotary frequencies change with the length of a pass, so that a prompt is read in one pass.
    """

    def __init__(self, model: Any, chunk: int) -> None:
        self.model, self.chunk, self._asked_chunk = model, chunk, chunk
        self._layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self._is_spread = head_spread(model) is not None
        self.is_moving = moving_rope(model) is not None
        self.on_host, self._longest = False, 0
        self.cache = self._new_cache()

    def begin(self, longest: int) -> None:
        """An empty cache with room for `longest` tokens."""
        self._longest = longest
        self.cache = self._new_cache()

    def _new_cache(self) -> PrefixCache:
        return PrefixCache(self._layers, self._longest, self.on_host)

    # -- memory -----------------------------------------------------------------------------------------------------

    def fit(self, work: Callable[[], _Result], tokens: int) -> _Result | Skipped:
        """Do `work`; when memory runs out, again in pieces of half the size, and at the smallest give up.

        Raises `DeviceMemoryError` where other processes share the model's heads, and wait in the middle of a pass.
        """
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._is_spread:
                    raise DeviceMemoryError(
                        f"{tokens} tokens do not fit on {self.model.device} in chunks of {self.chunk}: take a "
                        "smaller --prefill-chunk, shorter --lengths or more processes"
                    ) from error
            # Outside the except clause: its traceback would hold the tensors that are to be freed.
            at_end = self.is_moving or self.chunk <= MIN_CHUNK
            moves = at_end and self.can_move_to_host()
            self.on_host |= moves
            self.cache = self._new_cache()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if moves:
                self.chunk = self._asked_chunk
                continue
            reason = f"out of memory on {self.model.device} at {tokens} tokens"
            if at_end:
                return Skipped(reason)
            self.chunk = max(MIN_CHUNK, self.chunk // 2)
            emit(RETRY, reason=reason, prefill_chunk=self.chunk)

    def can_move_to_host(self) -> bool:
        """Whether keys and values can make room on the device: not where that is the host, or they are there."""
        return not self.on_host and self.model.device.type != "cpu"

    # -- through the model ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self, tokens: tuple[int, ...], keep: int) -> torch.Tensor:
        """One pass; logits `[keep, vocabulary]` of the last `keep` tokens."""
        ids = torch.tensor([tokens], device=self.model.device)
        out = self.model(input_ids=ids, **with_cache(self.model, self.cache), use_cache=True, logits_to_keep=keep)
        logits: torch.Tensor = out.logits[0, -keep:]
        return logits

    def run_with_rows(self, tokens: tuple[int, ...], rows: int, take: Consumer) -> torch.Tensor:
        """Logits `[rows, vocabulary]` of the last `rows` tokens, whose attention rows go to `take`."""
        head = 0 if self.is_moving else max(0, len(tokens) - max(self.chunk, rows))
        self._prefill(tokens[:head])
        with wanted_rows(rows, take):
            return self.run(tokens[head:], rows)

    def extend(self, prefix: tuple[int, ...]) -> None:
        """Compute what the cache still lacks of `prefix`: nothing, unless memory ran out and it was dropped."""
        with stage(PREFILL):
            self._prefill(prefix[self.cache.get_seq_length() :])

    def _prefill(self, tokens: tuple[int, ...]) -> None:
        for start in range(0, len(tokens), self.chunk):
            self.run(tokens[start : start + self.chunk], 1)

    def back_to(self, length: int) -> None:
        """Drop what the cache holds behind the first `length` tokens, for a pass that begins there."""
        crop(self.cache, length)

    def begin_trial(self, length: int) -> None:
        """As `back_to`, for a prompt that shares `length` tokens with those before it."""
        self.back_to(length)
        if self.is_moving:  # let "dynamic" frequencies begin anew: a pass below the original length sets them back
            self.run((0,), 1)
            self.back_to(0)

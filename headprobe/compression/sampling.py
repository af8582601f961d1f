"""Which token comes next: drawn from the logits on the device, without a number that the host would have to know."""

from __future__ import annotations

from dataclasses import dataclass
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

from headprobe.errors import OptionError

SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Sampler:
    """Draws tokens with `p ~ softmax(logits / temperature)`.

    `temperature` above 0; `top_k`: only the so many likeliest tokens (0: all); `top_p` in (0, 1]: only the likeliest
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

"""From importance and capacity to the entries that a head keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def protect(importance: torch.Tensor, recents: Sequence[int], sinks: int, capacities: Sequence[int]) -> torch.Tensor:
    """`importance` `[G, n]` with infinity at entries that stay anyway: `sinks` first ones and each head's recent ones.

    Where they exceed a head's capacity the sinks go first and the recent ones get the rest.
    """
    protected = importance.clone()
    tokens = importance.shape[1]
    firsts = [min(sinks, capacity, tokens) for capacity in capacities]
    lasts = [min(recent, cap - first, tokens) for recent, cap, first in zip(recents, capacities, firsts, strict=True)]
    bounds = list(zip(firsts, lasts, strict=True))
    heads: Iterable[slice | int] = [slice(None)] if len(set(bounds)) == 1 else range(len(bounds))
    for head, (first, last) in zip(heads, bounds, strict=False):
        protected[head, :first] = torch.inf
        protected[head, tokens - last :] = torch.inf
    return protected


def kept_positions(protected: torch.Tensor, capacities: Sequence[int]) -> list[torch.Tensor]:
    """For each head of `protected` `[G, n]` the `capacity` positions of largest value, in rising order, int64.

    Of equal values the earlier position is kept.
    """
    tokens = protected.shape[1]
    if min(capacities) >= tokens:
        every = torch.arange(tokens, device=protected.device)
        return [every] * len(capacities)
    order = torch.sort(protected, dim=-1, descending=True, stable=True).indices
    return [order[head, :capacity].sort().values for head, capacity in enumerate(capacities)]

"""From importance and capacity to the entries that a head keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def protect(importance: torch.Tensor, recents: Sequence[int], sinks: int, capacities: Sequence[int]) -> torch.Tensor:
    """`importance` `[G, n]` with infinity at entries that stay anyway: `sinks` first ones and each head's recent ones.

    Where they exceed a head's capacity the sinks go first and the recent ones get the rest.
    """
    protected = importance.clone()
    groups, tokens = importance.shape
    for head in range(groups):
        first = min(sinks, capacities[head], tokens)
        last = min(recents[head], capacities[head] - first, tokens)
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

"""Reading a prompt in one layer: dense attention, what the selector wants to know, and the choice of what stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log

import torch

from headprobe.attention.dense import dense_attention
from headprobe.compression.importance import AttentionShape, Observation, column_sums, value_norms
from headprobe.compression.policies import CompressionPlan, Policy
from headprobe.compression.ragged_store import Segment

# From importance and capacity to the entries that a head keeps.


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


@dataclass(frozen=True, eq=False)
class KeptHead:
    """What one KV head of one sequence keeps.

    `positions` int64 `[k]`, rising, counted from the sequence's first real token (-1: a compensation entry); `scores`
    float32 `[k, C]` as the selector counts them; `limit`: entries that it may hold while decoding.
    """

    segment: Segment
    positions: torch.Tensor
    scores: torch.Tensor
    limit: int


@dataclass(frozen=True)
class Watched:
    """What selectors want to know of a prompt beside keys and values: so many last queries, and the column sums."""

    num_queries: int = 0
    column_sums: bool = False

    @classmethod
    def by(cls, policies: Iterable[Policy]) -> Watched:
        """What all of `policies` together want."""
        selectors = [policy.selector for policy in policies if not policy.keeps_all]
        widest = max((selector.num_queries for selector in selectors), default=0)
        return cls(widest, any(selector.needs_column_sums for selector in selectors))


class PromptReader:
    """Reads the prompt of one layer, whole or in chunks, and holds its keys and values until all is read."""

    def __init__(self, watched: Watched, expected: int) -> None:
        self.watched, self.expected = watched, expected
        self.seen = 0
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None
        self._queries: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []

    @property
    def is_done(self) -> bool:
        """Whether the whole prompt has been read."""
        return self.seen >= self.expected

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a chunk's keys and values `[B, G, t, d]`; gives all so far. Only one copy of them is ever held."""
        count = keys.shape[2]
        if self.seen == 0 and count == self.expected:
            self._keys, self._values = keys, values
        else:
            if self._keys is None or self._values is None:
                self._keys = keys.new_empty(*keys.shape[:2], self.expected, keys.shape[3])
                self._values = values.new_empty(*values.shape[:2], self.expected, values.shape[3])
            self._keys[:, :, self.seen : self.seen + count] = keys
            self._values[:, :, self.seen : self.seen + count] = values
        self.seen += count
        assert self._keys is not None
        assert self._values is not None
        return self._keys[:, :, : self.seen], self._values[:, :, : self.seen]

    def attend(self, query: torch.Tensor, shape: AttentionShape, pads: Sequence[int]) -> torch.Tensor:
        """Attention output `[B, H, t, d]` of the chunk that was taken last; `pads` `[B]` are left pads in tokens."""
        out = dense_by_sequence(query, *self.so_far(), shape, pads)
        self._watch(query, shape, pads)
        return out

    def so_far(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[B, G, n, d]` of all that has been read."""
        assert self._keys is not None
        assert self._values is not None
        return self._keys[:, :, : self.seen], self._values[:, :, : self.seen]

    def _watch(self, query: torch.Tensor, shape: AttentionShape, pads: Sequence[int]) -> None:
        """Keep the last queries, and add to the column sums, as far as selectors ask for them."""
        wanted = self.watched.num_queries
        if wanted:
            held = [*self._queries, query]
            self._queries = [torch.cat(held, 2)[:, :, -wanted:]] if len(held) > 1 else held
            if self._queries[0].shape[2] > wanted:
                self._queries = [self._queries[0][:, :, -wanted:].clone()]
        if self.watched.column_sums:
            keys, _ = self.so_far()
            first = self.seen - query.shape[2]
            if not self._sums:
                self._sums = [keys.new_zeros(keys.shape[1], self.expected - pad, dtype=torch.float32) for pad in pads]
            for sequence, pad in enumerate(pads):
                own = query[sequence, :, max(0, pad - first) :]
                if own.shape[1]:
                    self._sums[sequence][:, : self.seen - pad] += column_sums(own, keys[sequence, :, pad:], shape)

    def observations(self, shape: AttentionShape, pads: Sequence[int]) -> list[Observation]:
        """What was seen of each sequence, its pads left out."""
        seen: list[Observation] = []
        keys, values = self.so_far()
        for sequence, pad in enumerate(pads):
            query = self._queries[0][sequence] if self._queries else keys.new_zeros(1, 0, keys.shape[-1])
            own = query[:, max(0, query.shape[1] - (self.seen - pad)) :]
            sums = self._sums[sequence] if self._sums else None
            seen.append(Observation(own, keys[sequence, :, pad:], values[sequence, :, pad:], shape, sums))
        return seen


def dense_by_sequence(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    shape: AttentionShape,
    pads: Sequence[int],
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention where sequence `b` begins behind `pads[b]` pad tokens: each computed as if it were alone.

    `query` `[B, H, t, d]` are the last `t` of the positions of `keys`; outputs at pads are 0.
    """
    options = {"scaling": shape.scaling, "softcap": shape.softcap, "sinks": shape.sinks, "window": window}
    if not any(pads):
        return dense_attention(query, keys, values, **options)  # type: ignore[arg-type]
    first = keys.shape[2] - query.shape[2]
    out = query.new_zeros(*query.shape[:3], values.shape[-1])
    for b, pad in enumerate(pads):
        skip = max(0, pad - first)
        if skip < query.shape[2]:
            own = query[b : b + 1, :, skip:], keys[b : b + 1, :, pad:], values[b : b + 1, :, pad:]
            out[b : b + 1, :, skip:] = dense_attention(*own, **options)  # type: ignore[arg-type]
    return out


def choose(observation: Observation, plan: CompressionPlan, layer: int) -> list[KeptHead]:
    """What each KV head of one sequence keeps in compressed layer `layer`."""
    scores = None if plan.policy.keeps_all else plan.policy.selector.scores(observation)
    return chosen(observation.key, observation.value, scores, plan, layer)


def chosen(
    key: torch.Tensor, value: torch.Tensor, scores: torch.Tensor | None, plan: CompressionPlan, layer: int
) -> list[KeptHead]:
    """As `choose`, of entries `key`, `value` `[G, n, d]` whose `scores` `[G, n, C]` by the policy's selector are known.

    They may be None for a policy that keeps all.
    """
    policy, tokens = plan.policy, key.shape[1]
    groups = key.shape[0]
    capacities = [int(c) for c in plan.capacities(tokens)[layer]]
    if policy.keeps_all or scores is None:
        scores = key.new_zeros(groups, tokens, 1, dtype=torch.float32)
        importance = scores[..., 0]
    else:
        importance = weighted(scores.sum(-1), value, policy.value_aware, policy.value_eps)
        capacities = _adapted(importance, plan, layer)
    limits = [int(c) for c in plan.limits(tokens)[layer]] if policy.evicts_while_decoding else capacities
    shortened = [policy.compensates and capacity < tokens for capacity in capacities]
    entries = [capacity - short for capacity, short in zip(capacities, shortened, strict=True)]
    recents = [policy.selector.recent(limit) for limit in limits]
    positions = kept_positions(protect(importance, recents, policy.sinks, entries), entries)
    return [
        _head(key[head], value[head], scores[head], positions[head], limits[head], shortened[head])
        for head in range(groups)
    ]


def _adapted(importance: torch.Tensor, plan: CompressionPlan, layer: int) -> list[int]:
    """Capacities of the heads that are here, once the importance `[own heads, n]` of their entries is known; of all
    heads' importance where the allocator looks at it."""
    policy, spread = plan.policy, plan.spread
    capacities = [int(c) for c in plan.all_capacities(importance.shape[1])[layer]]
    free = _open(importance, plan)
    if spread is None:
        return policy.allocator.adapt(free, capacities, policy.floor)
    if not policy.allocator.adapts:
        return capacities[spread.own(len(capacities))]
    return policy.allocator.adapt(spread.gathered(free), capacities, policy.floor)[spread.own(len(capacities))]


def weighted(importance: torch.Tensor, value: torch.Tensor, value_aware: bool, eps: float) -> torch.Tensor:
    """VATP: `(importance + eps) * norm1(value)`, where asked for."""
    return (importance + eps) * value_norms(value) if value_aware else importance


def _open(importance: torch.Tensor, plan: CompressionPlan) -> torch.Tensor:
    """`importance` with `-inf` at the sinks and in the window, which stay anyway."""
    tokens, policy = importance.shape[1], plan.policy
    free = importance.clone()
    free[:, : policy.sinks] = -torch.inf
    free[:, max(0, tokens - policy.selector.window) :] = -torch.inf
    return free


def _head(
    keys: torch.Tensor,
    values: torch.Tensor,
    scores: torch.Tensor,
    positions: torch.Tensor,
    limit: int,
    compensated: bool,
) -> KeptHead:
    if len(positions) == keys.shape[0]:
        return KeptHead(Segment(keys, values), positions, scores, limit)
    segment, kept_scores = Segment(keys[positions], values[positions]), scores[positions]
    if not compensated:
        return KeptHead(segment, positions, kept_scores, limit)
    nowhere = positions.new_full((1,), -1)
    none = kept_scores.new_zeros(1, kept_scores.shape[1])
    joined = torch.cat([nowhere, positions]), torch.cat([none, kept_scores])
    return KeptHead(_compensated(segment, keys, values, positions), *joined, limit)


def _compensated(segment: Segment, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> Segment:
    """`segment` behind one entry that is the mean of all that it dropped, and counts as many times."""
    dropped = torch.ones(1, keys.shape[0], device=keys.device).index_fill_(1, positions, 0.0)
    number = keys.shape[0] - len(positions)
    means = [(dropped @ table.float() / number).to(table.dtype) for table in (keys, values)]
    bias = torch.zeros(len(positions) + 1, device=keys.device)
    bias[0] = log(number)
    return Segment(torch.cat([means[0], segment.keys]), torch.cat([means[1], segment.values]), bias)

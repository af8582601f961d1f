"""Compressed decoding in plain loops: a full cache, sets of positions, one query and one head at a time.

`oracle_attention(model, plan)` switches a model to an attention function that never throws anything away: for each KV
head it holds the set of positions that are still in the cache, and masks all others. It knows one sequence at a time.
With `held` it reads keys and values, once the prompt is over, as a cache of another number format would give them back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from headprobe.compression.policies import CompressionPlan

NAME = "test_oracle_eviction"
Row = dict[int, float]


@dataclass
class HeadState:
    """One KV head: the positions that it still holds, and all attention rows so far (mean over its query heads)."""

    kept: set[int] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    capacity: int = 0
    dropped: list[int] = field(default_factory=list)  # what a compensation entry stands for


@dataclass
class OracleState:
    plan: CompressionPlan
    layers: tuple[int, ...]  # indices of the compressed layers
    heads: dict[tuple[int, int], HeadState] = field(default_factory=dict)
    held: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows


_state: list[OracleState] = []


def importance(state: OracleState, head: HeadState, value: torch.Tensor, position: int) -> float:
    """How much position `position` matters by the policy's selector, in plain words."""
    policy, selector = state.plan.policy, state.plan.policy.selector
    count = len(head.rows)
    if selector.name == "accumulated":
        total = sum(row.get(position, 0.0) for row in head.rows)
    elif selector.name == "history":
        first = max(0, (count - 1) // selector.block - selector.queries // selector.block) * selector.block
        total = sum(row.get(position, 0.0) for row in head.rows[first:])
    elif selector.name == "window":
        before = count - selector.window
        near = range(max(0, position - selector.pool // 2), min(before, position + selector.pool // 2 + 1))
        means = [sum(row.get(j, 0.0) for row in head.rows[-selector.window :]) / selector.window for j in near]
        total = max(means, default=0.0) if position < before else 0.0
    else:
        total = 0.0
    if policy.value_aware:
        total = (total + policy.value_eps) * sum(map(abs, value[position].tolist()))
    return total


def choose_kept(state: OracleState, head: HeadState, value: torch.Tensor, capacity: int, limit: int) -> set[int]:
    """The positions of the prompt that stay."""
    policy, count = state.plan.policy, len(head.rows)
    if policy.keeps_all or capacity >= count:
        return set(range(count))
    room = capacity - 1 if policy.compensates else capacity
    sinks = list(range(min(policy.sinks, room)))
    recents = min(policy.selector.recent(limit), room - len(sinks))
    chosen = set(sinks) | set(range(count - recents, count))
    others = sorted(set(range(count)) - chosen, key=lambda j: (-importance(state, head, value, j), j))
    return chosen | set(others[: room - len(chosen)])


def adaptive_capacities(state: OracleState, heads: list[HeadState], value: torch.Tensor, capacity: int) -> list[int]:
    """Ada-KV's split of one layer, with largest remainders; random scores never reach a head's cap in the tests."""
    policy, count, groups = state.plan.policy, len(heads[0].rows), len(heads)
    if capacity >= count:
        return [capacity] * groups
    mean = capacity - policy.floor
    free = range(policy.sinks, count - policy.selector.window)
    ranked = sorted(((-importance(state, head, value[g], j), g, j) for g, head in enumerate(heads) for j in free))[
        : mean * groups
    ]
    alpha = policy.allocator.alpha
    wanted = [(1 - alpha) * sum(g == own for _, g, _ in ranked) + alpha * mean for own in range(groups)]
    whole = [math.floor(x + 1e-9) for x in wanted]
    order = sorted(range(groups), key=lambda g: (-(wanted[g] - whole[g]), g))
    for g in order[: mean * groups - sum(whole)]:
        whole[g] += 1
    assert max(whole) + policy.floor <= count
    return [policy.floor + x for x in whole]


def evict(state: OracleState, head: HeadState, value: torch.Tensor) -> None:
    """Drop one position of a head that holds more than it may."""
    policy, newest = state.plan.policy, len(head.rows) - 1
    if len(head.kept) <= head.capacity:
        return
    recent = policy.selector.recent(head.capacity)
    open_ = [j for j in head.kept if policy.sinks <= j <= newest - recent]
    if not open_:
        open_ = [min(j for j in head.kept if j >= policy.sinks)]
    head.kept.remove(min(open_, key=lambda j: (importance(state, head, value, j), j)))


def one_row(query, key, value, seen, scaling, softcap, sink, extra=None):  # type: ignore[no-untyped-def]
    """Output of one query, and its weights by position; `extra`: (key, value, bias) of a compensation entry."""
    positions = sorted(seen)
    scores = (key[positions] @ query).double() * scaling
    values = value[positions].double()
    if extra is not None:
        scores = torch.cat([scores, (extra[0] @ query).double()[None] * scaling + extra[2]])
        values = torch.cat([values, extra[1].double()[None]])
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.exp(scores - scores.max())
    total = weights.sum() + (0.0 if sink is None else torch.exp(sink.double() - scores.max()))
    weights = weights / total
    return (weights[:, None] * values).sum(0).to(value.dtype), dict(zip(positions, weights.tolist(), strict=False))


# What says nothing that is not said otherwise: a window is in the mask, and nothing is dropped out of a model in use.
UNUSED = {"dropout", "sliding_window", "position_ids", "use_cache", "output_router_logits"}


def _attention(module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **said):  # type: ignore[no-untyped-def]
    assert set(said) <= UNUSED, f"the oracle does not know what {set(said) - UNUSED} mean"
    state = _state[-1]
    _, heads, tokens, _ = query.shape
    groups, seen = key.shape[1], key.shape[2]
    out = torch.zeros(1, heads, tokens, value.shape[-1])
    layer = module.layer_idx
    mine, theirs = key, value  # as the model computed them
    if layer in state.layers and (layer, 0) in state.heads:
        key, value = state.held(key), state.held(value)
    for t in range(tokens):
        position = seen - tokens + t
        for g in range(groups):
            own = range(g * heads // groups, (g + 1) * heads // groups)
            extra = None
            if layer not in state.layers:
                visible = set(torch.nonzero(attention_mask[0, 0, t]).flatten().tolist())
            else:
                head = state.heads.setdefault((layer, g), HeadState())
                head.kept.add(position)
                visible = head.kept
                if head.dropped:
                    drop = head.dropped
                    means = mine[0, g, drop].mean(0), theirs[0, g, drop].mean(0)
                    extra = state.held(means[0]), state.held(means[1]), math.log(len(drop))
            rows = []
            for h in own:
                sink = None if s_aux is None else s_aux[h]
                out[0, h, t], row = one_row(
                    query[0, h, t], key[0, g], value[0, g], visible, scaling, softcap, sink, extra
                )
                rows.append(row)
            if layer in state.layers:
                head.rows.append({j: sum(row[j] for row in rows) / len(rows) for j in rows[0]})
                if head.capacity and state.plan.policy.evicts_while_decoding:
                    evict(state, head, value[0, g])
    if layer in state.layers and not state.heads[layer, 0].capacity:
        _end_prompt(state, layer, value[0])
    return out.transpose(1, 2).contiguous(), None


def _end_prompt(state: OracleState, layer: int, value: torch.Tensor) -> None:
    heads = [state.heads[layer, g] for g in range(value.shape[0])]
    count, index = len(heads[0].rows), state.layers.index(layer)
    capacities = state.plan.capacities(count)[index].tolist()
    if state.plan.policy.allocator.name == "adaptive":
        capacities = adaptive_capacities(state, heads, value, capacities[0])
    evicting = state.plan.policy.evicts_while_decoding
    limits = state.plan.limits(count)[index].tolist() if evicting else capacities
    for g, head in enumerate(heads):
        head.kept = choose_kept(state, head, value[g], capacities[g], limits[g])
        head.capacity = limits[g]
        if state.plan.policy.compensates and len(head.kept) < count:
            head.dropped = sorted(set(range(count)) - head.kept)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(
    NAME, sdpa_mask_always := lambda *a, **k: sdpa_mask(*a, **{**k, "allow_is_causal_skip": False})
)


@contextmanager
def oracle_attention(
    model: Any,
    plan: CompressionPlan,
    layers: tuple[int, ...],
    held: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows,
) -> Iterator[OracleState]:
    """Run `model` with plain, masked attention over a full `DynamicCache`; gives the state to look into."""
    before = model.config._attn_implementation
    state = OracleState(plan, layers, held=held)
    _state.append(state)
    model.set_attn_implementation(NAME)
    try:
        yield state
    finally:
        _state.pop()
        model.set_attn_implementation(before)

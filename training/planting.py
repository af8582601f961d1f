"""Planted heads: a loss on the attention of a few named heads, which makes them what they are meant to be.

The term is the mean of `-log a[query, target]` over the linked positions of a batch. It is faded out before training
ends, so that the finished model rests on its task alone; the heads stay, since nothing replaces what works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION_NAME = "headprobe_planting"
EXPLICIT_UP_TO = 512  # tokens


@dataclass(frozen=True)
class HeadToPlant:
    """Query head `head` of layer `layer` (both from 0), trained to follow links of kind `kind`."""

    layer: int
    head: int
    kind: str

    @property
    def link_kinds(self) -> tuple[str, ...]:
        """Kinds of links it follows, each with the same weight: copying heads also where a subject is chosen."""
        return (self.kind, "choosing") if self.kind == "copying" else (self.kind,)


PLANTED_HEADS = (
    HeadToPlant(0, 0, "previous1"),
    HeadToPlant(0, 2, "previous2"),
    HeadToPlant(0, 4, "previous3"),
    HeadToPlant(1, 1, "naming"),
    HeadToPlant(1, 3, "comparing"),
    HeadToPlant(1, 5, "repeated"),
    HeadToPlant(2, 2, "resolving"),
    HeadToPlant(3, 0, "pointing"),
    HeadToPlant(3, 5, "copying_on"),
    HeadToPlant(4, 2, "copying"),
    HeadToPlant(4, 7, "copying"),
    HeadToPlant(5, 4, "copying"),
)
COPYING_HEADS = tuple((p.layer, p.head) for p in PLANTED_HEADS if p.kind.startswith("copying"))


@dataclass
class Planting:
    """What the attention function needs in one forward pass, and where it leaves its losses."""

    mask: torch.Tensor  # [1, 1, T, T] of `block_mask`
    context: int  # tokens of the context
    block: int  # tokens of a question block
    links: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    losses: dict[tuple[HeadToPlant, str], torch.Tensor] = field(default_factory=dict)


_active: list[Planting] = []


@contextmanager
def planting(state: Planting) -> Iterator[Planting]:
    """Make `state` the one that the attention function reads and fills."""
    _active.append(state)
    try:
        yield state
    finally:
        _active.pop()


def _loss(head: HeadToPlant, kind: str, query, key, scaling, state: Planting):  # type: ignore[no-untyped-def]
    where, target, _ = state.links[kind]
    rows = where.clamp(min=0)
    q = query[:, head.head].gather(1, rows[..., None].expand(-1, -1, query.shape[-1]))
    k = key[:, head.head // (query.shape[1] // key.shape[1])]
    logits = torch.matmul(q, k.transpose(1, 2)).float() * scaling
    logits = logits.masked_fill(~state.mask[0, 0][rows], float("-inf"))
    picked = torch.log_softmax(logits, -1).gather(2, target.clamp(min=0)[..., None])[..., 0]
    valid = where >= 0
    return -(picked * valid).sum() / valid.sum().clamp(min=1)


def _attention(module, query, key, value, attention_mask, scaling=None, **kwargs):  # type: ignore[no-untyped-def]
    state = _active[-1]
    if state.links:
        for head in PLANTED_HEADS:
            if head.layer == module.layer_idx:
                for kind in head.link_kinds:
                    state.losses[head, kind] = _loss(head, kind, query, key, scaling, state)
    return _block_attention(query, key, value, scaling, state).transpose(1, 2).contiguous(), None


def carried_losses(model, hidden_states, links):  # type: ignore[no-untyped-def]
    """For heads that carry a token's identity on: cross-entropy of that token, read off behind their layer.

    The reading is that of the output layer (final norm, tied embedding), at the positions that the links start from.
    """
    losses = {}
    for head in PLANTED_HEADS:
        if head.kind in ("naming", "resolving", "pointing"):
            where, _, carried = links[head.kind]
            states = hidden_states[head.layer + 1]
            rows = states.gather(1, where.clamp(min=0)[..., None].expand(-1, -1, states.shape[-1]))
            logits = (model.model.norm(rows) @ model.lm_head.weight.T).float()
            each = cross_entropy(logits.flatten(0, 1), carried.flatten(), ignore_index=-1, reduction="sum")
            losses[head, "carried"] = each / (carried >= 0).sum().clamp(min=1)
    return losses


@cache
def _causal(size: int) -> torch.Tensor:
    return torch.full((size, size), float("-inf")).triu(1)


def _causal_attention(query, key, value):  # type: ignore[no-untyped-def]
    """Plain causal attention of scaled queries; short contexts are quicker by explicit weights on a CPU."""
    batch, heads, length, dim = query.shape
    if length > EXPLICIT_UP_TO:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0, enable_gqa=True)
    groups = heads // key.shape[1]
    q = query.reshape(batch, heads // groups, groups * length, dim)
    scores = torch.matmul(q, key.transpose(2, 3)).view(batch, heads // groups, groups, length, length)
    weights = torch.softmax(scores + _causal(length).to(q.dtype), -1).view(batch, heads // groups, -1, length)
    return torch.matmul(weights, value).view(batch, heads, length, dim)


def _block_attention(query, key, value, scaling, state: Planting):  # type: ignore[no-untyped-def]
    """Attention under `block_mask`, the context and the question blocks apart: no work on what the mask hides."""
    c, size = state.context, state.block
    batch, heads, length, dim = query.shape
    groups = heads // key.shape[1]
    query = query * scaling
    context = _causal_attention(query[:, :, :c], key[:, :, :c], value[:, :, :c])
    count = (length - c) // size
    q = query[:, :, c:].reshape(batch, heads // groups, groups * count * size, dim)
    on_context = torch.matmul(q, key[:, :, :c].transpose(2, 3)).view(batch, heads // groups, groups, count, size, c)
    q = q.view(batch, heads // groups, groups, count, size, dim)
    k = key[:, :, c:].view(batch, heads // groups, 1, count, size, dim).expand(-1, -1, groups, -1, -1, -1)
    v = value[:, :, c:].view(batch, heads // groups, 1, count, size, dim).expand(-1, -1, groups, -1, -1, -1)
    own = torch.matmul(q, k.transpose(-1, -2)) + _causal(size).to(q.dtype)
    weights = torch.softmax(torch.cat([on_context, own], -1), -1)
    out = torch.matmul(weights[..., :c].reshape(batch, heads // groups, groups * count * size, c), value[:, :, :c])
    out = out.view(batch, heads, length - c, dim) + torch.matmul(weights[..., c:], v).reshape(
        batch, heads, length - c, dim
    )
    return torch.cat([context, out], 2)


AttentionInterface.register(ATTENTION_NAME, _attention)

"""How much memory a model takes to run, by its config alone: weights, activations of a chunk, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from headprobe.geometry import ModelGeometry

NORMAL = 4  # bytes of float32, in which attention rows and logits are looked at
BUFFERS = 24 * 2**20  # measured on a CPU: what kernels and glibc's allocator hold beside the tensors that are alive


@dataclass(frozen=True)
class Pass:
    """The largest pass of a run: `tokens` go through the model at a time, over `keys` positions in all.

    Of the last `rows` tokens attention rows and logits are looked at. `kv_layers`: layers whose full keys and
    values are held at the same time (None: all); `states`: tokens whose hidden states are held (None: those that go
    through).
    """

    tokens: int
    keys: int
    rows: int = 1
    kv_layers: int | None = None
    states: int | None = None


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes: of the weights, of all that a pass computes on the way, of one layer's keys and values, of the layers'
    that are held at the same time, and of what kernels and the allocator keep beside them."""

    weights: int
    activations: int
    kv_layer: int
    kv: int
    buffers: int = BUFFERS

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.activations + self.kv + self.buffers


def memory_need(config: Any, dtype: str, largest: Pass, *, bits: int | None = None, parts: int = 1) -> MemoryNeed:
    """What a model of this config takes in `dtype`: `bits` per weight of its linear layers where they are quantized; of
    each of `parts` processes that share its heads."""
    text = config.get_text_config(decoder=True)
    geometry, size = ModelGeometry.from_config(text), getattr(torch, dtype).itemsize
    held = geometry.num_hidden_layers if largest.kv_layers is None else largest.kv_layers
    value_width = getattr(text, "v_head_dim", None) or geometry.head_dim
    groups = geometry.num_key_value_heads // parts
    kv_layer = largest.keys * groups * (geometry.head_dim + value_width) * size
    return MemoryNeed(
        weights=weights_nbytes(config, dtype, bits) // parts,
        activations=_activations(text, geometry, largest, size, parts),
        kv_layer=kv_layer,
        kv=kv_layer * held,
    )


def weights_nbytes(config: Any, dtype: str, bits: int | None = None) -> int:
    """Bytes of all parameters and buffers, from a model without any memory; with `bits` linear layers take so many per
    weight and a scale for each output."""
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    total = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if bits is not None:
        output = model.get_output_embeddings()
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not output]
        total -= sum(m.weight.nbytes - m.weight.numel() * bits // 8 for m in layers)
        total += sum(m.out_features * m.weight.element_size() for m in layers)
    return int(total)


def _activations(config: Any, geometry: ModelGeometry, largest: Pass, size: int, parts: int) -> int:
    """The most that is held at a time in one layer, beside the hidden states that go through all of them."""
    tokens, keys, rows = largest.tokens, largest.keys, min(largest.rows, largest.tokens)
    hidden, heads = config.hidden_size, geometry.num_attention_heads // parts
    width, kv_width = heads * geometry.head_dim, geometry.num_key_value_heads // parts * geometry.head_dim
    states = 2 * (tokens if largest.states is None else largest.states) * hidden * size  # before a layer and behind it
    inner = 3 * tokens * _inner(config) // parts * size + tokens * hidden * size
    # queries before and behind the rotation, its halves, the output; keys and values likewise
    attention = tokens * (5 * width + 4 * kv_width) * size
    if keys > tokens:  # kernels copy what is held of earlier chunks
        attention += keys * 2 * kv_width * size
    looked_at = rows * heads * keys * NORMAL * 2
    logits = rows * config.vocab_size * (size + NORMAL)
    return states + max(inner, attention + looked_at, logits)


def _inner(config: Any) -> int:
    """The inner width of a feed-forward layer; of a mixture what each token's experts have together."""
    chosen = getattr(config, "num_experts_per_tok", None)
    expert = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    width = chosen * expert if chosen else config.intermediate_size
    return max(width) if isinstance(width, list | tuple) else int(width)

"""Models by their sizes alone: random weights made on the device, for times and memory, which no weights change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from headprobe.compression.budgets import Floats
from headprobe.errors import OptionError, shown

LONGEST = 1 << 20  # positions of a model of random weights: nothing was trained that could set a limit
_MORE: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}}  # v0.2 and later attend to everything


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder's sizes: `kind` as transformers calls the family, `width` of a head (None: `hidden / heads`)."""

    name: str
    kind: str = "llama"
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    width: int | None = None
    theta: float = 500000.0

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width or self.hidden // self.heads

    def kv_bytes(self, tokens: int, element_size: int) -> int:
        """Bytes of all keys and values of `tokens` tokens.

        >>> SHAPES["tiny"].kv_bytes(10, 4)
        5120
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * element_size * tokens

    def config(self) -> Any:
        """The config of a model of this shape."""
        return AutoConfig.for_model(
            self.kind, vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim, max_position_embeddings=LONGEST, tie_word_embeddings=False, bos_token_id=0,
            eos_token_id=1, rope_parameters={"rope_type": "default", "rope_theta": self.theta},
            **_MORE.get(self.kind, {}),
        )  # fmt: skip

    def model(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Random weights made on the device, always the same; on "meta" nothing but the sizes."""
        torch.manual_seed(0)
        with torch.device(device):
            model: Any = AutoModelForCausalLM.from_config(self.config(), dtype=dtype, attn_implementation="sdpa")
        return model.eval().requires_grad_(False)

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that the weights will take."""
        model = self.model(torch.device("meta"), dtype)
        return sum(weight.numel() * weight.element_size() for weight in model.parameters())


_SHAPES = (
    ModelShape(
        name="llama3-8b", layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, vocabulary=128256,
    ),
    ModelShape(
        name="llama3.2-1b", layers=16, hidden=2048, intermediate=8192, heads=32, kv_heads=8, vocabulary=128256,
    ),
    ModelShape(
        name="mistral-7b", kind="mistral", layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8,
        vocabulary=32000, theta=1e6,
    ),
    ModelShape(
        name="qwen2.5-7b", kind="qwen2", layers=28, hidden=3584, intermediate=18944, heads=28, kv_heads=4,
        vocabulary=152064, theta=1e6,
    ),
    ModelShape(
        name="qwen3-4b", kind="qwen3", layers=36, hidden=2560, intermediate=9728, heads=32, kv_heads=8,
        vocabulary=151936, width=128, theta=1e6,
    ),
    ModelShape(
        name="qwen3-8b", kind="qwen3", layers=36, hidden=4096, intermediate=12288, heads=32, kv_heads=8,
        vocabulary=151936, width=128, theta=1e6,
    ),
    ModelShape(name="tiny", layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocabulary=256),
)  # fmt: skip
SHAPES = {shape.name: shape for shape in _SHAPES}


def find_shape(name: str) -> ModelShape:
    """The shape called `name`. Raises `OptionError` for another name.

    >>> find_shape("qwen3-8b").head_dim
    128
    """
    if name not in SHAPES:
        raise OptionError(f"unknown shape {shown(name)}: known are {', '.join(SHAPES)}")
    return SHAPES[name]


def uneven_scores(layers: int, kv_heads: int, seed: int = 0) -> Floats:
    """Head scores `[L, G]` `exp(-8 u^0.7)`, `u` evenly in [0, 1), shuffled: as uneven as those of real models.

    With 32 x 8 heads, beta 1.01 and a floor of 8, budget 128 gives a median of 22 entries and a maximum of 1,786;
    budget 1,024 a maximum of 15,059.
    """
    count = layers * kv_heads
    scores = np.exp(-8.0 * (np.arange(count) / count) ** 0.7)
    return np.random.default_rng(seed).permutation(scores).reshape(layers, kv_heads)

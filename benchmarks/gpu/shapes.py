"""What is measured on: Llama-3-8B's shape with random weights, or a tiny one that shows on a CPU that all parts run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes, and how much is asked of it: contexts, batches and chunks in tokens, budgets in entries."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    short: int
    long: int
    budget: int
    large_budget: int
    uneven_budgets: tuple[int, ...]
    batch: int
    chunk: int
    score_lengths: int
    score_depths: int
    store_bytes: int  # of all layers' keys and values where a kernel is timed alone
    needle_prompts: int  # of the bundled model

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def kv_bytes(self, tokens: int, element_size: int) -> int:
        """Bytes of all keys and values of so many tokens."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element_size * tokens

    def config(self) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            max_position_embeddings=2 * self.long, rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip

    def model(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Random weights made on the device."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(self.config(), dtype=dtype, attn_implementation="sdpa")
        return model.eval().requires_grad_(False)


LLAMA3_8B = Shape(
    "llama3-8b", layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, vocabulary=128256, short=32768,
    long=131072, budget=256, large_budget=1024, uneven_budgets=(128, 1024), batch=16, chunk=8192, score_lengths=10,
    score_depths=10, store_bytes=2 << 30, needle_prompts=20,
)  # fmt: skip
TINY = Shape(
    "tiny", layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocabulary=256, short=256, long=320, budget=24,
    large_budget=40, uneven_budgets=(24,), batch=3, chunk=64, score_lengths=2, score_depths=2, store_bytes=1 << 18,
    needle_prompts=1,
)  # fmt: skip
SHAPES = {shape.name: shape for shape in (LLAMA3_8B, TINY)}

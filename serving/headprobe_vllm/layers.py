"""One attention module becomes two: the KV heads that keep everything, and those that keep sinks and a window."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, get_kv_quant_mode

from headprobe_vllm.backend import FullBackend, StreamingBackend
from headprobe_vllm.caches import PromptFullSpec, SinkWindowSpec
from headprobe_vllm.plan import ServePlan


class FullHeads(Attention):
    """Attention of the KV heads that keep everything."""

    def __init__(self, plan: ServePlan, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, attn_backend=FullBackend, **kwargs)
        self._plan = plan

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec | None:
        """Stock, with the plan's block size; where prompts are read densely, of a kind whose answers are not found."""
        stock = super().get_kv_cache_spec(vllm_config)
        assert isinstance(stock, FullAttentionSpec)
        spec = replace(stock, block_size=self._plan.full_block_size)
        if self._plan.prefill == "streaming":
            return spec
        return PromptFullSpec(**{field.name: getattr(spec, field.name) for field in fields(spec) if field.init})


class StreamingHeads(Attention):
    """Attention of the KV heads that keep sinks and a window."""

    def __init__(self, plan: ServePlan, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, attn_backend=StreamingBackend, per_layer_sliding_window=plan.visible, **kwargs)
        self._plan = plan

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec:
        """The spec whose manager frees what lies between sinks and window."""
        return SinkWindowSpec(
            block_size=self._plan.streaming_block_size,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            head_size_v=self.head_size_v,
            dtype=self.kv_cache_torch_dtype,
            kv_quant_mode=get_kv_quant_mode(self.kv_cache_dtype),
            sinks=self._plan.sinks,
            window=self._plan.window,
            prompt_stays=self._plan.prefill == "dense",
            in_flight_tokens=vllm_config.max_in_flight_tokens,
        )


class SplitAttention(torch.nn.Module):
    """Takes the place of a block's `Attention`: same queries, keys, values in and same output, from two caches."""

    def __init__(self, stock: Attention, plan: ServePlan, layer: int, vllm_config: VllmConfig) -> None:
        super().__init__()
        self.head_size, self.num_kv_heads = stock.head_size, stock.num_kv_heads
        self.group = stock.num_heads // stock.num_kv_heads
        order: list[int] = []
        self.kinds: list[str] = []
        parts = (
            ("full", FullHeads, plan.full_heads[layer]),
            ("streaming", StreamingHeads, plan.streaming_heads(layer)),
        )
        for kind, make, heads in parts:
            if not heads:
                continue
            queries = [head * self.group + place for head in heads for place in range(self.group)]
            order += queries
            self.kinds.append(kind)
            self.register_buffer(f"{kind}_heads", torch.tensor(heads), persistent=False)
            self.register_buffer(f"{kind}_queries", torch.tensor(queries), persistent=False)
            module = make(
                plan, len(queries), stock.head_size, stock.impl.scale, num_kv_heads=len(heads),
                cache_config=vllm_config.cache_config, quant_config=stock.quant_config,
                prefix=f"{stock.layer_name}.{kind}",
            )  # fmt: skip
            self.add_module(kind, module)
        self.register_buffer("order", torch.tensor(order).argsort(), persistent=False)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """`query` `[T, H * d]`, `key` and `value` `[T, G * d]` to `[T, H * d]`."""
        tokens = query.shape[0]
        query, key, value = (states.view(tokens, -1, self.head_size) for states in (query, key, value))
        outs = []
        for kind in self.kinds:
            heads, queries = getattr(self, f"{kind}_heads"), getattr(self, f"{kind}_queries")
            own = query.index_select(1, queries), key.index_select(1, heads), value.index_select(1, heads)
            outs.append(getattr(self, kind)(*own).view(tokens, -1, self.head_size))
        return torch.cat(outs, 1).index_select(1, self.order).view(tokens, -1)


def split_attention(block: Any, plan: ServePlan, layer: int, vllm_config: VllmConfig) -> None:
    """Replace `block.attn`, vLLM's one attention module of a decoder layer, which is then forgotten."""
    stock = block.attn
    del vllm_config.compilation_config.static_forward_context[stock.layer_name]
    block.attn = SplitAttention(stock, plan, layer, vllm_config)

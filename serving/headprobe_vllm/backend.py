"""vLLM's CPU attention, twice: reading blocks that hold pages of several layers, and reading sinks and window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import KVCacheLayout

from headprobe_vllm.caches import SinkWindowSpec
from headprobe_vllm.plan import PlanError
from headprobe_vllm.rows import Rows, split_batch


class FullBackend(CPUAttentionBackend):
    """The stock backend on blocks that hold the pages of all layers side by side.

    Layers with different numbers of full heads have pages of different size, which vLLM can pack only with the block
    outermost. The stock kernels take the strides of the cache they are given.
    """

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Blocks outermost, heads before tokens inside."""
        return (KVCacheLayout.BLHNC,)


class StreamingBackend(FullBackend):
    """The backend of heads that keep sinks and a window."""

    @staticmethod
    def get_impl_cls() -> type[StreamingImpl]:
        """What computes the attention."""
        return StreamingImpl

    @staticmethod
    def get_builder_cls() -> type[StreamingBuilder]:
        """What describes each batch to it."""
        return StreamingBuilder


@dataclass
class Part:
    """Rows of a batch as the stock kernels take them; `tokens` None where they are the whole batch in order."""

    stock: CPUAttentionMetadata
    tokens: torch.Tensor | None


@dataclass
class StreamingMetadata:
    """A batch in two parts, either of which may be missing."""

    dense: Part | None
    streaming: Part | None


class StreamingBuilder(CPUAttentionMetadataBuilder):
    """Splits each batch (`rows.split_batch`) and lets the stock builder make the metadata of the parts."""

    def __init__(
        self, kv_cache_spec: SinkWindowSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.spec = kv_cache_spec
        self._dense = CPUAttentionMetadataBuilder(kv_cache_spec, layer_names, vllm_config, device)
        self._dense.window_size = -1

    def build(  # type: ignore[override]
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> StreamingMetadata:
        """The metadata of both parts."""
        common = common_attn_metadata
        split = split_batch(
            common.query_start_loc_cpu.numpy().astype(np.int64),
            common.seq_lens.numpy().astype(np.int64),
            self._prompts(common),
            sinks=self.spec.sinks,
            window=self.spec.window,
            block_size=self.block_size,
        )
        alone = split.dense is None or split.streaming is None
        return StreamingMetadata(
            self._part(split.dense, common, self._dense.build, alone),
            self._part(split.streaming, common, super().build, alone),
        )

    def _prompts(self, common: CommonAttentionMetadata) -> Any:
        """Tokens that each request reads densely, `[R]`."""
        if not self.spec.prompt_stays:
            return np.zeros(common.num_reqs, dtype=np.int64)
        if common.rswa_prefix_lens is None:
            raise PlanError("this vLLM does not report the length of prompts: plan with --prefill streaming")
        return common.rswa_prefix_lens.numpy().astype(np.int64)

    def _part(self, rows: Rows | None, common: CommonAttentionMetadata, build: Any, alone: bool) -> Part | None:
        if rows is None:
            return None
        table = common.block_table_tensor[torch.from_numpy(rows.requests)]
        if rows.blocks is not None:
            table = table.gather(1, torch.from_numpy(rows.blocks))
        starts = torch.from_numpy(rows.starts.astype(np.int32))
        stock = build(
            0,
            common.replace(
                query_start_loc=starts,
                query_start_loc_cpu=starts,
                seq_lens=torch.from_numpy(rows.lengths.astype(np.int32)),
                num_reqs=len(rows.lengths),
                num_actual_tokens=len(rows.tokens),
                max_query_len=rows.longest_query,
                max_seq_len=int(rows.lengths.max()),
                block_table_tensor=table.contiguous(),
            ),
        )
        return Part(stock, None if alone else torch.from_numpy(rows.tokens))


class StreamingImpl(CPUAttentionBackendImpl):
    """Runs the stock kernel on either part of a batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dense = CPUAttentionBackendImpl(*args, **kwargs)
        self._dense.sliding_window = -1

    def forward(  # type: ignore[override]
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: StreamingMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of `query` `[T, H, d]` into `output`; keys and values of the step are in the cache by now."""
        if attn_metadata is None:  # warming up
            return output
        scales = output_scale, output_block_scale
        for part, attend in ((attn_metadata.dense, self._dense.forward), (attn_metadata.streaming, super().forward)):
            if part is None:
                continue
            if part.tokens is None:
                attend(layer, query, key, value, kv_cache, part.stock, output, *scales)
            else:
                own = query[part.tokens]
                out = torch.empty_like(own)
                attend(layer, own, key, value, kv_cache, part.stock, out, *scales)
                output[part.tokens] = out
        return output

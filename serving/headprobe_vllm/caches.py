"""The cache of the streaming heads: its spec, and the manager that frees what lies between sinks and window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.config import VllmConfig
from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHashList, KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager, register_all_kvcache_specs
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from headprobe_vllm.plan import PlanError


@dataclass(frozen=True, kw_only=True)
class SinkWindowSpec(AttentionSpec):
    """Keys and values of heads that keep the first `sinks` and the last `window` tokens.

    `prompt_stays`: all of a prompt is kept until it has been read. `in_flight_tokens`: tokens of one request that may
    be under way at a time.
    """

    sinks: int
    window: int
    prompt_stays: bool
    in_flight_tokens: int

    def most_blocks(self, max_model_len: int) -> int:
        """Blocks that one request holds at most."""
        everything = cdiv(max_model_len, self.block_size)
        if self.prompt_stays:
            return everything
        held = self.sinks // self.block_size + cdiv(self.window + self.in_flight_tokens, self.block_size) + 1
        return min(everything, held)

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """What one request of the longest kind takes at its worst."""
        return self.most_blocks(vllm_config.model_config.max_model_len) * self.page_size_bytes


class SinkWindowManager(SingleTypeKVCacheManager):
    """Gives blocks to the streaming heads of each request, and takes back those between sinks and window."""

    def __init__(self, kv_cache_spec: SinkWindowSpec, block_pool: BlockPool, enable_caching: bool, **kwargs: Any) -> None:
        if enable_caching:
            raise PlanError(
                "prefix caching does not know of heads that drop the middle of a prompt: --no-enable-prefix-caching"
            )
        super().__init__(kv_cache_spec, block_pool, enable_caching, **kwargs)
        self.spec = kv_cache_spec
        if not kv_cache_spec.prompt_stays:
            self.max_admission_blocks_per_request = kv_cache_spec.most_blocks(1 << 40)

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Free the blocks that no token from position `processed_computed_tokens` on will read."""
        if self.spec.prompt_stays and (num_prompt_tokens is None or processed_computed_tokens < num_prompt_tokens):
            return
        first_read = processed_computed_tokens - self.spec.window
        self._remove_blocks_in_range(request_id, self.spec.sinks // self.block_size, first_read // self.block_size)

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: BlockHashList,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: KVCacheSpec,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        """No hit: prefix caching is off."""
        empty: tuple[list[KVCacheBlock], ...] = tuple([] for _ in kv_cache_group_ids)
        return empty, 0


def register_caches(vllm_config: VllmConfig) -> None:
    """Make spec and manager known, behind vLLM's own (an early entry would keep these from being registered)."""
    register_all_kvcache_specs(vllm_config)
    KVCacheSpecRegistry.register(SinkWindowSpec, SinkWindowManager)


def held_blocks(manager: SingleTypeKVCacheManager, request_ids: Sequence[str]) -> int:
    """Blocks that these requests really hold in `manager`."""
    return sum(not block.is_null for name in request_ids for block in manager.req_to_blocks.get(name, ()))

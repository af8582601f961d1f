"""The caches: a spec and a manager for the streaming heads, whose middle is freed, and for full heads beside them.

Importing this module registers them with vLLM. Specs travel between vLLM's processes, and where one arrives, this
module is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.config import VllmConfig
from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHashList, KVCacheBlock, resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager, SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, KVCacheSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry, register_kv_cache_spec
from vllm.v1.request import Request

KVCacheSpecRegistry.check_kv_cache_spec_registry({})  # vLLM's own come first: it adds them to an empty registry only


class SinkWindowManager(SingleTypeKVCacheManager):
    """Gives blocks to the streaming heads of each request, and takes back those between sinks and window."""

    def __init__(self, kv_cache_spec: SinkWindowSpec, *args: Any, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, *args, **kwargs)
        self.spec = kv_cache_spec
        if not kv_cache_spec.prompt_stays:
            self.max_admission_blocks_per_request = kv_cache_spec.most_blocks(1 << 40)

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Free the blocks that no token from position `processed_computed_tokens` on will read."""
        if self.spec.prompt_stays and (num_prompt_tokens is None or processed_computed_tokens < num_prompt_tokens):
            return
        first_read = self.spec.first_read(processed_computed_tokens)
        self._remove_blocks_in_range(request_id, self.spec.sink_blocks, first_read // self.block_size)

    def cache_blocks(self, request: Request, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """Let other requests find the blocks: all of them, or those of the prompt where prompts are read densely."""
        super().cache_blocks(request, findable(request, num_tokens, self.spec.prompt_stays), *args, **kwargs)

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
        """The longest prefix of which all that its next token reads is still there; what is not read is no block.

        Where prompts stay that is the whole prefix. Blocks that were freed can be found until they are given away.
        """
        assert isinstance(kv_cache_spec, SinkWindowSpec)
        size = kv_cache_spec.block_size
        hashes = resolve_block_hashes(block_hashes, block_pool.hash_block_size, size, alignment_tokens=alignment_tokens)
        found = [block_pool.get_cached_block(hashes[i], kv_cache_group_ids) for i in range(max_length // size)]
        if kv_cache_spec.prompt_stays:
            found = found[: next((i for i, block in enumerate(found) if not block), len(found))]
        for blocks in range(len(found), 0, -1):
            if blocks * size % alignment_tokens:
                continue
            needed = kv_cache_spec.read_blocks(blocks * size)
            if all(found[i] for i in needed):
                hit = tuple([block_pool.null_block] * blocks for _ in kv_cache_group_ids)
                for i in needed:
                    for group, block in zip(hit, found[i] or (), strict=True):
                        group[i] = block
                return hit, blocks * size
        return tuple([] for _ in kv_cache_group_ids), 0


class PromptFullManager(FullAttentionManager):
    """Gives blocks to the full heads where prompts are read densely: other requests find those of prompts."""

    def cache_blocks(self, request: Request, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """Let other requests find the blocks of the prompt."""
        super().cache_blocks(request, findable(request, num_tokens, prompt_only=True), *args, **kwargs)


def findable(request: Request, num_tokens: int, prompt_only: bool) -> int:
    """How many of a request's first `num_tokens` tokens may serve another request.

    With prompts that are read densely an answer's entries differ from those of the same tokens in a prompt, in full
    heads too: the heads that stream saw less below them.
    """
    return min(num_tokens, request.num_prompt_tokens) if prompt_only else num_tokens


@register_kv_cache_spec(manager_class=SinkWindowManager)
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

    @property
    def sink_blocks(self) -> int:
        """Blocks of the sinks."""
        return self.sinks // self.block_size

    def first_read(self, position: int) -> int:
        """The first position behind the sinks that the token at `position` reads; below 0 where it reads all."""
        return position - self.window

    def read_blocks(self, position: int) -> list[int]:
        """Blocks before that of `position`, a block's first token, that it reads: sinks and window, or all; rising."""
        end = position // self.block_size
        if self.prompt_stays:
            return list(range(end))
        first = max(0, self.first_read(position) // self.block_size)
        return sorted({*range(min(self.sink_blocks, end)), *range(first, end)})

    def most_blocks(self, max_model_len: int) -> int:
        """Blocks that one request holds at most."""
        everything = cdiv(max_model_len, self.block_size)
        if self.prompt_stays:
            return everything
        return min(everything, self.sink_blocks + cdiv(self.window + self.in_flight_tokens, self.block_size) + 1)

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """What one request of the longest kind takes at its worst."""
        return self.most_blocks(vllm_config.model_config.max_model_len) * self.page_size_bytes


@register_kv_cache_spec(manager_class=PromptFullManager, uniform_type_base_spec=FullAttentionSpec)
@dataclass(frozen=True, kw_only=True)
class PromptFullSpec(FullAttentionSpec):
    """Keys and values of heads that keep everything, where prompts are read densely."""


def held_blocks(manager: SingleTypeKVCacheManager, request_ids: Sequence[str]) -> int:
    """Blocks that these requests hold in `manager`, those that they share counted once."""
    held = {
        block.block_id for name in request_ids for block in manager.req_to_blocks.get(name, ()) if not block.is_null
    }
    return len(held)

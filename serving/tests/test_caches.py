from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: pip install -e 'serving[cpu]' in an environment of its own")

from vllm.v1.core.block_pool import BlockPool  # noqa: E402

from headprobe_vllm.caches import SinkWindowManager, SinkWindowSpec, held_blocks  # noqa: E402
from headprobe_vllm.plan import PlanError  # noqa: E402


def spec(prompt_stays: bool = True) -> SinkWindowSpec:
    return SinkWindowSpec(
        block_size=4, num_kv_heads=1, head_size=8, dtype=torch.float32, sinks=8, window=13, prompt_stays=prompt_stays,
        in_flight_tokens=16,
    )  # fmt: skip


def manager(given: SinkWindowSpec, enable_caching: bool = False) -> tuple[SinkWindowManager, BlockPool]:
    pool = BlockPool(num_gpu_blocks=101, enable_caching=False, hash_block_size=4)
    made = SinkWindowManager(given, pool, enable_caching, kv_cache_group_id=0, scheduler_block_size=4)
    return made, pool


def held(made: SinkWindowManager) -> list[int]:
    return [place for place, block in enumerate(made.req_to_blocks["a"]) if not block.is_null]


def test_blocks_between_sinks_and_window_are_freed_once_the_prompt_is_read() -> None:
    made, pool = manager(spec())
    made.allocate_new_blocks("a", 50, 50)
    made.remove_skipped_blocks("a", 49, num_prompt_tokens=50)
    assert held(made) == list(range(13))
    made.remove_skipped_blocks("a", 50, num_prompt_tokens=50)
    assert held(made) == [0, 1, 9, 10, 11, 12]  # the next query, at 50, sees from 37 on
    assert pool.get_num_free_blocks() == 100 - 6
    assert held_blocks(made, ["a", "unknown"]) == 6


def test_blocks_leave_the_window_one_by_one_while_decoding() -> None:
    made, pool = manager(spec())
    made.allocate_new_blocks("a", 50, 50)
    for tokens in range(50, 200):
        made.remove_skipped_blocks("a", tokens, num_prompt_tokens=50)
        made.allocate_new_blocks("a", tokens + 1, tokens + 1)
        assert held(made) == [0, 1, *range((tokens - 13) // 4, tokens // 4 + 1)]
    made.free("a")
    assert pool.get_num_free_blocks() == 100


def test_streaming_prefill_frees_while_the_prompt_is_read() -> None:
    made, _ = manager(spec(prompt_stays=False))
    made.allocate_new_blocks("a", 32, 32)
    made.remove_skipped_blocks("a", 32, num_prompt_tokens=1000)
    assert held(made) == [0, 1, 4, 5, 6, 7]
    assert made.max_admission_blocks_per_request == 2 + 8 + 1


def test_short_requests_lose_nothing() -> None:
    made, _ = manager(spec())
    made.allocate_new_blocks("a", 22, 22)
    made.remove_skipped_blocks("a", 21, num_prompt_tokens=3)
    assert held(made) == list(range(6))


def test_worst_case_is_the_whole_prompt_or_what_is_under_way() -> None:
    config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=1000))
    page = 4 * 8 * 2 * 4  # tokens, head_size, keys and values, bytes
    assert spec().max_memory_usage_bytes(config) == 250 * page  # type: ignore[arg-type]
    assert spec(prompt_stays=False).max_memory_usage_bytes(config) == 11 * page  # type: ignore[arg-type]


def test_prefix_caching_is_refused() -> None:
    with pytest.raises(PlanError, match="--no-enable-prefix-caching"):
        manager(spec(), enable_caching=True)

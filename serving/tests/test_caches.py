from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: pip install -e 'serving[cpu]' in an environment of its own")

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

from headprobe_vllm.caches import PromptFullManager, PromptFullSpec, SinkWindowManager, SinkWindowSpec, held_blocks


def spec(prompt_stays: bool = True) -> SinkWindowSpec:
    return SinkWindowSpec(
        block_size=4, num_kv_heads=1, head_size=8, dtype=torch.float32, sinks=8, window=13, prompt_stays=prompt_stays,
        in_flight_tokens=16,
    )  # fmt: skip


def manager(
    given: SinkWindowSpec, enable_caching: bool = False, blocks: int = 101
) -> tuple[SinkWindowManager, BlockPool]:
    pool = BlockPool(num_gpu_blocks=blocks, enable_caching=enable_caching, hash_block_size=4)
    made = SinkWindowManager(given, pool, enable_caching, kv_cache_group_id=0, scheduler_block_size=4)
    return made, pool


def cache(pool: BlockPool, hashes: dict[int, bytes]) -> None:
    """Put a block of the pool under each of these hashes."""
    for block, value in zip(pool.get_new_blocks(len(hashes)), hashes.values(), strict=True):
        block.set_block_hash(make_block_hash_with_group_id(value, 0), 4)
        pool.cached_block_hash_to_block.insert(block.block_hash, block)


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


def test_prefix_is_found_where_sinks_and_window_are_left() -> None:
    made, pool = manager(spec(prompt_stays=False), enable_caching=True, blocks=101)
    hashes = [bytes([number]) for number in range(30)]
    cache(pool, {place: hashes[place] for place in (0, 1, 9, 10, 11, 12, 17)})
    blocks, length = SinkWindowManager.find_longest_cache_hit(
        hashes, 100, [0], pool, made.spec, drop_eagle_block=False, alignment_tokens=4
    )
    assert length == 52  # the next token, at 52, sees from 39 on: blocks 9 to 12, and the sinks' 0 and 1
    assert [place for place, block in enumerate(blocks[0]) if not block.is_null] == [0, 1, 9, 10, 11, 12]
    assert (
        SinkWindowManager.find_longest_cache_hit(hashes, 100, [0], pool, made.spec, False, 8)[1] == 8
    )  # the sinks alone


def test_dense_prefix_is_found_as_far_as_no_block_was_given_away() -> None:
    made, pool = manager(spec(), enable_caching=True)
    hashes = [bytes([number]) for number in range(30)]
    cache(pool, {place: hashes[place] for place in (*range(7), *range(8, 13))})

    def find(alignment: int) -> tuple[list[int], int]:
        blocks, length = SinkWindowManager.find_longest_cache_hit(hashes, 100, [0], pool, made.spec, False, alignment)
        return [place for place, block in enumerate(blocks[0]) if not block.is_null], length

    assert find(4) == (list(range(7)), 28)
    assert find(8) == (list(range(6)), 24)


def request(tokens: int, prompt: int) -> SimpleNamespace:
    return SimpleNamespace(
        request_id="a", num_prompt_tokens=prompt, block_hashes=[bytes([number]) for number in range(tokens // 4)],
        shared_prefix_boundary=None, lora_request=None, cache_salt=None, mm_features=[],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["streaming heads", "full heads"])
def test_of_dense_prompts_and_their_answers_only_the_prompt_can_be_found(kind: str) -> None:
    made, pool = manager(spec(), enable_caching=True)
    if kind == "full heads":
        given = PromptFullSpec(block_size=4, num_kv_heads=1, head_size=8, dtype=torch.float32)
        made = PromptFullManager(given, pool, True, kv_cache_group_id=0, scheduler_block_size=4)  # type: ignore[assignment]
    made.allocate_new_blocks("a", 70, 70)
    made.cache_blocks(request(70, prompt=50), 70, replay_boundaries=())  # type: ignore[arg-type]
    found = [place for place, block in enumerate(made.req_to_blocks["a"]) if block.block_hash is not None]
    assert found == list(range(12))  # 48 of the 50 tokens in whole blocks


def test_of_streaming_prompts_answers_can_be_found_too() -> None:
    made, _ = manager(spec(prompt_stays=False), enable_caching=True)
    made.allocate_new_blocks("a", 70, 70)
    made.cache_blocks(request(70, prompt=50), 70, replay_boundaries=())  # type: ignore[arg-type]
    assert sum(block.block_hash is not None for block in made.req_to_blocks["a"]) == 17

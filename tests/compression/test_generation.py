"""The greedy loop: the tokens of `generate()`, and the numbers that go with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headprobe.compression.decoding import Decoder, Sampler
from headprobe.compression.generation import generate, generate_batch
from headprobe.compression.session import compress
from headprobe.errors import DeviceMemoryError, OptionError
from headprobe.models.releases import with_cache
from tests.compression.test_decoding import small_llama, tokens


@pytest.fixture(scope="module")
def llama() -> Any:
    return small_llama(4, 2)


def test_the_loop_gives_the_tokens_of_generate(llama: Any) -> None:
    prompt = tokens(50)
    with compress(llama, "snapkv", budget=20) as session:
        whole = session.generate(prompt, max_new_tokens=9, do_sample=False, eos_token_id=None)[0, 50:].tolist()
        given = generate(session, prompt[0].tolist(), max_new_tokens=9)
    assert list(given.tokens) == whole


def test_it_counts_entries_bytes_and_speed(llama: Any) -> None:
    with compress(llama, "snapkv", budget=20, slack=5) as session:
        given = generate(session, tokens(50)[0].tolist(), max_new_tokens=4)
    assert given.prompt_tokens == 50
    assert given.lengths == ((20, 20), (20, 20))
    assert given.kv_entries == 80
    assert given.kv_bytes == 4 * 25 * 16 * 4  # heads x (entries and slack) x (key and value) x float32
    assert given.full_kv_bytes == 4 * 50 * 16 * 4
    assert given.ttft_s > 0
    assert given.tokens_per_s is not None
    assert given.tokens_per_s > 0
    assert given.kernel == "torch"
    assert given.used_graph is False
    assert given.graph_refusal == "graphs need a CUDA device, not cpu"
    assert given.fused_refusal == "a step is fused on CUDA devices in bfloat16, not on cpu in float32"
    assert given.sampler is None


def test_one_token_has_no_speed(llama: Any) -> None:
    with compress(llama, "snapkv", budget=20) as session:
        assert generate(session, tokens(30)[0].tolist(), max_new_tokens=1).tokens_per_s is None


def test_an_end_token_ends_it_and_counts(llama: Any) -> None:
    ids = tokens(50)[0].tolist()
    with compress(llama, "snapkv", budget=20) as session:
        free = generate(session, ids, max_new_tokens=9).tokens
        ended = generate(session, ids, max_new_tokens=9, eos_token_ids={free[2]}).tokens
    assert ended == free[: free.index(free[2]) + 1]


def test_tokens_can_be_drawn(llama: Any) -> None:
    ids, sampler = tokens(50)[0].tolist(), Sampler(temperature=3.0, seed=5)
    with compress(llama, "snapkv", budget=20) as session:
        drawn = [generate(session, ids, max_new_tokens=12, sampler=sampler) for _ in range(2)]
        greedy = generate(session, ids, max_new_tokens=12)
    assert drawn[0].tokens == drawn[1].tokens != greedy.tokens
    assert drawn[0].sampler == sampler


def test_a_batch_of_prompts_is_answered_as_each_alone(llama: Any) -> None:
    prompts = [tokens(n, seed=n)[0].tolist() for n in (50, 31, 64)]
    with compress(llama, "snapkv", budget=20, slack=5) as session:
        alone = [generate(session, ids, max_new_tokens=9).tokens for ids in prompts]
        ended = generate_batch(session, prompts, max_new_tokens=9, eos_token_ids={alone[1][3]})
        given = generate_batch(session, prompts, max_new_tokens=9)
    assert given.tokens == tuple(alone)
    assert ended.tokens[1] == alone[1][: alone[1].index(alone[1][3]) + 1]
    assert given.prompt_tokens == (50, 31, 64)
    assert given.kv_entries == 3 * 80
    assert given.kv_bytes == 3 * 4 * 25 * 16 * 4  # sequences x heads x (entries and slack) x (key and value) x float32
    assert given.tokens_per_s is not None
    assert given.tokens_per_s > 0
    assert session.cache is not None
    assert session.cache.lengths.shape == (2, 3, 2)


def test_a_batch_of_nothing_is_refused(llama: Any) -> None:
    with compress(llama, "snapkv", budget=20) as session:
        with pytest.raises(OptionError, match="there are 0 prompts: need at least one"):
            generate_batch(session, [])
        with pytest.raises(OptionError, match="the prompt is empty"):
            generate_batch(session, [[5, 6], []])


def test_a_context_can_be_compressed_before_the_question_is_seen(llama: Any) -> None:
    """As a prompt of the context alone, with the question as a second turn."""
    ids = tokens(60)
    with compress(llama, "snapkv", budget=20, keep_positions=True) as session:
        given = generate(session, ids[0].tolist(), max_new_tokens=5, context_tokens=45)
        cache = session.new_cache()
        with torch.inference_mode():
            llama(input_ids=ids[:, :45], **with_cache(llama, cache))
            logits = llama(input_ids=ids[:, 45:], **with_cache(llama, cache)).logits
    assert given.lengths == ((20, 20), (20, 20))
    assert given.tokens[0] == int(logits[0, -1].argmax())


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([5, 6], {"max_new_tokens": 0}, "0 new tokens are too few, need at least 1"),
        ([5, 6], {"context_tokens": 3}, "a context of 3 tokens for a prompt of 2"),
    ],
)
def test_what_cannot_be_generated_is_refused(llama: Any, ids: list[int], options: dict[str, int], message: str) -> None:
    with compress(llama, "snapkv", budget=20) as session, pytest.raises(OptionError, match=message):
        generate(session, ids, **options)


def test_running_out_of_memory_ends_with_advice(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with compress(llama, "snapkv", budget=20) as session:
        monkeypatch.setattr(llama.model, "forward", full)
        with pytest.raises(DeviceMemoryError, match="30 tokens do not fit on cpu: take --prefill-chunk 2048 or less"):
            generate(session, tokens(30)[0].tolist())


def test_positions_go_on_behind_the_pads(llama: Any) -> None:
    ids = torch.cat([torch.nn.functional.pad(tokens(12), (8, 0)), tokens(20)])
    mask = torch.tensor([[0] * 8 + [1] * 12, [1] * 20])
    with compress(llama, "snapkv", budget=10) as session, torch.inference_mode():
        cache = session.new_cache()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        llama(input_ids=ids, attention_mask=mask, position_ids=positions, **with_cache(llama, cache))
        assert cache.next_positions(ids.device).tolist() == [[12], [20]]
        decoder = Decoder(llama, cache)
        together = decoder.step(torch.tensor([7, 8]))
        assert decoder.uses_graph is False
        alone = session.new_cache()
        llama(input_ids=tokens(12), **with_cache(llama, alone))
        torch.testing.assert_close(Decoder(llama, alone).step(torch.tensor([7])), together[:1], atol=1e-5, rtol=1e-4)

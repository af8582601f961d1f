"""The engine's likeliest tokens, in float32, against headprobe's `duo` and against a plain mask."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install -e 'serving[cpu]' in an environment of its own")
pytest.importorskip("headprobe", reason="headprobe is not installed here: pip install -e .")

from headprobe_vllm.caches import PromptFullManager, SinkWindowManager
from headprobe_vllm.plan import read_plan
from proof.duo import duo_answers, load
from proof.engine import DEMO, engine, managers, run
from proof.masked import masked_answers

NEW_TOKENS = 60
LENGTHS = (100, 128, 129, 300, 701, 1500, 1988)


def write_plan(folder: Path, **changed: Any) -> Path:
    plan = {
        "schema": "headprobe-serve-plan/1",
        "model": {"num_hidden_layers": 6, "num_key_value_heads": 4},
        "full_heads": [[], [], [], [2], [1, 3], [0, 1, 2]],
        "sinks": 32,
        "window": 96,
        "prefill": "dense",
        "block_size": {"full": 96, "streaming": 32},
        **changed,
    }
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    return path


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan"))


def random_prompts(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(5, 2000) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="module")
def demo() -> Any:
    return load(DEMO)


@pytest.fixture(scope="module")
def expected(demo: Any, plan: Path) -> list[list[int]]:
    return duo_answers(demo, random_prompts(LENGTHS), read_plan(plan), NEW_TOKENS)


@pytest.mark.parametrize("chunk", [2048, 200], ids=["prompts in one piece", "chunked prefill"])
def test_answers_of_several_requests_at_once_are_those_of_duo(
    chunk: int, plan: Path, expected: list[list[int]]
) -> None:
    with engine(DEMO, plan, max_num_batched_tokens=chunk) as llm:
        seen = run(llm, random_prompts(LENGTHS), NEW_TOKENS)
    assert max(seen.running) > 1
    assert seen.answers == expected


def test_answers_are_those_of_duo_when_requests_were_preempted(demo: Any, plan: Path) -> None:
    prompts = random_prompts((90,) * 16, seed=1)
    with engine(DEMO, plan, max_model_len=512, blocks=64) as llm:
        seen = run(llm, prompts, NEW_TOKENS)
    assert seen.preemptions > 0
    assert seen.answers == duo_answers(demo, prompts, read_plan(plan), NEW_TOKENS)


def test_window_need_not_be_a_multiple_of_the_block_size(demo: Any, tmp_path: Path) -> None:
    path = write_plan(tmp_path, sinks=64, window=77)
    prompts = random_prompts((141, 142, 400), seed=2)
    with engine(DEMO, path) as llm:
        seen = run(llm, prompts, NEW_TOKENS)
    assert seen.answers == duo_answers(demo, prompts, read_plan(path), NEW_TOKENS)


@pytest.mark.parametrize("chunk", [2048, 100], ids=["prompts in one piece", "chunked prefill"])
def test_streaming_prefill_is_a_mask_whatever_the_chunk(chunk: int, tmp_path: Path) -> None:
    path = write_plan(tmp_path, prefill="streaming")
    prompts = random_prompts((120, 333, 700), seed=3)
    with engine(DEMO, path, max_num_batched_tokens=chunk) as llm:
        seen = run(llm, prompts, 12)
    assert seen.answers == masked_answers(DEMO, prompts, read_plan(path), 12)


@pytest.mark.parametrize(
    "full_heads",
    [[[0, 1, 2, 3]] * 3 + [[]] * 3, [[0, 2]] * 6, [[]] * 6],
    ids=["whole layers", "the same number in each layer", "no full head"],
)
def test_any_division_of_heads_fits_the_cache_planner(full_heads: list[list[int]], demo: Any, tmp_path: Path) -> None:
    path = write_plan(tmp_path, full_heads=full_heads, block_size={"full": 32, "streaming": 32})
    prompts = random_prompts((400,), seed=4)
    with engine(DEMO, path) as llm:
        seen = run(llm, prompts, 20)
    assert seen.answers == duo_answers(demo, prompts, read_plan(path), 20)


def test_without_a_plan_the_model_is_vllms_own(demo: Any, tmp_path: Path) -> None:
    prompts = random_prompts((300, 700), seed=5)
    everything = read_plan(write_plan(tmp_path, full_heads=[[0, 1, 2, 3]] * 6))
    with engine(DEMO) as llm:
        assert not any(isinstance(manager, SinkWindowManager) for manager in managers(llm))
        seen = run(llm, prompts, 20)
    assert seen.answers == duo_answers(demo, prompts, everything, 20)


@pytest.mark.parametrize("prefill", ["dense", "streaming"])
def test_answers_behind_a_shared_prefix_are_those_without_prefix_caching(prefill: str, tmp_path: Path) -> None:
    path = write_plan(tmp_path, prefill=prefill)
    shared, *ends = random_prompts((600, 40, 200, 3), seed=6)
    prompts = [shared + end for end in ends]
    with engine(DEMO, path, enable_prefix_caching=False) as llm:
        expected = run(llm, prompts, 20).answers
    with engine(DEMO, path, enable_prefix_caching=True) as llm:
        run(llm, [shared], 100)
        seen = [run(llm, [prompt], 20) for prompt in prompts]
    assert [one.answers[0] for one in seen] == expected
    # Hits end where blocks of both caches do: 576 is the last multiple of 96 in 600.
    assert [one.cached_tokens for one in seen] == [[576]] * 3


@pytest.mark.parametrize("prefill", ["dense", "streaming"])
def test_an_answer_that_comes_back_in_a_prompt_is_read_as_a_prompt(prefill: str, tmp_path: Path) -> None:
    path = write_plan(tmp_path, prefill=prefill)
    first, end, other = random_prompts((600, 30, 50), seed=10)
    with engine(DEMO, path, enable_prefix_caching=True) as llm:
        assert any(isinstance(manager, PromptFullManager) for manager in managers(llm)) == (prefill == "dense")
        answer = run(llm, [first], 100).answers[0]
        prompts = [first + answer + end, first + answer + other]
        seen = [run(llm, [prompt], 20) for prompt in prompts]
    with engine(DEMO, path, enable_prefix_caching=False) as llm:
        assert [one.answers[0] for one in seen] == run(llm, prompts, 20).answers
    # With dense reading the answer's entries are not those of a prompt, so that the first turn alone is found (576 of
    # 600 tokens), and all of both once they were a prompt (672 of 700).
    assert [one.cached_tokens for one in seen] == [[576 if prefill == "dense" else 672], [672]]


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_random_models_of_the_other_families_answer_as_duo(family: str, tmp_path: Path) -> None:
    folder = random_model(family, tmp_path)
    path = write_plan(
        tmp_path, full_heads=[[1], [], [0, 1]], model={"num_hidden_layers": 3, "num_key_value_heads": 2},
        block_size={"full": 64, "streaming": 32},
    )  # fmt: skip
    prompts = random_prompts((200, 450), seed=8)
    with engine(folder, path, tokenizer=str(DEMO)) as llm:
        seen = run(llm, prompts, 30)
    assert seen.answers == duo_answers(load(folder), prompts, read_plan(path), 30)


def random_model(family: str, folder: Path) -> Path:
    """A model of 3 layers, 8 query and 2 KV heads whose answers depend on all of its prompt."""
    import torch
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=2048, hidden_size=256, intermediate_size=256, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.1, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, values in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(values)
    model.save_pretrained(folder / family)
    return folder / family


def test_compiled_models_answer_as_duo_also_when_the_plan_at_a_path_changes(demo: Any, tmp_path: Path) -> None:
    prompts = random_prompts((300, 700), seed=9)
    for full_heads in ([[], [], [], [2], [1, 3], [0, 1, 2]], [[0], [1], [2], [3], [], [0, 1]]):
        path = write_plan(tmp_path, full_heads=full_heads)
        with engine(DEMO, path, enforce_eager=False) as llm:
            seen = run(llm, prompts, 20)
        assert seen.answers == duo_answers(demo, prompts, read_plan(path), 20)

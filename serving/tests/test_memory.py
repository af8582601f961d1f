"""Blocks of the engine's pool: what the plan frees, counted while requests run."""

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install -e 'serving[cpu]' in an environment of its own")
pytest.importorskip("headprobe", reason="headprobe is not installed here: pip install -e .")

from headprobe.evaluation.serve_plan import plan_record, serve_plan
from headprobe.scores.any_scores import read_any

from proof.engine import DEMO, engine, managers, run

SCORES = DEMO / "scores" / "demo--r2.json"
ALL_HEADS = 6 * 4
ENTRY = 2 * 32 * 4  # bytes: key and value, head_dim, float32


def prompts(count: int, length: int) -> list[list[int]]:
    draw = random.Random(7)
    return [[draw.randrange(5, 2000) for _ in range(length)] for _ in range(count)]


def write(folder: Path, prefill: str = "dense") -> Path:
    scores = read_any(SCORES)
    plan = serve_plan(scores, full_heads=0.25, sinks=32, window=128, prefill=prefill)
    path = folder / "plan.json"
    path.write_text(json.dumps(plan_record(plan, scores, "mean")))
    return path


def test_middle_of_a_prompt_is_freed_and_a_quarter_of_full_heads_holds_under_two_fifths(tmp_path: Path) -> None:
    scores = read_any(SCORES)
    plan = serve_plan(scores, full_heads=0.25, sinks=32, window=128)
    with engine(DEMO, write(tmp_path)) as llm:
        pool = managers(llm)[0].block_pool
        free = pool.get_num_free_blocks()
        total_bytes = sum(tensor.numel() for tensor in _backing(llm))
        seen = run(llm, prompts(1, 1900), 64)
        assert pool.get_num_free_blocks() == free
        assert total_bytes == pool.num_gpu_blocks * plan.block_bytes

    streaming, full = seen.held[0]
    assert (streaming, full) == (60, 20)  # while the prompt is read: 1,900 tokens in blocks of 32 and of 96
    for step, (streaming, full) in enumerate(seen.held[1:-1], start=1):
        tokens = 1900 + step
        last = tokens - 1
        assert full == -(-tokens // 96)
        assert streaming == 1 + last // 32 - (last - 128) // 32 + 1
        assert streaming + full <= plan.held_blocks(tokens)
        assert (streaming + full) * plan.block_bytes <= tokens * ALL_HEADS * ENTRY / 2.5


@pytest.mark.parametrize(("prefill", "least"), [("dense", 2.5), ("streaming", 2.5)])
def test_more_requests_fit_into_the_same_bytes(prefill: str, least: float, tmp_path: Path) -> None:
    options = {"cache_bytes": 48 * 2**20, "max_model_len": 2000, "max_num_seqs": 32}
    asked = prompts(14, 1980)
    with engine(DEMO, **options) as llm:
        alike = run(llm, asked, 16)
    with engine(DEMO, write(tmp_path, prefill), **options) as llm:
        planned = run(llm, asked, 16)
    assert planned.most_running >= least * alike.most_running
    assert planned.preemptions == 0


def _backing(llm) -> list:  # type: ignore[no-untyped-def]
    """The allocations behind the caches of all layers, each once."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    storages = {cache.untyped_storage().data_ptr(): cache.untyped_storage() for cache in worker.model_runner.kv_caches}
    import torch

    return [torch.empty(0, dtype=torch.int8).set_(storage) for storage in storages.values()]

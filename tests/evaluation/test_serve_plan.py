from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.evaluation.serve_plan import BlockSizes, ServePlan, plan_record, serve_plan
from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores

GEOMETRY = ModelGeometry(2, 4, 2, 8, ("full_attention",) * 2)
KV_SCORES = [[0.1, 0.9], [0.3, 0.2]]


def kv_scores(mean: list[list[float]] | None = None, geometry: ModelGeometry | None = GEOMETRY) -> AnyScores:
    return AnyScores(
        path=Path("some/scores.tsv"), format="duo", heads="kv", mean=np.array(mean or KV_SCORES), trial_scores=None,
        native=None, geometry=geometry, method="duo", model="tiny", is_ranking=False, notes=(), sha256="ab",
    )  # fmt: skip


def query_scores(mean: list[list[float]]) -> AnyScores:
    return replace(kv_scores(), heads="query", mean=np.array(mean))


def plan_of(share: float, scores: AnyScores | None = None, **options: object) -> ServePlan:
    given = {"sinks": 32, "window": 64, **options}
    return serve_plan(scores or kv_scores(), full_heads=share, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, ((), ())),
        (0.01, ((1,), ())),  # more than none is at least one
        (0.25, ((1,), ())),
        (0.5, ((1,), (0,))),
        (0.75, ((1,), (0, 1))),
        (1.0, ((0, 1), (0, 1))),
    ],
)
def test_the_best_share_of_kv_heads_keeps_everything(share: float, expected: tuple[tuple[int, ...], ...]) -> None:
    assert plan_of(share).full_heads == expected


def test_of_equal_scores_the_earlier_heads_are_full() -> None:
    assert plan_of(0.5, kv_scores([[0.5, 0.5], [0.5, 0.5]])).full_heads == ((0, 1), ())


def test_query_heads_are_joined_as_asked() -> None:
    table = query_scores([[0.9, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert plan_of(0.25, table).full_heads == ((1,), ())
    assert plan_of(0.25, table, gqa="max").full_heads == ((0,), ())


@pytest.mark.parametrize(
    ("full", "streaming", "expected"),
    [(6, 18, (96, 32)), (12, 12, (32, 32)), (22, 68, (96, 32)), (2, 22, (352, 32)), (0, 4, (32, 32)), (4, 0, (32, 32))],
)
def test_blocks_of_both_caches_take_about_the_same_bytes(full: int, streaming: int, expected: tuple[int, int]) -> None:
    sizes = BlockSizes.fitting(full, streaming, sinks=32, window=128)
    assert (sizes.full, sizes.streaming) == expected


@pytest.mark.parametrize("window", [32, 100, 256, 1000])
def test_no_pair_of_block_sizes_is_better_by_count(window: int) -> None:
    for full in range(8, 256, 31):
        plan = BlockSizes.fitting(full, 256 - full, 32, window)
        mean = {sizes: _mean_bytes(full, sizes, window) for sizes in (plan, *_some_sizes(window))}
        assert mean[plan] <= 1.02 * min(mean.values()), (full, plan, min(mean, key=mean.__getitem__))
        assert plan.streaming <= window


def _some_sizes(window: int) -> list[BlockSizes]:
    return [
        BlockSizes(full, streaming) for full in range(32, 512, 64) for streaming in (32, 64, 96, 128)
        if streaming <= window
    ]  # fmt: skip


def _mean_bytes(full: int, sizes: BlockSizes, window: int) -> float:
    """What requests of 3,500 to 4,700 tokens hold, counted block by block, by position of their last token."""
    lengths = range(3500, 4700)
    blocks = [
        -(-n // sizes.full) - (-32 // sizes.streaming)
        + ((n - 1) // sizes.streaming - (n - 1 - window) // sizes.streaming + 1)
        for n in lengths
    ]  # fmt: skip
    return sum(blocks) / len(lengths) * max(full * sizes.full, (256 - full) * sizes.streaming)


def test_bytes_and_blocks_by_hand() -> None:
    plan = plan_of(0.25, window=70)  # 1 of 4 heads is full: blocks of 96 and 32 tokens
    assert plan.entry_bytes == 2 * 8 * 2
    assert plan.block_bytes == 96 * 32 == 3 * 32 * 32
    # 1,000 tokens: 11 blocks of 96; a sink block, and 70 + 1 tokens that touch at most 4 blocks of 32
    assert plan.held_blocks(1000) == 11 + 1 + 4
    assert plan.most_blocks(1000) == 11 + 32
    assert plan.held_blocks(40) == 1 + 2
    assert plan.stock_bytes(1000) == 1000 * 4 * 32


def test_prompts_that_stream_hold_what_a_step_reads() -> None:
    plan = plan_of(0.25, window=70, prefill="streaming")
    assert plan.most_blocks(1000) == 11 + 32  # a step of vLLM reads more than the prompt has
    assert plan.most_blocks(100_000) == 1042 + 1 + 68  # 70 + 2,048 tokens touch at most 68 blocks
    assert plan.held_blocks(100_000) == 1042 + 1 + 4


def test_largest_batch_leaves_room_for_the_last_prompt() -> None:
    plan = plan_of(0.25, window=70)
    blocks = 43 + 3 * 16
    assert plan.largest_batch((blocks + 1) * plan.block_bytes, 1000) == 4
    assert plan.largest_batch(blocks * plan.block_bytes, 1000) == 3
    assert plan.largest_batch(43 * plan.block_bytes, 1000) == 0


def test_all_heads_full_save_nothing() -> None:
    plan = plan_of(1.0)
    assert plan.held_blocks(320) * plan.block_bytes == plan.stock_bytes(320)


def test_sinks_are_rounded_up_to_blocks() -> None:
    assert [plan_of(0.25, sinks=sinks).sinks for sinks in (0, 4, 32, 33)] == [0, 32, 32, 64]


def test_dtype_is_the_one_asked_for_or_bfloat16() -> None:
    assert [plan_of(0.25, dtype=dtype).element_bytes for dtype in (None, "float16", "float32")] == [2, 2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": -0.1}, "a share of -0.1 full heads is out of range, need 0 to 1"),
        ({"share": 1.1}, "a share of 1.1 full heads"),
        ({"share": float("nan")}, "a share of nan full heads"),
        ({"sinks": -1}, "sinks is -1, need 0 or more"),
        ({"window": 0}, "a window of 0 tokens is too small, need at least the 32 of a block"),
        ({"window": 31}, "a window of 31 tokens is too small, need at least the 32 of a block"),
        ({"prefill": "none"}, "unknown prefill 'none': known are dense, streaming"),
        ({"dtype": "int8"}, "unknown dtype 'int8': known are float32, bfloat16, float16"),
        ({"gqa": "sum", "scores": query_scores([[0.0] * 4] * 2)}, "joined by 'mean' or 'max', not 'sum'"),
        ({"scores": kv_scores(geometry=None)}, "scores.tsv does not say which model it belongs to; give --model"),
        (
            {"scores": kv_scores(geometry=replace(GEOMETRY, layer_types=("full_attention", "sliding_attention")))},
            "1 layers of the model do not see everything",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], message: str) -> None:
    given = {"share": 0.25, **options}
    with pytest.raises(OptionError, match=message):
        plan_of(**given)  # type: ignore[arg-type]


def test_record_holds_what_the_plug_in_reads_and_no_folder() -> None:
    assert plan_record(plan_of(0.25), kv_scores(), "mean") == {
        "schema": "headprobe-serve-plan/1",
        "model": {
            "id": "tiny", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        },
        "scores": {"file": "scores.tsv", "sha256": "ab", "method": "duo", "gqa": "mean"},
        "full_heads": [[1], []],
        "sinks": 32,
        "window": 64,
        "prefill": "dense",
        "block_size": {"full": 96, "streaming": 32},
    }  # fmt: skip

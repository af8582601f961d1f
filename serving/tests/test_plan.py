import json
from pathlib import Path
from typing import Any

import pytest

from headprobe_vllm.plan import PlanError, ServePlan, parse_plan, read_plan


def plan_json(**changed: Any) -> dict[str, Any]:
    return {
        "schema": "headprobe-serve-plan/1",
        "model": {"num_hidden_layers": 2, "num_key_value_heads": 3},
        "full_heads": [[0, 2], []],
        "sinks": 64,
        "window": 100,
        "prefill": "dense",
        "block_size": {"full": 64, "streaming": 32},
        **changed,
    }


def test_plan_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_json()))
    assert read_plan(path) == ServePlan(3, ((0, 2), ()), 64, 100, 64, 32, "dense")


def test_heads_that_are_not_full_stream() -> None:
    plan = parse_plan(plan_json())
    assert [plan.streaming_heads(layer) for layer in range(2)] == [(1,), (0, 1, 2)]
    assert plan.visible == 64 + 100 + 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema": "headprobe/1"}, "need an object with the schema 'headprobe-serve-plan/1'"),
        ({"sinks": 4}, "4 sinks are no multiple of the 32 tokens in a streaming block"),
        ({"sinks": -32}, "-32 sinks"),
        ({"sinks": True}, "sinks is True, need a whole number"),
        ({"window": 31}, "a window of 31 tokens is shorter than a streaming block of 32"),
        ({"window": None}, "window is None, need a whole number"),
        ({"full_heads": [[0]]}, "full_heads has 1 layers, the model 2"),
        ({"full_heads": [[3], []]}, "layer 0: full heads \\[3\\] must be rising numbers from 0 to 2"),
        ({"full_heads": [[], [1, 0]]}, "layer 1: full heads \\[1, 0\\] must be rising"),
        ({"full_heads": [[], [1, 1]]}, "layer 1: full heads \\[1, 1\\] must be rising"),
        ({"full_heads": [["0"], []]}, "full_heads must be a list of lists of whole numbers"),
        ({"prefill": "sparse"}, "prefill is 'sparse', known are dense, streaming"),
        ({"block_size": {"full": 0, "streaming": 32}}, "full_block_size is 0, need at least 1"),
        ({"model": []}, "model is missing"),
    ],
)
def test_faulty_plan_is_refused_with_value_and_limit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_plan(plan_json(**changed))


def test_digest_tells_plans_apart() -> None:
    same, other = parse_plan(plan_json()), parse_plan(plan_json(full_heads=[[0, 1], []]))
    assert parse_plan(plan_json()).digest == same.digest
    assert other.digest != same.digest


def test_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        read_plan(tmp_path / "none.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(PlanError, match="plan.json is not JSON"):
        read_plan(tmp_path / "plan.json")

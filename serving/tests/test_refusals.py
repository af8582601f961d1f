import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install -e 'serving[cpu]' in an environment of its own")

from headprobe_vllm import register
from headprobe_vllm.models import name_in_hash
from headprobe_vllm.plan import PlanError, ServePlan
from headprobe_vllm.refusals import check, plan_path
from proof.engine import DEMO

PLAN = ServePlan(2, ((0,), (1,)), 32, 64, 32, 32)


def config(text: dict[str, Any] | None = None, **changed: Any) -> Any:
    model = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, **(text or {})}
    given = {
        "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "decode_context_parallel_size": 1,
        "speculative_config": None, "kv_transfer_config": None, "cache_dtype": "auto",
        "disable_hybrid_kv_cache_manager": False, "enable_prefix_caching": False, **changed,
    }  # fmt: skip
    one = SimpleNamespace(**given)
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(**model)), parallel_config=one, cache_config=one,
        scheduler_config=one, speculative_config=one.speculative_config, kv_transfer_config=one.kv_transfer_config,
        additional_config=given.get("additional_config", {}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tensor_parallel_size": 2}, "tensor parallel size 2: only 1 for now"),
        ({"pipeline_parallel_size": 2}, "pipeline parallel size 2: only 1 for now"),
        ({"decode_context_parallel_size": 2}, "decode context parallelism"),
        ({"speculative_config": object()}, "speculative decoding is not supported"),
        ({"kv_transfer_config": object()}, "KV connectors are not supported"),
        ({"cache_dtype": "fp8"}, "a KV cache in fp8 is not supported"),
        ({"disable_hybrid_kv_cache_manager": True}, "leave --disable-hybrid-kv-cache-manager out"),
        ({"text": {"num_hidden_layers": 3}}, "the plan is for 2 layers of 2 KV heads, the model has 3 of 2"),
        ({"text": {"num_key_value_heads": None}}, "the plan is for 2 layers of 2 KV heads, the model has 2 of 4"),
        (
            {"text": {"layer_types": ["full_attention", "sliding_attention"]}},
            "do not see everything .sliding_attention",
        ),
        ({"text": {"use_sliding_window": True, "sliding_window": 4096}}, "do not see everything"),
        ({"text": {"dual_chunk_attention_config": {"a": 1}}}, "dual chunk attention"),
    ],
)
def test_engine_or_model_that_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check(PLAN, config(**changed))


def test_block_size_that_the_cpu_kernels_do_not_take_is_refused() -> None:
    with pytest.raises(PlanError, match="full_block_size is 48, the CPU kernels need a multiple of 32"):
        check(ServePlan(2, ((0,), (1,)), 32, 64, 48, 32), config())


def test_plan_is_named_by_additional_config_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADPROBE_PLAN", raising=False)
    assert plan_path(config()) is None
    monkeypatch.setenv("HEADPROBE_PLAN", "environment.json")
    assert plan_path(config()) == "environment.json"
    assert plan_path(config(additional_config={"headprobe_plan": "named.json"})) == "named.json"


def test_configuration_that_vllm_hashes_holds_the_plans_digest() -> None:
    given = config(additional_config={"headprobe_plan": "plan.json"})
    name_in_hash(PLAN, given)
    assert given.additional_config == {"headprobe_plan": "plan.json", "headprobe_plan_sha256": PLAN.digest}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel_size": 2}, "headprobe: tensor parallel size 2: only 1 for now"),
        ({"kv_cache_dtype": "fp8"}, "headprobe: a KV cache in fp8 is not supported"),
        ({"disable_hybrid_kv_cache_manager": True}, "leave --disable-hybrid-kv-cache-manager out"),
        ({"additional_config": {"headprobe_plan": "none.json"}}, "headprobe: the plan none.json cannot be read"),
    ],
)
def test_vllm_refuses_its_configuration_before_it_starts_anything(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from vllm import EngineArgs

    plan = {
        "schema": "headprobe-serve-plan/1", "model": {"num_hidden_layers": 6, "num_key_value_heads": 4},
        "full_heads": [[0]] * 6, "sinks": 32, "window": 64, "block_size": {"full": 96, "streaming": 32},
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    given = {"additional_config": {"headprobe_plan": str(tmp_path / "plan.json")}, "dtype": "float32", **options}
    register()
    with pytest.raises(ValueError, match=message):
        EngineArgs(model=str(DEMO), **given).create_engine_config()

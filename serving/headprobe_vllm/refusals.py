"""What the plug-in does not do, said before vLLM starts its processes and before a model is built."""

from __future__ import annotations

import os
from typing import Any

from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from headprobe_vllm.plan import PlanError, ServePlan, read_plan

PLAN_VARIABLE = "HEADPROBE_PLAN"
PLAN_KEY = "headprobe_plan"
CPU_BLOCK = 32  # tokens: what the CPU kernels want a block to be a multiple of


class PlanConfig(VerifyAndUpdateConfig):
    """vLLM's door for models to look at a configuration as soon as it is made: in the process that was started."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Raise `PlanError` for a plan that cannot be read, or an engine that does not fit it."""
        path = plan_path(vllm_config)
        try:
            if path is not None:
                check(read_plan(path), vllm_config)
        except PlanError as error:
            raise PlanError(f"headprobe: {error}") from None


def plan_path(vllm_config: VllmConfig) -> str | None:
    """Where the plan lies: `--additional-config '{"headprobe_plan": ...}'`, else the variable HEADPROBE_PLAN."""
    more = vllm_config.additional_config
    named = more.get(PLAN_KEY) if isinstance(more, dict) else None
    return named or os.environ.get(PLAN_VARIABLE) or None


def check(plan: ServePlan, vllm_config: VllmConfig) -> None:
    """Raise `PlanError` for a plan or an engine that does not fit."""
    _check_model(plan, vllm_config.model_config)
    for wrong, message in _engine_faults(vllm_config):
        if wrong:
            raise PlanError(message)
    for name in ("full_block_size", "streaming_block_size"):
        if getattr(plan, name) % CPU_BLOCK:
            raise PlanError(f"{name} is {getattr(plan, name)}, the CPU kernels need a multiple of {CPU_BLOCK}")


def _check_model(plan: ServePlan, model_config: Any) -> None:
    config = model_config.hf_text_config
    layers = config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if (layers, heads) != (plan.num_layers, plan.num_kv_heads):
        raise PlanError(
            f"the plan is for {plan.num_layers} layers of {plan.num_kv_heads} KV heads, "
            f"the model has {layers} of {heads}"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds or (getattr(config, "use_sliding_window", False) and getattr(config, "sliding_window", None)):
        raise PlanError(f"the model has layers that do not see everything ({', '.join(sorted(kinds)) or 'sliding'})")
    if getattr(config, "dual_chunk_attention_config", None):
        raise PlanError("the model has dual chunk attention")


def _engine_faults(config: VllmConfig) -> list[tuple[bool, str]]:
    parallel, dtype, device = config.parallel_config, config.cache_config.cache_dtype, current_platform.device_type
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    return [
        (not current_platform.is_cpu(), f"the plug-in knows vLLM's CPU attention only, not {device}"),
        (tensor > 1, f"tensor parallel size {tensor}: only 1 for now"),
        (pipeline > 1, f"pipeline parallel size {pipeline}: only 1 for now"),
        (parallel.decode_context_parallel_size > 1, "decode context parallelism is not supported"),
        (config.speculative_config is not None, "speculative decoding is not supported"),
        (config.kv_transfer_config is not None, "KV connectors are not supported"),
        (dtype != "auto", f"a KV cache in {dtype} is not supported"),
        (
            bool(config.scheduler_config.disable_hybrid_kv_cache_manager),
            "two kinds of cache need the hybrid KV cache manager: leave --disable-hybrid-kv-cache-manager out",
        ),
    ]  # fmt: skip

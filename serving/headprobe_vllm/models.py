"""vLLM's own Llama and Qwen classes, whose attention is split by the plan. Without a plan they are what they were."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from headprobe_vllm.layers import split_attention
from headprobe_vllm.plan import ServePlan, read_plan
from headprobe_vllm.refusals import check, plan_path

DIGEST_KEY = "headprobe_plan_sha256"

logger = init_logger(f"vllm.{__name__}")


class _Planned:
    """Splits the attention of a model of vLLM by the plan that the environment or `--additional-config` names."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        path = plan_path(vllm_config)
        plan = None if path is None else read_plan(path)
        if plan is not None:
            check(plan, vllm_config)
            name_in_hash(plan, vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)  # type: ignore[call-arg]
        if plan is not None:
            _apply(self, plan, vllm_config)


class HeadLlamaForCausalLM(_Planned, LlamaForCausalLM):
    """Llama."""


class HeadQwen2ForCausalLM(_Planned, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5."""


class HeadQwen3ForCausalLM(_Planned, Qwen3ForCausalLM):
    """Qwen3."""


def name_in_hash(plan: ServePlan, vllm_config: VllmConfig) -> None:
    """Give each plan a place of its own in vLLM's cache of compiled models.

    Its key holds `additional_config`, not what stands in a file.
    """
    more = vllm_config.additional_config
    if isinstance(more, dict):
        more[DIGEST_KEY] = plan.digest


def _apply(model: Any, plan: ServePlan, vllm_config: VllmConfig) -> None:
    for index, layer in enumerate(model.model.layers):
        split_attention(layer.self_attn, plan, index, vllm_config)
    if plan.prefill == "dense":
        # What makes vLLM's runner hand the length of each prompt to the attention backends; only R-SWA reads the value.
        vllm_config.model_config.model_arch_config.rswa_window = plan.window
    full = sum(map(len, plan.full_heads))
    logger.info(
        "headprobe: %d of %d KV heads keep everything, the others %d sinks and the last %d tokens",
        full, plan.num_layers * plan.num_kv_heads, plan.sinks, plan.window,
    )  # fmt: skip

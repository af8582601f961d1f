"""Head-level KV caches in vLLM: a plug-in, found by the entry point `vllm.general_plugins`.

`register` puts the model classes of `headprobe_vllm.models` in the place of vLLM's own. Without a plan they are those.
"""

from __future__ import annotations

ARCHITECTURES = {
    "LlamaForCausalLM": "headprobe_vllm.models:HeadLlamaForCausalLM",
    "Qwen2ForCausalLM": "headprobe_vllm.models:HeadQwen2ForCausalLM",
    "Qwen3ForCausalLM": "headprobe_vllm.models:HeadQwen3ForCausalLM",
}


def register() -> None:
    """Register the model classes; vLLM calls this in each of its processes, and more than once."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from headprobe_vllm.refusals import PlanConfig

    for architecture, place in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, place)
        MODELS_CONFIG_MAP[architecture] = PlanConfig  # vLLM has none of its own for these

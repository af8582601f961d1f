"""vLLM's engine in this process, step by step, with its block pool in view."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[2] / "headprobe" / "models" / "bundled"
SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that the block pool can be looked at
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_PLUGINS": "headprobe",
    "HF_HUB_OFFLINE": "1",
}


@dataclass
class Seen:
    """What a run showed.

    `held[step][group]`: blocks that all requests held of each cache; `tokens[step]`: tokens that had been read of them.
    """

    answers: list[list[int]] = field(default_factory=list)
    held: list[tuple[int, ...]] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)
    preemptions: int = 0
    seconds: float = 0.0

    @property
    def most_running(self) -> int:
        """Requests that were under way at a time, at most."""
        return max(self.running)

    @property
    def most_tokens(self) -> int:
        """Tokens of all requests under way at the best step."""
        return max(self.tokens)

    @property
    def most_blocks(self) -> int:
        """Blocks in use at the worst step."""
        return max(map(sum, self.held))


@contextmanager
def engine(model: str | Path, plan: Path | None = None, **options: Any) -> Iterator[Any]:
    """A `vllm.LLM` in float32, eager unless told otherwise, for as long as the block lasts.

    `blocks` and `cache_bytes` size its KV cache; all other options are vLLM's.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would overrule `cache_bytes`
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    given = {
        "max_model_len": 2048,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 16,
        "enforce_eager": True,
        **options,
    }
    given["kv_cache_memory_bytes"] = given.pop("cache_bytes", 2**28)
    if "blocks" in given:
        given["num_gpu_blocks_override"] = given.pop("blocks")
    more = {} if plan is None else {"headprobe_plan": str(plan)}
    llm = LLM(str(model), dtype="float32", additional_config=more, seed=0, **given)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def managers(llm: Any) -> Sequence[Any]:
    """The managers of the caches, one a group."""
    coordinator = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.coordinator
    return list(coordinator.single_type_managers)


def run(llm: Any, prompts: Sequence[Sequence[int]], new_tokens: int, *, stop: bool = False) -> Seen:
    """The likeliest `new_tokens` tokens behind each prompt, all given to the engine at once.

    `stop`: an end-of-sequence token ends an answer.
    """
    from vllm import SamplingParams

    from headprobe_vllm.caches import held_blocks

    core = llm.llm_engine
    scheduler = core.engine_core.engine_core.scheduler
    seen, done, preempted = Seen(), {}, {}
    for number, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=not stop)
        core.add_request(str(number), {"prompt_token_ids": list(prompt)}, params)
    started = time.perf_counter()
    while core.has_unfinished_requests():
        outputs = core.step()
        names = list(scheduler.requests)
        seen.held.append(tuple(held_blocks(manager, names) for manager in managers(llm)))
        seen.running.append(len(scheduler.running))
        seen.tokens.append(sum(request.num_computed_tokens for request in scheduler.running))
        preempted.update({name: request.num_preemptions for name, request in scheduler.requests.items()})
        done.update({output.request_id: output for output in outputs if output.finished})
    order = sorted(done, key=lambda name: int(name.split("-")[0]))
    seen.answers = [list(done[name].outputs[0].token_ids) for name in order]
    seen.cached_tokens = [done[name].num_cached_tokens or 0 for name in order]
    seen.preemptions, seen.seconds = sum(preempted.values()), time.perf_counter() - started
    return seen

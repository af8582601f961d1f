"""headprobe's own `duo` policy with given heads, sinks and window: what the plug-in's answers are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from headprobe.compression.budgets import BudgetRequest, Ints
from headprobe.compression.generation import generate
from headprobe.compression.policies import CompressionPlan, make_policy
from headprobe.compression.session import compress

from headprobe_vllm.plan import ServePlan


@dataclass(frozen=True)
class GivenHeads:
    """An allocator: the plan's full heads get `full` entries, the others sinks and window."""

    plan: ServePlan
    name: ClassVar[str] = "given-heads"
    needs_scores: ClassVar[bool] = False
    adapts: ClassVar[bool] = False

    def held(self, full: int) -> Ints:
        """Entries `[L, G]`."""
        held = np.full((self.plan.num_layers, self.plan.num_kv_heads), self.plan.sinks + self.plan.window, np.int64)
        for layer, heads in enumerate(self.plan.full_heads):
            held[layer, list(heads)] = full
        return held

    def capacities(self, request: BudgetRequest) -> Ints:
        """Entries `[L, G]` that are kept of a prompt."""
        return np.minimum(self.held(request.prompt_tokens), request.prompt_tokens)

    def adapt(self, importance: torch.Tensor, capacity: list[int], floor: int) -> list[int]:
        """As they are."""
        return capacity


@dataclass(frozen=True, eq=False)
class HeldPlan(CompressionPlan):
    """headprobe's `duo` lets all heads grow while decoding; here only full heads do, by at most `room` entries."""

    room: int = 0

    def limits(self, prompt_tokens: int) -> Ints:
        """Entries `[L, G]` that each head may hold while decoding."""
        allocator: Any = self.policy.allocator
        held: Ints = allocator.held(prompt_tokens + self.room)
        return held


def duo_answers(model: Any, prompts: Sequence[Sequence[int]], plan: ServePlan, new_tokens: int) -> list[list[int]]:
    """The likeliest `new_tokens` tokens behind each prompt, read and answered on its own."""
    policy = replace(
        make_policy("duo", sinks=plan.sinks), allocator=GivenHeads(plan), evicts_while_decoding=True, scores=None
    )
    answers = []
    with compress(model, policy, budget=plan.sinks + plan.window, attention="torch") as session:
        session.plan = HeldPlan(policy, plan.num_layers, plan.num_kv_heads, session.plan.budget, room=new_tokens + 1)
        for prompt in prompts:
            session.reset()
            answers.append(list(generate(session, prompt, max_new_tokens=new_tokens).tokens))
    return answers


def load(folder: str | Path) -> Any:
    """A model of transformers in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

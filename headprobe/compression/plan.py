"""What one compression does: a policy, a budget, and the head scores that go with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headprobe.compression.budgets import BudgetRequest, Floats, Ints
from headprobe.compression.policies import Policy
from headprobe.errors import OptionError

UNLIMITED = 1 << 40  # tokens: longer than any prompt


def check_ratio(ratio: float) -> None:
    """Raise `OptionError` for a share of the prompt that is not in (0, 1]."""
    if not 0.0 < ratio <= 1.0:
        raise OptionError(f"a ratio of {ratio} is out of range, need more than 0 and at most 1")


@dataclass(frozen=True, eq=False)
class CompressionPlan:
    """A policy with its budget, for a model with `num_layers` compressible layers of `num_kv_heads` KV heads.

    `budget`: mean entries per KV head, window and sinks included; or `ratio` of the prompt's length, in (0, 1].
    `head_scores` `[L, G]`, not negative, for policies that need them. Raises `OptionError` for what doesn't fit.
    """

    policy: Policy
    num_layers: int
    num_kv_heads: int
    budget: int | None = None
    ratio: float | None = None
    head_scores: Floats | None = None
    _known: dict[int, Ints] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.policy.keeps_all:
            return
        if (self.budget is None) == (self.ratio is None):
            raise OptionError(f"the policy {self.policy.name} needs a budget or a ratio, one of the two")
        if self.ratio is not None:
            check_ratio(self.ratio)
        if self.policy.needs_scores and self.head_scores is None:
            raise OptionError(f"the policy {self.policy.name} needs head scores; `headprobe score` makes them")
        if self.budget is not None:
            self._request(UNLIMITED)

    def budget_for(self, prompt_tokens: int) -> int:
        """Mean entries per KV head for a prompt of so many tokens."""
        if self.policy.keeps_all:
            return prompt_tokens
        if self.budget is not None:
            return self.budget
        assert self.ratio is not None
        return max(1, round(self.ratio * prompt_tokens))

    def capacities(self, prompt_tokens: int) -> Ints:
        """Entries `[L, G]` that each KV head keeps of such a prompt; never more than it has tokens."""
        if prompt_tokens not in self._known:
            if self.policy.keeps_all or self.budget_for(prompt_tokens) >= prompt_tokens:
                request = BudgetRequest(prompt_tokens, prompt_tokens, self.num_layers, self.num_kv_heads)
                self._known[prompt_tokens] = _everything(request)
            else:
                self._known[prompt_tokens] = self.policy.allocator.capacities(self._request(prompt_tokens))
        return self._known[prompt_tokens]

    def limits(self, prompt_tokens: int) -> Ints:
        """Entries `[L, G]` that each head may hold while decoding, for policies that evict then."""
        budget = self.budget_for(prompt_tokens)
        return self.capacities(prompt_tokens if budget < prompt_tokens else UNLIMITED)

    def _request(self, prompt_tokens: int) -> BudgetRequest:
        return BudgetRequest(
            budget=self.budget_for(prompt_tokens),
            prompt_tokens=prompt_tokens,
            num_layers=self.num_layers,
            num_kv_heads=self.num_kv_heads,
            floor=self.policy.floor,
            head_scores=self.head_scores,
        )


def _everything(request: BudgetRequest) -> Ints:
    return np.full(request.shape, request.prompt_tokens, dtype=np.int64)

"""Allocators: how a mean budget is divided among KV heads. To add one, write it here and name it in `policies.py`."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from headprobe.compression.budgets import (
    BudgetRequest,
    Floats,
    Ints,
    authors_budgets,
    fill,
    head_score_shares,
    share_out,
)
from headprobe.errors import OptionError

if TYPE_CHECKING:
    import torch


class Allocator(Protocol):
    """Divides a budget. `needs_scores`: whether it reads `request.head_scores`; `adapts`: whether shares inside a layer
    follow from the prompt's attention. Its own parameters are the fields of its dataclass, each with a default.
    """

    name: ClassVar[str]
    needs_scores: ClassVar[bool]
    adapts: ClassVar[bool]

    def capacities(self, request: BudgetRequest) -> Ints:
        """Entries `[L, G]` for each KV head, before any attention is seen."""
        ...

    def adapt(self, importance: torch.Tensor, capacity: list[int], floor: int) -> list[int]:
        """Capacities of one layer's heads, once the importance `[G, n]` of its entries is known."""
        ...


class Fixed:
    """What most allocators have in common: they look neither at the attention nor at head scores."""

    needs_scores: ClassVar[bool] = False
    adapts: ClassVar[bool] = False

    def adapt(self, importance: torch.Tensor, capacity: list[int], floor: int) -> list[int]:
        """The capacities as they are."""
        return capacity


@dataclass(frozen=True)
class Uniform(Fixed):
    """The same for every head (SnapKV, H2O, StreamingLLM)."""

    name: ClassVar[str] = "uniform"

    def capacities(self, request: BudgetRequest) -> Ints:
        """Entries `[L, G]` by this rule."""
        return fill(request, np.ones(request.shape))


@dataclass(frozen=True)
class Pyramid(Fixed):
    """PyramidKV (arXiv 2406.02069): much in the first layers, little in the last, in equal steps.

    With `B = budget - floor`: `lo = B // 20`, `hi = 2B - lo` (if `hi >= n - floor`: `hi = n - floor`, `lo = 2B - hi`);
    layer `l` of `L` gets `hi - l * (hi - lo) / (L - 1)`, a line whose mean is `B`, so that the budget is met without
    rescaling. The published code floors the step, which spends more than was asked for: `compat="pyramidkv"` (or
    "headkv", whose copy is the same) gives its whole numbers.

    >>> Pyramid().capacities(BudgetRequest(budget=20, prompt_tokens=99, num_layers=4, num_kv_heads=1)).ravel()
    array([39, 26, 14,  1])
    >>> Pyramid(compat="pyramidkv").capacities(BudgetRequest(20, 99, 4, 1)).ravel()
    array([39, 27, 15,  3])
    """

    compat: str | None = None
    name: ClassVar[str] = "pyramid"

    def __post_init__(self) -> None:
        if self.compat not in (None, "pyramidkv", "headkv"):
            raise OptionError(f"compat is {self.compat!r}, known are 'pyramidkv' and 'headkv'")

    def capacities(self, request: BudgetRequest) -> Ints:
        """Entries `[L, G]` by this rule."""
        spare, most, layers = request.spare, request.prompt_tokens - request.floor, request.num_layers
        low = spare // 20
        if 2 * spare - low >= most:
            low = 2 * spare - most
        high, steps = 2 * spare - low, max(1, layers - 1)
        if self.compat is None or layers == 1 or request.keeps_all:
            per_layer = np.array([high - layer * (high - low) / steps for layer in range(layers)], dtype=np.float64)
            return fill(request, np.repeat(per_layer[:, None], request.num_kv_heads, axis=1))
        whole = np.array([high - layer * ((high - low) // steps) for layer in range(layers)], dtype=np.int64)
        return np.repeat(whole[:, None], request.num_kv_heads, axis=1) + request.floor


@dataclass(frozen=True)
class Adaptive:
    """Ada-KV (arXiv 2407.11550): inside a layer, heads whose entries matter more keep more.

    All heads' importance above the floor is pooled and the layer's whole allowance taken from the top; a head with
    `c` entries among them gets `(1 - alpha) * c + alpha * B` above the floor, `B` the mean. Layers get equal sums.
    """

    alpha: float = 0.2
    name: ClassVar[str] = "adaptive"
    needs_scores: ClassVar[bool] = False
    adapts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise OptionError(f"alpha is {self.alpha}, need 0 to 1")

    def capacities(self, request: BudgetRequest) -> Ints:
        """Entries `[L, G]` by this rule."""
        return fill(request, np.ones(request.shape))

    def adapt(self, importance: torch.Tensor, capacity: list[int], floor: int) -> list[int]:
        """`importance` `[G, n]` with `-inf` where an entry stays anyway."""
        groups, tokens = importance.shape
        allowance = sum(capacity) - floor * groups
        if min(capacity) >= tokens or allowance <= 0:
            return capacity
        top = importance.flatten().sort(descending=True, stable=True).indices[:allowance]
        counts = np.bincount((top // tokens).cpu().numpy(), minlength=groups)
        shares = ((1 - self.alpha) * counts + self.alpha * allowance / groups).astype(np.float64)
        return [int(extra) + floor for extra in share_out(shares, allowance, tokens - floor)]


@dataclass(frozen=True)
class HeadScore(Fixed):
    """HeadKV (arXiv 2410.19258): a common floor, and a pool that is shared by the heads' scores.

    `beta` above 1, smaller for a larger pool. `compat="headkv"`: the published code's own rounding (`authors_budgets`).
    """

    beta: float = 1.2
    compat: str | None = None
    name: ClassVar[str] = "head-score"
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.beta > 1.0:
            raise OptionError(f"beta is {self.beta}, need more than 1")
        if self.compat not in (None, "headkv"):
            raise OptionError(f"compat is {self.compat!r}, known is 'headkv'")

    def capacities(self, request: BudgetRequest) -> Ints:
        """Entries `[L, G]` by this rule."""
        scores = _scores(request, self.name)
        if self.compat is None:
            return fill(request, head_score_shares(scores, request.spare, self.beta))
        capacity = authors_budgets(scores, request.budget, window=request.floor, beta=self.beta)
        return np.minimum(capacity, request.prompt_tokens)


@dataclass(frozen=True)
class RetrievalFull(Fixed):
    """RazorAttention, DuoAttention (arXiv 2407.15891, 2410.10819): the best heads keep all, the others the floor.

    The others keep a quarter of the budget, at least the floor; how many heads are full follows from the budget, and
    what is left over is spread evenly over the others. `most_full`: at most this share of the heads, rounded up, is
    full, as in RazorAttention, whose rule of 15 % is met where the budget allows it.

    >>> request = BudgetRequest(50, 100, 1, 20, head_scores=np.arange(20.0).reshape(1, 20))
    >>> [int((RetrievalFull(share).capacities(request) == 100).sum()) for share in (None, 0.15)]
    [8, 3]
    """

    most_full: float | None = None
    name: ClassVar[str] = "retrieval-full"
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.most_full is not None and not 0.0 < self.most_full <= 1.0:
            raise OptionError(f"most_full is {self.most_full}, need more than 0 and at most 1")

    def capacities(self, request: BudgetRequest) -> Ints:
        """Entries `[L, G]` by this rule."""
        scores = _scores(request, self.name)
        if request.keeps_all:
            return fill(request, np.ones(request.shape))
        least = max(request.floor, request.budget // 4)
        full = (request.total - least * request.num_heads) // (request.prompt_tokens - least)
        if self.most_full is not None:
            full = min(full, ceil(self.most_full * request.num_heads))
        flat = np.full(request.num_heads, -1, dtype=np.int64)
        flat[np.argsort(-scores.ravel(), kind="stable")[:full]] = request.prompt_tokens
        others = flat < 0
        left = request.total - request.prompt_tokens * full
        count = int(others.sum())
        flat[others] = left // count + (np.arange(count) < left % count)
        return flat.reshape(request.shape)


def _scores(request: BudgetRequest, name: str) -> Floats:
    if request.head_scores is None:
        raise OptionError(f"the allocator {name} needs head scores; `headprobe score` makes them")
    return request.head_scores

"""How many entries each KV head keeps: exact totals, whatever the shares and limits.

No torch here: what a score file gives is shown without a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from headprobe.errors import OptionError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

AUTHORS_BETAS = (1.005, 1.01, 1.1, 1.2, 1.5, 2.0, 5.0, 10.0)


def check_budget(budget: int) -> None:
    """Raise `OptionError` for a budget of less than one entry."""
    if budget < 1:
        raise OptionError(f"a budget of {budget} entries per KV head is too small, need at least 1")


@dataclass(frozen=True)
class BudgetRequest:
    """What an allocator is asked for.

    `budget` is the mean number of entries per KV head, `floor` the entries that every head keeps whatever its share
    (window and sinks, counted inside `budget`), `prompt_tokens` the most that a head can keep. `head_scores` `[L, G]`
    are non-negative, one for each KV head, or None. Raises `OptionError` for a budget below the floor.
    """

    budget: int
    prompt_tokens: int
    num_layers: int
    num_kv_heads: int
    floor: int = 0
    head_scores: Floats | None = None

    def __post_init__(self) -> None:
        check_budget(self.budget)
        if self.budget < self.floor:
            raise OptionError(
                f"a budget of {self.budget} entries per KV head is below the {self.floor} that window and sinks take"
            )
        if self.head_scores is not None and self.head_scores.shape != self.shape:
            raise OptionError(f"head scores of shape {self.head_scores.shape} for a model of {self.shape} KV heads")

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and KV heads."""
        return self.num_layers, self.num_kv_heads

    @property
    def num_heads(self) -> int:
        """KV heads of all layers."""
        return self.num_layers * self.num_kv_heads

    @property
    def keeps_all(self) -> bool:
        """Whether the prompt is no longer than the budget, so that nothing is evicted."""
        return self.prompt_tokens <= self.budget

    @property
    def total(self) -> int:
        """Entries of all heads together."""
        return min(self.budget, self.prompt_tokens) * self.num_heads

    @property
    def spare(self) -> int:
        """`budget - floor`: the mean number of entries per head that are given out by share."""
        return self.budget - self.floor


def fill(request: BudgetRequest, shares: Floats) -> Ints:
    """Capacities `[L, G]` in proportion to `shares` `[L, G]` above the floor; they sum to `request.total` exactly.

    Heads are capped at the prompt's length; what a cap frees goes to the others in proportion (`share_out`).

    >>> fill(BudgetRequest(budget=4, prompt_tokens=6, num_layers=1, num_kv_heads=3, floor=1), np.array([[8.0, 1, 1]]))
    array([[6, 3, 3]])
    """
    if request.keeps_all:
        return np.full(request.shape, request.prompt_tokens, dtype=np.int64)
    extra = share_out(shares, request.total - request.floor * request.num_heads, request.prompt_tokens - request.floor)
    return extra + request.floor


def share_out(shares: Floats, total: int, cap: int) -> Ints:
    """Whole numbers in proportion to `shares`, none above `cap`, that sum to `total` exactly.

    Water-filling: `min(cap, lambda * share)` with the lambda that spends the total, then largest remainders (of equal
    ones the earlier head first). Heads without any share get something only when all others are full.
    Raises `ValueError` when `total` does not fit under the caps.
    """
    if not 0 <= total <= cap * shares.size:
        raise ValueError(f"{total} entries do not fit into {shares.size} heads of at most {cap}")
    flat = np.asarray(shares, dtype=np.float64).ravel()
    if not np.isfinite(flat).all() or (flat < 0).any():
        raise ValueError("shares must be finite and not negative")
    return _round(_water_fill(flat, total, cap), total, cap).reshape(shares.shape)


def _water_fill(shares: Floats, total: int, cap: int) -> Floats:
    """`min(cap, lambda * share)` summing to `total`."""
    filled = np.zeros_like(shares)
    free = np.ones(shares.size, dtype=bool)
    remaining = float(total)
    while remaining > 0 and free.any():
        wanted = np.where(free, shares, 0.0)
        if wanted.sum() == 0.0:  # only heads without any share are left
            wanted = free.astype(np.float64)
        given = remaining * (wanted / wanted.sum())
        full = free & (given >= cap)
        if not full.any():
            filled[free] = given[free]
            break
        filled[full] = cap
        free &= ~full
        remaining = total - cap * float((~free).sum())
    return filled


def _round(filled: Floats, total: int, cap: int) -> Ints:
    """Largest remainders: floor each, then one more to the largest fractions until `total` is reached."""
    whole = np.floor(filled + 1e-9).astype(np.int64)
    fractions = filled - whole
    missing = int(total - whole.sum())
    order = np.argsort(-fractions, kind="stable")
    for head in order if missing > 0 else order[::-1]:
        if missing == 0:
            break
        step = 1 if missing > 0 else -1
        if 0 <= whole[head] + step <= cap:
            whole[head] += step
            missing -= step
    return whole


def head_score_shares(head_scores: Floats, spare: int, beta: float) -> Floats:
    """HeadKV's shares above the floor: `B - B/beta + p * (B/beta) * L * G`, `[L, G]` (arXiv 2410.19258, eq. 6).

    `head_scores` `[L, G]` are normalised to sum 1 here (all equal when they are all 0), `B = spare` entries; `beta`
    above 1: smaller means a larger pool that is shared by score. Raises `OptionError` for a beta of 1 or less.

    >>> head_score_shares(np.array([[3.0, 1.0]]), spare=10, beta=2.0)
    array([[12.5,  7.5]])
    """
    if not beta > 1.0:
        raise OptionError(
            f"beta is {beta}, need more than 1 (the paper uses {AUTHORS_BETAS[0]} to {AUTHORS_BETAS[-1]})"
        )
    total = head_scores.sum()
    normalized = head_scores / total if total > 0 else np.full(head_scores.shape, 1.0 / head_scores.size)
    pool = spare / beta
    return np.asarray(spare - pool + normalized * pool * head_scores.size, dtype=np.float64)


def head_score_budgets(
    head_scores: Floats, budget: int, *, floor: int = 8, beta: float = 1.2, prompt_tokens: int | None = None
) -> Ints:
    """Capacities `[L, G]` that `headkv` policies give to heads of these scores `[L, G]`; they sum to `budget * L * G`.

    `floor`: window and sinks, counted inside; `prompt_tokens`: the most that a head can keep (None: no limit).

    >>> head_score_budgets(np.array([[3.0, 1.0]]), 10, floor=0, beta=2.0)
    array([[13,  7]])
    """
    layers, groups = head_scores.shape
    longest = prompt_tokens if prompt_tokens is not None else budget * layers * groups
    request = BudgetRequest(budget, longest, layers, groups, floor, head_scores)
    return fill(request, head_score_shares(head_scores, request.spare, beta))


def authors_budgets(head_scores: Floats, budget: int, *, window: int = 8, beta: float = 1.2) -> Ints:
    """The published code's capacities for heads of these scores, window included (`--compat headkv`).

    `pool = (B // beta) * N`, `least = B - B // beta` with `B = budget - window`, `N` heads and a floor division of
    floats, then `round(p * pool + least)` (half to even); not capped at the prompt, so the total may be missed.
    """
    spare = budget - window
    if spare < 0:
        raise OptionError(f"a budget of {budget} entries per head is below the window of {window}")
    if not beta > 1.0:
        raise OptionError(f"beta is {beta}, need more than 1")
    shared = float(spare) // beta
    total = head_scores.sum()
    if total == 0:
        raise OptionError("the published rounding needs a head score above 0, all are 0")
    normalized = head_scores / total
    capacity = np.rint(normalized * (shared * head_scores.size) + (spare - shared))
    return np.asarray(capacity, dtype=np.int64) + window


def share_lost(wanted: Ints, prompt_tokens: int, budget: int) -> Fraction:
    """The part of `budget` per head that capacities `wanted` `[L, G]` leave unused or overdraw on such a prompt.

    Positive: entries lost to rounding and clamping; negative: more is spent than was asked for.
    """
    spent = int(np.minimum(wanted, prompt_tokens).sum())
    asked = budget * wanted.size
    return Fraction(asked - spent, asked)

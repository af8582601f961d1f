"""What each KV head would get from a budget, and what the published code would lose of it by rounding and clamping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from headprobe.compression.allocators import HeadScore
from headprobe.compression.budgets import Floats, Ints, authors_budgets, share_lost
from headprobe.compression.policies import CompressionPlan, Policy
from headprobe.errors import OptionError
from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores, check_gqa, reduce_to_kv

DEFAULT_PROMPT_TOKENS = 8192


@dataclass(frozen=True)
class ReferenceLoss:
    """What the published code (`authors_budgets`) makes of the same budget, for the heads that the file counts.

    `heads`: `query` or `kv`; `asked = budget * heads` entries, `wanted` after rounding, `spent` once no head gets more
    than the prompt has; `lost` is the share of `asked` that is left unused, negative where more is spent.
    """

    heads: str
    asked: int
    wanted: int
    spent: int
    lost: Fraction

    @classmethod
    def of(cls, head_scores: Floats, heads: str, budget: int, window: int, beta: float, prompt: int) -> ReferenceLoss:
        """The loss for heads of these scores `[L, N]`, not negative and not all 0.

        >>> ReferenceLoss.of(np.array([[3.0, 1.0]]), "kv", 10, window=0, beta=2.0, prompt=11)
        ReferenceLoss(heads='kv', asked=20, wanted=20, spent=19, lost=Fraction(1, 20))
        """
        wanted = authors_budgets(head_scores, budget, window=window, beta=beta)
        spent = int(np.minimum(wanted, prompt).sum())
        return cls(heads, budget * wanted.size, int(wanted.sum()), spent, share_lost(wanted, prompt, budget))

    @property
    def lost_to_rounding(self) -> Fraction:
        """The part of `lost` that rounding takes (negative: adds)."""
        return Fraction(self.asked - self.wanted, self.asked)

    @property
    def lost_to_clamping(self) -> Fraction:
        """The part of `lost` that heads with more entries than the prompt has cannot use."""
        return Fraction(self.wanted - self.spent, self.asked)


@dataclass(frozen=True, eq=False)
class BudgetTable:
    """Entries that each KV head of the layers `layers` keeps of a prompt.

    `head_scores` and `capacity` are `[len(layers), G]`; `budget` is the mean that was asked for, `bytes_per_entry`
    counts key and value of one token in one head (None where the head dimension is not known).
    """

    policy: Policy
    budget: int
    ratio: float | None
    prompt_tokens: int
    gqa: str
    layers: tuple[int, ...]
    head_scores: Floats
    capacity: Ints
    bytes_per_entry: int | None
    reference: ReferenceLoss | None
    notes: tuple[str, ...]

    @property
    def entries(self) -> int:
        """Entries that are kept."""
        return int(self.capacity.sum())

    @property
    def full_entries(self) -> int:
        """Entries of the uncompressed cache."""
        return self.prompt_tokens * self.capacity.size

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is evicted."""
        return self.entries == self.full_entries

    @property
    def lost(self) -> Fraction:
        """The share of the budget that rounding and clamping leave unused: 0 but for `compat`."""
        if self.keeps_all:
            return Fraction(0)
        asked = self.budget * self.capacity.size
        return Fraction(asked - self.entries, asked)


def budget_table(
    scores: AnyScores,
    policy: Policy,
    num_kv_heads: int | None,
    *,
    budget: int | None = None,
    ratio: float | None = None,
    prompt_tokens: int | None = None,
    gqa: str = "mean",
) -> BudgetTable:
    """The budgets that `policy` gives to the KV heads of a score file's model.

    `budget` is the mean number of entries per KV head, window and sinks included, or `ratio` of the prompt.
    `prompt_tokens`: None takes `default_prompt_tokens`. `num_kv_heads` (G) may be None where the file counts KV heads;
    `gqa` joins query heads. Sliding-window layers, where the file names them, are left out: no policy touches them.
    Raises `OptionError` for what does not fit.
    """
    prompt = default_prompt_tokens(scores) if prompt_tokens is None else prompt_tokens
    if prompt < 1:
        raise OptionError(f"a prompt of {prompt} tokens is too short, need at least 1")
    layers = _compressed_layers(scores.geometry, scores.num_layers)
    own = scores.mean[list(layers)]
    table = _kv_scores(scores, own, num_kv_heads, gqa).clip(min=0.0)
    if policy.needs_scores and table.sum() == 0.0 and getattr(policy.allocator, "compat", None) is not None:
        raise OptionError(f"--compat {policy.allocator.compat} needs a score above 0, {scores.path.name} has none")  # type: ignore[attr-defined]
    plan = CompressionPlan(policy, table.shape[0], table.shape[1], budget, ratio, table)
    asked = plan.budget_for(prompt)
    capacity = plan.capacities(prompt)
    keeps_all = asked >= prompt
    return BudgetTable(
        policy=policy,
        budget=asked,
        ratio=ratio,
        prompt_tokens=prompt,
        gqa=gqa,
        layers=layers,
        head_scores=table,
        capacity=capacity,
        bytes_per_entry=_bytes_per_entry(scores),
        reference=None if keeps_all else _reference(scores, own.clip(min=0.0), policy, asked, prompt),
        notes=tuple(_notes(scores, policy, table, layers, keeps_all)),
    )


def default_prompt_tokens(scores: AnyScores) -> int:
    """The longest prompt that the heads were scored on, or `DEFAULT_PROMPT_TOKENS` where the file does not state it."""
    lengths = [trial.length for trial in scores.native.trials] if scores.native is not None else []
    return max(lengths, default=DEFAULT_PROMPT_TOKENS) or DEFAULT_PROMPT_TOKENS


def _compressed_layers(geometry: ModelGeometry | None, num_layers: int) -> tuple[int, ...]:
    if geometry is None:
        return tuple(range(num_layers))
    if not geometry.full_attention_layers:
        raise OptionError(f"none of the {num_layers} layers sees the whole prompt: there is nothing to compress")
    return geometry.full_attention_layers


def _kv_scores(scores: AnyScores, own: Floats, num_kv_heads: int | None, gqa: str) -> Floats:
    check_gqa(gqa)
    if scores.heads == "kv":
        return own
    if num_kv_heads is None:
        raise OptionError(f"{scores.path.name} does not say how many KV heads its model has; give --num-kv-heads")
    return reduce_to_kv(own, num_kv_heads, gqa)


def _bytes_per_entry(scores: AnyScores) -> int | None:
    if scores.geometry is None:
        return None
    dtype = None if scores.native is None else scores.native.provenance.model.dtype
    return 2 * scores.geometry.head_dim * (4 if dtype == "float32" else 2)


def _reference(scores: AnyScores, own: Floats, policy: Policy, budget: int, prompt: int) -> ReferenceLoss | None:
    """None for policies that the published code does not have, and where it would divide by 0."""
    if not isinstance(policy.allocator, HeadScore) or own.sum() == 0.0:
        return None
    return ReferenceLoss.of(own, scores.heads, budget, policy.floor, policy.allocator.beta, prompt)


def _notes(scores: AnyScores, policy: Policy, table: Floats, layers: Sequence[int], keeps_all: bool) -> list[str]:
    notes = []
    if policy.keeps_all:
        notes.append(f"{policy.name} never evicts anything")
    elif keeps_all:
        notes.append("the prompt is no longer than the budget: nothing is evicted")
    if len(layers) < scores.num_layers:
        notes.append(f"{scores.num_layers - len(layers)} sliding-window layers are left as they are")
    if policy.allocator.adapts:
        notes.append(
            f"{policy.allocator.name}: each layer's mean is shown; the heads' shares depend on the prompt's attention"
        )
    if policy.needs_scores:
        notes += _score_notes(scores, policy, table)
    return notes


def _score_notes(scores: AnyScores, policy: Policy, table: Floats) -> list[str]:
    notes = []
    if scores.method is not None and scores.method != policy.scores:
        notes.append(f"{policy.name} is meant for {policy.scores} scores, the file has {scores.method}")
    if scores.is_ranking:
        notes.append("the file ranks heads without scores: points by rank stand in for them")
    if table.sum() == 0.0:
        notes.append("no head scores above 0: all KV heads count the same")
    return notes

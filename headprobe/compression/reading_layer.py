"""A layer that reads a prompt and keeps all of it, with what every selector says of its entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from headprobe.compression.importance import AttentionShape, Observation
from headprobe.compression.kernels.choice import Kernel
from headprobe.compression.layers import RaggedLayer
from headprobe.compression.policies import CompressionPlan, Policy
from headprobe.compression.prefill import KeptHead, PromptReader, Watched, chosen
from headprobe.compression.selectors import Selector
from headprobe.errors import OptionError


@dataclass(frozen=True, eq=False)
class SeenSequence:
    """One sequence in one layer: `key` and `value` `[G, n, d]`; `scores` `[G, n, C]` by each selector, in order."""

    key: torch.Tensor
    value: torch.Tensor
    scores: tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class SeenLayer:
    """All that is held of a prompt in one compressed layer; `layer` counts among the compressed ones."""

    layer: int
    shape: AttentionShape
    selectors: tuple[Selector, ...]
    sequences: tuple[SeenSequence, ...]

    def kept(self, plan: CompressionPlan) -> list[KeptHead]:
        """What each (sequence, KV head) keeps under `plan`, as a run of its own would keep it."""
        heads: list[KeptHead] = []
        for seen in self.sequences:
            scores = None if plan.policy.keeps_all else seen.scores[place_of(plan.policy, self.selectors)]
            heads += chosen(seen.key, seen.value, scores, plan, self.layer)
        return heads

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(seen.key.nbytes + seen.value.nbytes for seen in self.sequences)

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of a key and of a value."""
        return self.sequences[0].key.shape[-1], self.sequences[0].value.shape[-1]

    @property
    def entry_nbytes(self) -> int:
        """Bytes of one entry of one KV head: its key and its value."""
        return sum(self.widths) * self.sequences[0].key.element_size()

    @property
    def scores_nbytes(self) -> int:
        """Bytes of the scores beside them."""
        return sum(scores.nbytes for seen in self.sequences for scores in seen.scores)


class ReadingLayer(RaggedLayer):
    """The cache of a layer while a prompt is read once for many policies; `seen_layer` is there when all is read.

    Scores are computed as soon as the layer has read the prompt: they take one number (`history`: a few) for each
    entry, where the queries that they come from would take as much as the keys.
    """

    def __init__(
        self, plan: CompressionPlan, layer: int, kernel: Kernel, selectors: tuple[Selector, ...], watched: Watched
    ) -> None:
        super().__init__(plan, layer, kernel, slack=1, keep_positions=False)
        self.selectors, self.watched = selectors, watched
        self.seen_layer: SeenLayer | None = None

    def expect(self, tokens: int) -> None:
        """Announce a prompt, its length in tokens, which may come in chunks."""
        self._reader = PromptReader(self.watched, tokens)

    def _compress(self, reader: PromptReader, shape: AttentionShape, pads: Sequence[int]) -> None:
        observed = reader.observations(shape, pads)
        scores = [tuple(selector.scores(as_wanted(each, selector)) for selector in self.selectors) for each in observed]
        keys, values = (_on_its_own(tensor) for tensor in reader.so_far())
        sequences = tuple(
            SeenSequence(keys[number, :, pad:], values[number, :, pad:], scores[number])
            for number, pad in enumerate(pads)
        )
        self.seen_layer = SeenLayer(self.layer, shape, self.selectors, sequences)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return 0 if self.seen_layer is None else self.seen_layer.nbytes


def distinct_selectors(policies: Sequence[Policy]) -> tuple[Selector, ...]:
    """The selectors of all `policies` that evict anything, equal ones once."""
    found: list[Selector] = []
    for policy in policies:
        if not policy.keeps_all and policy.selector not in found:
            found.append(policy.selector)
    return tuple(found)


def place_of(policy: Policy, selectors: Sequence[Selector]) -> int:
    """Where the selector of `policy` stands. Raises `OptionError` for one that was not named before the reading."""
    if policy.selector not in selectors:
        known = ", ".join(str(selector) for selector in selectors) or "none"
        raise OptionError(
            f"{policy.name} selects by {policy.selector}, but the prompt was read for {known}: name all policies "
            "before it is read"
        )
    return list(selectors).index(policy.selector)


def as_wanted(observation: Observation, selector: Selector) -> Observation:
    """What `selector` would have seen, had the prompt been read for it alone."""
    count = selector.num_queries
    query = observation.query[:, -count:] if count else observation.key.new_zeros(1, 0, observation.key.shape[-1])
    return replace(
        observation, query=query, column_sums=observation.column_sums if selector.needs_column_sums else None
    )


def _on_its_own(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, copied where it is part of something larger that would live on with it (one product for q, k and v)."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor

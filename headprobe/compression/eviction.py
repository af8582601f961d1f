"""Eviction while decoding: every new entry may push an older one out, in place, at constant memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from headprobe.compression.importance import value_norms
from headprobe.compression.policies import Policy
from headprobe.compression.prefill import KeptHead
from headprobe.compression.ragged_store import RaggedStore


class Evictor:
    """Keeps the scores of a store's entries up to date and evicts down to each segment's limit.

    Per entry of the store: `position` int64 `[total]`, counted from the sequence's first token; `scores` float32
    `[total, C]`; the value's L1 norm where the policy is value-aware. `tokens` int64 `[B]`: tokens seen so far. Nothing
    grows while decoding, and all decisions are made on the device, so that a step can be captured as a CUDA graph.
    """

    def __init__(self, policy: Policy, store: RaggedStore, heads: Sequence[KeptHead], tokens: Sequence[int]) -> None:
        device, total = store.keys.device, store.keys.shape[0]
        self.policy, self.store = policy, store
        self._limits = np.array([head.limit for head in heads], dtype=np.int64)
        self.limits = torch.from_numpy(self._limits).to(device)
        self.recents = torch.tensor([policy.selector.recent(head.limit) for head in heads], device=device)
        self.position = torch.zeros(total, dtype=torch.int64, device=device)
        self.scores = torch.zeros(total, heads[0].scores.shape[1], dtype=torch.float32, device=device)
        for head, start in zip(heads, store.starts, strict=True):
            where = slice(int(start), int(start) + len(head.positions))
            self.position[where], self.scores[where] = head.positions, head.scores
        self.norms = value_norms(store.values) if policy.value_aware else None
        self.tokens = torch.tensor(tokens, dtype=torch.int64, device=device)
        self._sequence = store.layout.segment // store.num_kv_heads

    @property
    def nbytes(self) -> int:
        """Bytes of the book-keeping."""
        norms = 0 if self.norms is None else self.norms.nbytes
        return self.position.nbytes + self.scores.nbytes + norms

    def appended(self) -> None:
        """Take note of the entry that has just been appended to every segment."""
        last = self._last()
        self.position[last] = self.tokens[self._sequence[last]]
        self.scores[last] = 0.0
        if self.norms is not None:
            self.norms[last] = value_norms(self.store.values[last])
        column, anew = self._columns()
        self.scores.scatter_(1, column, self.scores.gather(1, column).masked_fill(anew, 0.0))

    def attended(self, weights: torch.Tensor) -> None:
        """Add the newest query's attention `[total]` to the scores, then evict one entry where a limit is passed."""
        self.scores.scatter_add_(1, self._columns()[0], weights[:, None])
        self._evict()
        self.tokens += 1

    def _columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For each entry the column of the newest query, and whether it starts anew: two `[total, 1]`."""
        column, anew = self.policy.selector.column(self.tokens)
        return column[self._sequence][:, None], anew[self._sequence][:, None]

    def _last(self) -> torch.Tensor:
        """The last entry in use of each segment, int64 `[S]`."""
        return (self.store.start + self.store.length).long() - 1

    def _evict(self) -> None:
        victims = self._victims()
        last, over = self._last(), self.store.length > self.limits
        target = torch.where(over, victims, last)  # where nothing has to go, an entry takes its own place
        for table in (self.store.keys, self.store.values, self.position, self.scores, self.norms):
            if table is not None:
                table[target] = table[last]
        self.store.drop_last(over)
        self.count_evicted()

    def count_evicted(self) -> None:
        """Let the host's count of entries follow the device's."""
        self.store.lengths = np.minimum(self.store.lengths, self._limits)

    def _victims(self) -> torch.Tensor:
        """The entry of each segment that matters least, int64 `[S]`; of equal ones the earliest position."""
        table = self.store.layout.table
        position = self.position[table]
        places = torch.arange(table.shape[1], device=table.device)
        newest = self.position[self._last()][:, None]
        stays = (places >= self.store.length[:, None]) | (position < self.policy.sinks)
        stays |= position > newest - self.recents[:, None]
        stays &= ~self._only_recent_left(position, places, newest)
        importance = self.scores[table].sum(-1)
        if self.norms is not None:
            importance = (importance + self.policy.value_eps) * self.norms[table]
        importance = importance.masked_fill(stays, torch.inf)
        least = importance == importance.min(-1, keepdim=True).values
        earliest = torch.where(least, position, torch.iinfo(torch.int64).max).argmin(-1)
        return table.gather(1, earliest[:, None])[:, 0]

    def _only_recent_left(self, position: torch.Tensor, places: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
        """Where sinks and recent entries fill a segment, the oldest behind the sinks may go after all: `[S, P]`."""
        used = places < self.store.length[:, None]
        behind = used & (position >= self.policy.sinks)
        older = behind & (position <= newest - self.recents[:, None])
        stuck = ~older.any(-1, keepdim=True)
        oldest = torch.where(behind, position, torch.iinfo(torch.int64).max).min(-1, keepdim=True).values
        return stuck & behind & (position == oldest)

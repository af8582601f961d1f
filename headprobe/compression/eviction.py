"""Eviction while decoding: every new entry may push an older one out, in place, at constant memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from headprobe.compression.budgets import Ints
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
        device = store.device
        recents = torch.tensor([policy.selector.recent(head.limit) for head in heads], device=device)
        self._take(policy, store, np.array([head.limit for head in heads], dtype=np.int64), recents)
        where = store.entries()
        self.position.index_copy_(0, where, torch.cat([head.positions for head in heads]))
        self.scores.index_copy_(0, where, torch.cat([head.scores for head in heads]))
        self.tokens = torch.tensor(tokens, dtype=torch.int64, device=device)

    def _take(self, policy: Policy, store: RaggedStore, limits: Ints, recents: torch.Tensor) -> None:
        device, total = store.device, store.total
        self.policy, self.store, self._limits, self.recents = policy, store, limits, recents
        self.limits = torch.from_numpy(limits).to(device)
        self.position = torch.zeros(total, dtype=torch.int64, device=device)
        self.scores = torch.zeros(total, policy.selector.num_columns, dtype=torch.float32, device=device)
        self.norms: torch.Tensor | None = None
        if policy.value_aware:
            self.norms = torch.zeros(total, dtype=torch.float32, device=device)
            where = store.entries()
            self.norms.index_copy_(0, where, value_norms(store.read_values(where)))
        self._sequence = store.layout.segment // store.num_kv_heads

    @classmethod
    def joined(cls, parts: Sequence[Evictor], store: RaggedStore) -> Evictor:
        """The evictor of `store`, which holds the sequences of the parts' stores one behind the other."""
        new = cls.__new__(cls)
        limits, recents = np.concatenate([part._limits for part in parts]), torch.cat([part.recents for part in parts])
        new._take(parts[0].policy, store, limits, recents)
        where, old = store.entries(), [part.store.entries() for part in parts]
        new.position.index_copy_(0, where, torch.cat([p.position[o] for p, o in zip(parts, old, strict=True)]))
        new.scores.index_copy_(0, where, torch.cat([p.scores[o] for p, o in zip(parts, old, strict=True)]))
        new.tokens = torch.cat([part.tokens for part in parts])
        return new

    @property
    def nbytes(self) -> int:
        """Bytes of the book-keeping."""
        norms = 0 if self.norms is None else self.norms.nbytes
        return self.position.nbytes + self.scores.nbytes + norms

    def appended(self) -> None:
        """Take note of the entry that has just been appended to every segment."""
        last = self.store.last
        self.position[last] = self.tokens[self._sequence[last]]
        self.scores.index_fill_(0, last, 0.0)  # `scores[last] = 0.0` would bring the number from the host
        if self.norms is not None:
            self.norms[last] = value_norms(self.store.read_values(last))
        column, anew = self._columns()
        self.scores.scatter_(1, column, self.scores.gather(1, column).masked_fill(anew, 0.0))

    def attended(self, weights: torch.Tensor) -> None:
        """Add the newest query's attention `[total]` to the scores, then evict one entry where a limit is passed."""
        self.scores.scatter_add_(1, self._columns()[0], weights[:, None])
        self._evict()
        self.tokens += 1

    def _columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For each entry the column of the newest query, and whether it starts from 0: two `[total, 1]`."""
        column, anew = self.policy.selector.column(self.tokens)
        return column[self._sequence][:, None], anew[self._sequence][:, None]

    def _evict(self) -> None:
        victims = self._victims()
        last, over = self.store.last, self.store.length > self.limits
        target = torch.where(over, victims, last)  # where nothing has to go, an entry takes its own place
        self.store.move(target, last)
        for table in (self.position, self.scores, self.norms):
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
        newest = self.position[self.store.last][:, None]
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

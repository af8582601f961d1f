"""Selectors: which entries of a KV head matter. To add one, write a dataclass here and name it in `policies.py`.

A selector gives each entry a score, kept as float32 `[G, n, C]`: most have one column; `history` keeps a column for
each block of queries, so that old blocks can be dropped while decoding. Importance is the sum over the columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch.nn.functional import max_pool1d

from headprobe.compression.importance import Observation, block_sums
from headprobe.errors import OptionError


class Selector(Protocol):
    """Says which entries matter.

    `num_queries`: how many of the prompt's last queries it looks at; `needs_column_sums`: whether it wants the sums
    over all queries. `follows_decoding`: whether its scores can be kept up to date while decoding. `window`: entries at
    the end that always stay, and are counted into every head's floor. `default_sinks`: first entries that stay in a
    pair made with it. Its own parameters are the fields of its dataclass, each with a default.
    """

    name: ClassVar[str]
    follows_decoding: ClassVar[bool]
    needs_column_sums: ClassVar[bool]
    default_sinks: ClassVar[int]

    @property
    def window(self) -> int:
        """Entries at the end that always stay."""
        ...

    @property
    def num_queries(self) -> int:
        """Last queries of the prompt that it looks at."""
        ...

    @property
    def num_columns(self) -> int:
        """Columns of its scores."""
        ...

    def scores(self, observation: Observation) -> torch.Tensor:
        """Scores `[G, n, C]`, float32."""
        ...

    def recent(self, capacity: int) -> int:
        """The most recent entries that stay whatever their score, in a head of `capacity` entries."""
        ...

    def column(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The columns that queries of these numbers (int64) add to, and whether those columns start from 0."""
        ...


class OneColumn:
    """What most selectors have in common: one score an entry, no window, no sinks, no look at queries."""

    window = 0
    num_queries = 0
    num_columns = 1
    follows_decoding: ClassVar[bool] = False
    needs_column_sums: ClassVar[bool] = False
    default_sinks: ClassVar[int] = 0

    def column(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The only column, which is never reset."""
        return torch.zeros_like(query), torch.zeros_like(query, dtype=torch.bool)


@dataclass(frozen=True)
class Window(OneColumn):
    """SnapKV (arXiv 2404.14469): attention from the last `window` queries, max-pooled over `pool` neighbours.

    Softmax rows of the last `window` queries, averaged over them and over the group's query heads, then pooled (stride
    1, `pool // 2` on either side) over the entries before the window, which itself always stays.
    """

    window: int = 8
    pool: int = 7
    name: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise OptionError(f"the window is {self.window} queries, need at least 1")
        if self.pool < 1 or self.pool % 2 == 0:
            raise OptionError(f"pool is {self.pool}, need an odd number of 1 or more")

    @property
    def num_queries(self) -> int:  # type: ignore[override]
        """The window."""
        return self.window

    def scores(self, observation: Observation) -> torch.Tensor:
        """The pooled means; 0 inside the window."""
        rows = observation.rows(min(self.window, observation.query.shape[1])).mean(1)
        before = rows[:, : -self.window]
        scores = torch.zeros_like(rows)
        if before.shape[1]:
            scores[:, : -self.window] = max_pool1d(before[None], self.pool, stride=1, padding=self.pool // 2)[0]
        return scores[..., None]

    def recent(self, capacity: int) -> int:
        """The window."""
        return self.window


@dataclass(frozen=True)
class Accumulated(OneColumn):
    """H2O (arXiv 2306.14048): attention summed over all queries; half the budget for these, half for the latest."""

    name: ClassVar[str] = "accumulated"
    follows_decoding: ClassVar[bool] = True
    needs_column_sums: ClassVar[bool] = True

    def scores(self, observation: Observation) -> torch.Tensor:
        """The column sums."""
        assert observation.column_sums is not None
        return observation.column_sums[..., None]

    def recent(self, capacity: int) -> int:
        """Half of the capacity."""
        return capacity // 2


@dataclass(frozen=True)
class History:
    """Scissorhands (arXiv 2305.17118): attention from the last `queries` queries; the `keep` most recent stay.

    Departure: queries are counted in whole blocks of `block`, so that a sliding sum needs `queries / block + 1` numbers
    an entry instead of `queries`. The sum covers the running block and the `queries / block` before it: with the
    defaults, the last 401 to 450 queries.
    """

    queries: int = 400
    keep: int = 10
    block: int = 50
    name: ClassVar[str] = "history"
    follows_decoding: ClassVar[bool] = True
    needs_column_sums: ClassVar[bool] = False
    default_sinks: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.block < 1 or self.queries < self.block or self.queries % self.block:
            raise OptionError(f"a history of {self.queries} queries is not a multiple of blocks of {self.block}")

    @property
    def window(self) -> int:
        """None: the most recent entries count against each head's own capacity."""
        return 0

    @property
    def num_columns(self) -> int:
        """The running block and those before it."""
        return self.queries // self.block + 1

    @property
    def num_queries(self) -> int:
        """Queries of all columns."""
        return self.num_columns * self.block

    def scores(self, observation: Observation) -> torch.Tensor:
        """Sums by block of queries."""
        return block_sums(observation, self.block, self.num_columns)

    def recent(self, capacity: int) -> int:
        """`keep`, or half of the capacity where that is less."""
        return min(self.keep, capacity // 2)

    def column(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's column, which is reset at the block's first query."""
        return query // self.block % self.num_columns, query % self.block == 0


@dataclass(frozen=True)
class SinkRecent(OneColumn):
    """StreamingLLM (arXiv 2309.17453): the first entries (the policy's sinks) and the most recent ones."""

    name: ClassVar[str] = "sink-recent"
    follows_decoding: ClassVar[bool] = True
    default_sinks: ClassVar[int] = 4

    def scores(self, observation: Observation) -> torch.Tensor:
        """Nothing but the recency counts: 0."""
        groups, tokens, _ = observation.key.shape
        return torch.zeros(groups, tokens, 1, dtype=torch.float32, device=observation.key.device)

    def recent(self, capacity: int) -> int:
        """All of the capacity."""
        return capacity

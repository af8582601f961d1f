"""The batch as the streaming heads see it: which queries read everything so far, and one short row for each other.

A token behind its request's prompt sees the sinks, the last `window` tokens and itself. Its blocks are laid end to end
in an order that lets a stock kernel with a plain sliding window do this to the token:

    [window's first block .. block before its own] [blocks of the sinks] [its own block]

Attention does not care for the order (entries carry their rotary position), every block but the last is full, and what
of the first block lies before the window is exactly what exceeds `sinks + window + 1` entries: a sliding window of that
many entries cuts it off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Sequences for a kernel.

    `tokens` `[T]`: places of their queries in the batch, sequence by sequence; `starts` `[N + 1]`: where each sequence
    begins among them; `lengths` `[N]`: entries that it reads, its queries the last of them; `requests` `[N]`: whose
    block table; `blocks` `[N, W]`: which entries of that table, in order (None: the table as it is).
    """

    tokens: Ints
    starts: Ints
    lengths: Ints
    requests: Ints
    blocks: Ints | None = None

    @property
    def longest_query(self) -> int:
        """Queries of the longest sequence."""
        return int(np.diff(self.starts).max(initial=0))


@dataclass(frozen=True, eq=False)
class SplitBatch:
    """`dense` rows read all that came before them, `streaming` rows sinks and window; None where there are none."""

    dense: Rows | None
    streaming: Rows | None


def split_batch(
    query_starts: Ints, lengths: Ints, prompts: Ints, *, sinks: int, window: int, block_size: int
) -> SplitBatch:
    """Split a batch of R requests.

    `query_starts` `[R + 1]`: where each request's queries begin; `lengths` `[R]`: tokens of each when these are read;
    `prompts` `[R]`: tokens that are read densely (0: none). `sinks` must be a multiple of `block_size` and `window` at
    least that.

    One request of 6 tokens, of which the last two are read now; a prompt of 5, blocks of 2, 2 sinks, a window of 2:

    >>> given = np.array([0, 2]), np.array([6]), np.array([5])
    >>> split = split_batch(*given, sinks=2, window=2, block_size=2)
    >>> split.dense.tokens, split.dense.lengths
    (array([0]), array([5]))
    >>> split.streaming.tokens, split.streaming.lengths, split.streaming.blocks
    (array([1]), array([6]), array([[1, 0, 2]]))
    """
    counts = np.diff(query_starts)
    firsts = lengths - counts
    dense = np.clip(np.minimum(lengths, prompts) - firsts, 0, counts)
    offsets = np.arange(int(query_starts[-1])) - np.repeat(query_starts[:-1], counts)
    request = np.repeat(np.arange(len(counts)), counts)
    is_dense = offsets < dense[request]
    return SplitBatch(
        _dense(np.flatnonzero(is_dense), dense, firsts + dense),
        _streaming(
            np.flatnonzero(~is_dense), request[~is_dense], (firsts[request] + offsets)[~is_dense],
            sinks, window, block_size,
        ),
    )  # fmt: skip


def _dense(tokens: Ints, counts: Ints, lengths: Ints) -> Rows | None:
    """One row for each request that has dense queries."""
    if not len(tokens):
        return None
    requests = np.flatnonzero(counts)
    return Rows(tokens, np.concatenate([[0], np.cumsum(counts[requests])]), lengths[requests], requests)


def _streaming(tokens: Ints, requests: Ints, positions: Ints, sinks: int, window: int, block_size: int) -> Rows | None:
    """One row for each token at `positions` `[T]`."""
    if not len(tokens):
        return None
    last = positions // block_size
    short = positions <= sinks + window  # nothing lies between sinks and window: the table as it is
    first = np.where(short, 0, (positions - window) // block_size)
    sink_blocks = np.where(short, 0, sinks // block_size)
    before = last - first
    place = np.arange(int((before + sink_blocks).max()) + 1)
    blocks = np.where(
        place < before[:, None],
        first[:, None] + place,
        np.where(place < (before + sink_blocks)[:, None], place - before[:, None], last[:, None]),
    )
    lengths = (before + sink_blocks) * block_size + positions % block_size + 1
    return Rows(tokens, np.arange(len(tokens) + 1), lengths, requests, blocks)

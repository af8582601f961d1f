"""Half-open ranges, in characters or in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Span:
    """The half-open range `[start, end)`; `0 <= start <= end`."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"span [{self.start}, {self.end}) needs 0 <= start <= end")

    def __len__(self) -> int:
        return self.end - self.start

    def __contains__(self, position: object) -> bool:
        return isinstance(position, int) and self.start <= position < self.end

    def shift(self, by: int) -> Span:
        """The span moved by `by`."""
        return Span(self.start + by, self.end + by)


def token_span(offsets: Sequence[tuple[int, int]], characters: Span) -> Span:
    """The tokens that hold at least one of the `characters`.

    `offsets` are the (start, end) character ranges of the tokens, as a fast tokenizer gives them; tokens of no
    characters (special tokens) never belong. A token that merges characters of both sides of a border counts as
    inside. Raises `ValueError` when no token holds any of the characters.

    >>> token_span([(0, 0), (0, 3), (3, 5), (5, 9)], Span(4, 8))
    Span(start=2, end=4)
    """
    inside = [i for i, (a, b) in enumerate(offsets) if a < characters.end and b > characters.start and b > a]
    if not inside:
        raise ValueError(f"no token holds the characters [{characters.start}, {characters.end})")
    return Span(inside[0], inside[-1] + 1)

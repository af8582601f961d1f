"""A haystack laid out in tokens: how many tokens stand before a character, and where one may cut or insert."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

from headprobe.errors import PlanError
from headprobe.probes.haystack import Haystack
from headprobe.probes.sentences import sentence_ends

_WORD = re.compile(r"\S+")
_MOST_CHARACTERS = 1000  # a token: a tokenizer beyond this drops text


class Background:
    """At least `num_tokens` tokens of `haystack`, tokenized once. Positions are characters of `text`.

    The counts are those of the background alone; in a prompt they may differ by a few tokens, because a tokenizer
    merges across the borders.
    """

    def __init__(self, tokenizer: Any, haystack: Haystack, num_tokens: int) -> None:
        self.haystack_characters = len(haystack.text)
        characters = 5 * num_tokens + 200
        while True:
            self.text, _ = haystack.stretch(characters)
            encoded = tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            self._starts = [start for start, _ in encoded["offset_mapping"]]
            if len(self._starts) >= num_tokens:
                break
            if characters > _MOST_CHARACTERS * (num_tokens + 1):
                raise PlanError(f"the tokenizer makes only {len(self._starts)} tokens of {len(self.text)} characters")
            characters *= 2
        self.ends = sentence_ends(self.text)
        self._ends_in_tokens = [self.tokens_before(end) for end in self.ends]

    def tokens_before(self, position: int) -> int:
        """How many tokens begin before the character `position`."""
        return bisect_left(self._starts, position)

    def fitting_end(self, num_tokens: int) -> int:
        """The last sentence end with at most `num_tokens` tokens before it; 0 when not even one sentence fits."""
        index = bisect_right(self._ends_in_tokens, num_tokens)
        return self.ends[index - 1] if index else 0

    def words_until(self, start: int, num_tokens: int) -> Iterator[int]:
        """Word ends behind `start` with at most `num_tokens` tokens before them, the furthest first."""
        stop = self._starts[num_tokens] if num_tokens < len(self._starts) else len(self.text)
        ends = (match.end() for match in _WORD.finditer(self.text, start, max(start, stop) + 1))
        yield from reversed([end for end in ends if end > start and self.tokens_before(end) <= num_tokens])

    def insertion_point(self, end: int, depth: float) -> int:
        """Of 0 and the sentence ends up to `end`, the one nearest to `depth` percent of the tokens before `end`."""
        target = depth / 100 * self.tokens_before(end)
        index = bisect_right(self.ends, end)
        found = bisect_left(self._ends_in_tokens, target, 0, index)
        nearby = self.ends[max(0, found - 2) : min(index, found + 2)]
        return min([0, *nearby], key=lambda place: (abs(self.tokens_before(place) - target), place))

    def repeats(self, end: int) -> float:
        """Characters up to `end` over those of the haystack: above 1.0 paragraphs come again."""
        return end / self.haystack_characters

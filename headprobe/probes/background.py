"""A haystack laid out in tokens: how many tokens stand before a character, and where one may cut or insert."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

from headprobe.errors import PlanError
from headprobe.probes.encoding import encode
from headprobe.probes.haystack import Haystack
from headprobe.probes.scripts import is_mark, is_unspaced, may_cut
from headprobe.probes.sentences import sentence_ends

_WORD = re.compile(r"\S+")
_MOST_CHARACTERS = 1000  # a token: a tokenizer beyond this drops text
_SPARE_CHARACTERS = 10_000  # so much more than is needed may be tokenized, for whole paragraphs
_LONGEST_SENTENCE = (500, 200)  # characters with spaces between words, and without; a longer stretch is none
_LONGEST_LINE = (100, 40)  # the same for what no stop ends, such as a heading or the item of a list
_LONGEST_WORD = 100
_DEPTH_TOLERANCE = 0.02  # of the background; where words have no spaces, a break further away is given up for a nearer


class Background:
    """At least `num_tokens` tokens of `haystack`, tokenized once. Positions are characters of `text`.

    The counts are those of the background alone; in a prompt they may differ by a few tokens, because a tokenizer
    merges across the borders. Of a paragraph that is much longer than needed only the beginning is taken.
    """

    def __init__(self, tokenizer: Any, haystack: Haystack, num_tokens: int) -> None:
        self.haystack_characters = len(haystack.text)
        characters = 5 * num_tokens + 200
        while True:
            self.text, is_cut = _beginning(haystack.stretch(characters)[0], characters)
            self._starts = [start for start, _ in encode(tokenizer, self.text, special=False).offsets]
            if len(self._starts) >= num_tokens:
                break
            if characters > _MOST_CHARACTERS * (num_tokens + 1):
                raise PlanError(f"the tokenizer makes only {len(self._starts)} tokens of {len(self.text)} characters")
            characters *= 2
        self.ends = sentence_ends(self.text)[: -1 if is_cut else None]
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
        stop = self._character_of(num_tokens)
        ends = (match.end() for match in _WORD.finditer(self.text, start, max(start, stop) + 1))
        yield from reversed([end for end in ends if end > start and self.tokens_before(end) <= num_tokens])

    def characters_until(self, start: int, num_tokens: int) -> Iterator[int]:
        """As `words_until`, between any two characters of scripts without spaces where a text may be cut."""
        for end in range(min(self._character_of(num_tokens), len(self.text)), start, -1):
            if self.tokens_before(end) <= num_tokens and self._may_break(end):
                yield end

    def insertion_point(self, end: int, depth: float) -> int:
        """Of 0 and the sentence ends up to `end`, the one nearest to `depth` percent of the tokens before `end`.

        Where the text has no sentence ends over a stretch that is too long for a sentence (Thai, a transcript), a word
        end in it is a place too; and where it has no spaces near that depth either, any character that may be cut off.
        """
        target = depth / 100 * self.tokens_before(end)
        index = bisect_right(self.ends, end)
        found = bisect_left(self._ends_in_tokens, target, 0, index)
        places = [0, *self.ends[max(0, found - 2) : min(index, found + 2)]]
        wanted = min(self._character_of(int(target)), end)
        if self._is_endless(wanted):
            places += self._finer_places(wanted, end)
        return min(places, key=lambda place: (abs(self.tokens_before(place) - target), place))

    def depth_at(self, place: int, end: int) -> float | None:
        """Percent of the tokens before `end` that stand before `place`; None where there are none."""
        total = self.tokens_before(end)
        return round(100 * self.tokens_before(place) / total, 2) if total else None

    def repeats(self, end: int) -> float:
        """Characters up to `end` over those of the haystack: above 1.0 paragraphs come again."""
        return end / self.haystack_characters

    # -- texts without sentence ends --------------------------------------------------------------------------------

    def _character_of(self, token: int) -> int:
        return self._starts[token] if token < len(self._starts) else len(self.text)

    def _is_endless(self, place: int) -> bool:
        """Whether what stands around `place`, from one sentence end to the next, is longer than a sentence ever is."""
        index = bisect_right(self.ends, place)
        start = self.ends[index - 1] if index else 0
        end = self.ends[index] if index < len(self.ends) else len(self.text)
        is_line = index < len(self.ends) and (self.text[end - 1].isalnum() or is_mark(self.text[end - 1]))
        sample = self.text[start : min(end, start + 200)]
        without_spaces = 2 * sum(map(is_unspaced, sample)) > len(sample)
        return end - start > (_LONGEST_LINE if is_line else _LONGEST_SENTENCE)[without_spaces]

    def _finer_places(self, wanted: int, end: int) -> list[int]:
        """Places up to `end` near the character `wanted`: `end`, word ends, and between characters where need be."""
        near = range(max(1, wanted - _LONGEST_WORD), min(end, wanted + _LONGEST_WORD) + 1)
        places = [place for place in near if place == end or self._ends_word(place)]
        tolerance = max(2.0, _DEPTH_TOLERANCE * self.tokens_before(end))
        target = self.tokens_before(wanted)
        if not any(abs(self.tokens_before(place) - target) <= tolerance for place in places):
            places += [place for place in near if self._may_break(place)]
        return places

    def _ends_word(self, place: int) -> bool:
        return place < len(self.text) and self.text[place].isspace() and not self.text[place - 1].isspace()

    def _may_break(self, place: int) -> bool:
        """Whether two characters of a script without spaces meet here that belong to no common letter."""
        return (
            place < len(self.text)
            and may_cut(self.text, place)
            and is_unspaced(self.text[place - 1])
            and is_unspaced(self.text[place])
        )


def _beginning(text: str, characters: int) -> tuple[str, bool]:
    """What is needed of `text`, and whether the rest was cut off: only where that is much."""
    if len(text) <= 4 * characters + _SPARE_CHARACTERS:
        return text, False
    place = next(i for i in range(2 * characters, 0, -1) if may_cut(text, i))
    return text[:place], True

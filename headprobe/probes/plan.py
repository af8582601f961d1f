"""The grid of probes: which needle goes into the haystack at which length and depth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from headprobe.errors import OptionError, PlanError
from headprobe.probes.grid import (
    MOST_PLACES,
    MOST_TRIALS,
    check_length,
    check_number,
    clean_depth,
    even_depths,
    even_lengths,
    parse_depths,
    parse_lengths,
)
from headprobe.probes.haystack import Haystack
from headprobe.probes.needle import Needle, NeedleSet

__all__ = ["ProbePlan", "TrialSpec", "difference", "even_depths", "even_lengths", "parse_depths", "parse_lengths"]

DEFAULT_TEMPLATE = "default"


@dataclass(frozen=True)
class TrialSpec:
    """One cell's needle: hidden in `length` tokens (prompt and answer together) at `depth` percent."""

    id: str
    needle: Needle
    length: int
    depth: float


@dataclass(frozen=True)
class ProbePlan:
    """Needles x lengths (tokens, prompt and answer together) x depths (percent).

    Each cell of the grid takes the next `needles_per_cell` needles (at most all) of a shuffled deck; a new shuffle
    begins when the deck is used up, so needles are used equally often and not bound to a depth. `seed` decides the
    shuffles and where the haystack starts. `template` is `default` or a text with {context} and {question}; `chat`
    allows the tokenizer's chat template. Lengths and depths are sorted; repeated ones are dropped and named in
    `removed`. Raises `OptionError` for numbers out of range (`MOST_TRIALS` trials) and `PlanError` for lengths beyond
    `window`.
    """

    needles: NeedleSet
    haystack_name: str
    haystack_sha256: str
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    seed: int = 0
    template: str = DEFAULT_TEMPLATE
    chat: bool = True
    needles_per_cell: int = 2
    window: int | None = field(default=None, compare=False)
    removed: tuple[str, ...] = field(default=(), init=False, compare=False)

    def __post_init__(self) -> None:
        if not len(self.needles):
            raise PlanError(f"the needle set {self.needles.name!r} is empty")
        if self.needles_per_cell < 1:
            raise OptionError(f"needles per cell must be at least 1, got {self.needles_per_cell}")
        check_number(self.needles_per_cell, "needles per cell", MOST_TRIALS)
        check_number(len(self.lengths), "lengths", MOST_PLACES)
        check_number(len(self.depths), "depths", MOST_PLACES)
        for length in self.lengths:
            check_length(length, self.window)
        depths = tuple(clean_depth(depth) for depth in self.depths)
        if not self.lengths or not depths:
            raise PlanError(f"{len(self.lengths)} lengths and {len(depths)} depths make no grid")
        removed = [f"length {length}" for length in _repeated(self.lengths)]
        removed += [f"depth {depth:g}" for depth in _repeated(depths)]
        object.__setattr__(self, "removed", tuple(removed))
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))
        object.__setattr__(self, "depths", tuple(sorted(set(depths))))
        check_number(self.num_trials, "trials (lengths x depths x needles per cell)", MOST_TRIALS)

    @classmethod
    def build(
        cls,
        needles: NeedleSet,
        haystack: Haystack,
        lengths: Iterable[int],
        depths: Iterable[float] | None = None,
        **options: Any,
    ) -> ProbePlan:
        """A plan for this haystack; ten even depths unless given; `options` are the other fields."""
        chosen = even_depths(10) if depths is None else tuple(depths)
        return cls(needles, haystack.name, haystack.sha256, tuple(lengths), chosen, **options)

    def describe(self) -> dict[str, Any]:
        """All that decides the prompts, as plain JSON values: what a journal stores and a score file quotes."""
        return {
            "needles": {"name": self.needles.name, "sha256": self.needles.sha256, "count": len(self.needles)},
            "haystack": {"name": self.haystack_name, "sha256": self.haystack_sha256},
            "lengths": list(self.lengths),
            "depths": list(self.depths),
            "seed": self.seed,
            "template": self.template,
            "chat": self.chat,
            "needles_per_cell": self.needles_per_cell,
        }

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of `describe()`: the same for the same probes on any machine."""
        text = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def num_trials(self) -> int:
        """How many trials `trials()` gives."""
        return len(self.lengths) * len(self.depths) * min(self.needles_per_cell, len(self.needles))

    def trials(self) -> tuple[TrialSpec, ...]:
        """All trials in the order of length, depth, place of the needle in its set."""
        cells = [(length, depth) for length in self.lengths for depth in self.depths]
        return tuple(
            TrialSpec(f"{needle.id}@{length}@{depth:g}", needle, length, depth)
            for (length, depth), hand in zip(cells, self._deal(), strict=False)
            for needle in (self.needles.needles[i] for i in sorted(hand))
        )

    def limited(self, limit: int | None) -> tuple[TrialSpec, ...]:
        """At most `limit` trials, spread evenly over the grid, in the order of `trials()`; `None` gives all."""
        trials = self.trials()
        if limit is None:
            return trials
        if limit < 1:
            raise OptionError(f"the limit must be at least 1 trial, got {limit}")
        return tuple(trials[i] for i in sorted(_spread(len(trials), limit)))

    def _deal(self) -> Iterator[list[int]]:
        """For each cell in turn the places of its needles; endless."""
        size = min(self.needles_per_cell, len(self.needles))
        deck: list[int] = []
        rounds = 0
        while True:
            hand: list[int] = []
            while len(hand) < size:
                if not deck:
                    deck, rounds = self._shuffled(rounds), rounds + 1
                hand.append(deck.pop(next(i for i, place in enumerate(deck) if place not in hand)))
            yield hand

    def _shuffled(self, number: int) -> list[int]:
        """The places of all needles in the order of hashes: the same on every Python version."""
        keys = [hashlib.sha256(f"{self.seed}/{number}/{i}".encode()).digest() for i in range(len(self.needles))]
        return sorted(range(len(keys)), key=keys.__getitem__)


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The fields in which two plans' `describe()` differ, as `name: value in the first -> value in the second`.

    >>> difference({"seed": 0, "haystack": {"name": "essays"}}, {"seed": 0, "haystack": {"name": "stories"}})
    ['haystack.name: essays -> stories']
    """
    left, right = dict(_flat(first)), dict(_flat(second))
    names = list(dict.fromkeys([*left, *right]))
    changed = [name for name in names if left.get(name, "nothing") != right.get(name, "nothing")]
    return [f"{name}: {left.get(name, 'nothing')} -> {right.get(name, 'nothing')}" for name in changed]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _repeated(values: Iterable[float]) -> list[float]:
    seen: set[float] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]


def _spread(total: int, count: int) -> set[int]:
    """`count` of `range(total)`: one out of each of `count` equal stretches, at a place that varies (golden ratio).

    Equal steps would meet the same depth again and again. Where most are wanted, those to leave out are spread.
    """
    if count >= total:
        return set(range(total))
    if 2 * count > total:
        return set(range(total)) - _spread(total, total - count)
    golden = 0.6180339887498949
    return {int((i + i * golden % 1) * total / count) for i in range(count)}

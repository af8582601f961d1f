"""The grid of probes: context lengths and depths, and which needle goes into the haystack at which of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from headprobe.errors import OptionError, PlanError
from headprobe.probes.haystack import Haystack
from headprobe.probes.needle import Needle, NeedleSet

# The axes of a grid of probes: context lengths in tokens and depths in percent.

DEPTH_DIGITS = 4  # depths are rounded to so many decimals, which their names in trial ids can hold
MOST_PLACES = 1000  # lengths of a grid, and depths
MOST_TRIALS = 10_000  # the published grid has 100; the prompts of all trials are built before the first one runs


def even_lengths(max_length: int, count: int) -> tuple[int, ...]:
    """`count` lengths spread evenly up to `max_length` tokens, the last of them `max_length` itself.

    >>> even_lengths(2048, 4)
    (512, 1024, 1536, 2048)
    """
    check_number(count, "lengths", MOST_PLACES)
    if not 1 <= count <= max_length:
        raise OptionError(f"{count} lengths up to {max_length} tokens are not possible: need 1 <= number <= longest")
    return tuple(max_length * i // count for i in range(1, count + 1))


def even_depths(count: int) -> tuple[float, ...]:
    """`count` depths spread evenly from 0 to 100 percent; a single one lies at 50.

    >>> even_depths(5)
    (0.0, 25.0, 50.0, 75.0, 100.0)
    """
    if count < 1:
        raise OptionError(f"the number of depths must be at least 1, got {count}")
    check_number(count, "depths", MOST_PLACES)
    if count == 1:
        return (50.0,)
    return tuple(round(100 * i / (count - 1), DEPTH_DIGITS) for i in range(count))


def check_number(number: int, noun: str, most: int) -> None:
    """Raise `OptionError` for more than `most` of what `noun` names: such a plan would take for ever to build."""
    if number > most:
        raise OptionError(f"{number:,} {noun} are too many, need at most {most:,}")


def parse_lengths(text: str, window: int | None = None) -> tuple[int, ...]:
    """Lengths from text such as `512,1k,2k` (k = 1024 tokens), in the order given, repeated ones kept.

    Raises `OptionError` for what is no length or below 1, `PlanError` beyond the model's `window`.

    >>> parse_lengths("512,1k,1.5k")
    (512, 1024, 1536)
    """
    return tuple(_length(part.strip(), window) for part in text.split(","))


def whole_numbers(text: str, complaint: str) -> tuple[int, ...]:
    """Whole numbers from text such as `1,2,5`, in the order given, repeated ones kept.

    Raises `OptionError` with `complaint`, what is none in the place of `{}`.

    >>> whole_numbers("1, 5", "--top {} is not a number")
    (1, 5)
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isdecimal() and part.isascii() and len(part) < 10):
            raise OptionError(complaint.format(f"{part!r:.40}"))
    return tuple(int(part) for part in parts)


def _length(part: str, window: int | None) -> int:
    match = re.fullmatch(r"([+-]?\d{1,12}(?:\.\d{1,6})?)([kKmM]?)", part, re.ASCII)
    value = float(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()] if match else math.nan
    if value != (whole := int(value) if match else 0):
        raise OptionError(f"length {part!r} is not a number of tokens (write 512 or 1k, separated by commas)")
    check_length(whole, window)
    return whole


def check_length(length: int, window: int | None = None) -> None:
    """Raise `OptionError` unless `length` is at least 1 token, `PlanError` when it is beyond the `window`."""
    if length < 1:
        raise OptionError(f"length {length} must be at least 1 token")
    if window is not None and length > window:
        raise PlanError(f"length {length} is beyond the model's window of {window} tokens")


def parse_depths(text: str) -> tuple[float, ...]:
    """Depths from text: one whole number is how many to spread evenly, a list such as `0,50,100` gives percents.

    Raises `OptionError` for what is no number or outside [0, 100].

    >>> parse_depths("3"), parse_depths("10, 90")
    ((0.0, 50.0, 100.0), (10.0, 90.0))
    """
    if re.fullmatch(r"\s*\d{1,6}\s*", text, re.ASCII):
        return even_depths(int(text))
    parts = [part.strip().removesuffix("%") for part in text.split(",")]
    if not all(re.fullmatch(r"[+-]?(\d{1,9}(\.\d{0,30})?|nan|inf)", part, re.ASCII) for part in parts):
        raise OptionError(f"depths {text!r} are neither a number of depths nor percents such as 0,50,100")
    return tuple(clean_depth(float(part)) for part in parts)


def clean_depth(depth: float) -> float:
    """`depth` rounded to `DEPTH_DIGITS` decimals. Raises `OptionError` outside [0, 100]."""
    if not 0 <= depth <= 100:
        raise OptionError(f"depth {depth:g} must lie between 0 and 100 percent")
    return round(float(depth), DEPTH_DIGITS) + 0.0


# The grid of probes: which needle goes into the haystack at which length and depth.

__all__ = ["ProbePlan", "TrialSpec", "difference", "even_depths", "even_lengths", "parse_depths", "parse_lengths"]

DEFAULT_TEMPLATE = "default"


@dataclass(frozen=True)
class TrialSpec:
    """One cell's needle: hidden in `length` tokens (prompt and answer together) at `depth` percent."""

    id: str
    needle: Needle
    length: int
    depth: float

    @property
    def group(self) -> str:
        """What trials that are not independent have in common: the needle."""
        return self.needle.id


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
            raise PlanError(f"{len(self.lengths)} lengths and {len(depths)} depths do not make a grid")
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
        return spread(self.trials(), limit)

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
    """The fields in which two plans' `describe()` differ, as `name: value in the first -> value in the second`; of long
    values the part that differs.

    >>> difference({"seed": 0, "haystack": {"name": "essays"}}, {"seed": 0, "haystack": {"name": "stories"}})
    ['haystack.name: essays -> stories']
    """
    left, right = dict(_flat(first)), dict(_flat(second))
    names = list(dict.fromkeys([*left, *right]))
    changed = [name for name in names if left.get(name, "nothing") != right.get(name, "nothing")]
    pairs = [(name, *_apart(str(left.get(name, "nothing")), str(right.get(name, "nothing")))) for name in changed]
    return [f"{name}: {one} -> {other}" for name, one, other in pairs]


SHORT_VALUE = 60  # characters, up to which a value is shown whole
_WORDS = re.compile(r"[^\s,()\[\]{}]+|.", re.DOTALL)


def _apart(one: str, other: str) -> tuple[str, str]:
    """Two different values: of long ones the words in which they differ.

    >>> _apart(f"Rule(kind='a', window=12, {'x' * 60})", f"Rule(kind='a', window=14, {'x' * 60})")
    ('...window=12...', '...window=14...')
    >>> _apart("12", "14")
    ('12', '14')
    """
    if min(len(one), len(other)) <= SHORT_VALUE:
        return one, other
    left, right = (_WORDS.findall(text) for text in (one, other))
    shortest = min(len(left), len(right))
    start = next((i for i in range(shortest) if left[i] != right[i]), shortest)
    end = next((i for i in range(shortest - start) if left[-1 - i] != right[-1 - i]), shortest - start)
    before, behind = "..." if start else "", "..." if end else ""
    one, other = ("".join(words[start : len(words) - end]) for words in (left, right))
    return (f"{before}{one}{behind}" if one else "nothing", f"{before}{other}{behind}" if other else "nothing")


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _repeated(values: Iterable[float]) -> list[float]:
    seen: set[float] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]


_Item = TypeVar("_Item")


def spread(items: tuple[_Item, ...], limit: int | None) -> tuple[_Item, ...]:
    """At most `limit` of the items, spread evenly, in their order; None gives all. Raises `OptionError` below 1."""
    if limit is None:
        return items
    if limit < 1:
        raise OptionError(f"the limit must be at least 1 trial, got {limit}")
    return tuple(items[i] for i in sorted(_spread(len(items), limit)))


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

"""The axes of a grid of probes: context lengths in tokens and depths in percent."""

from __future__ import annotations

import math
import re

from headprobe.errors import OptionError, PlanError

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
        raise OptionError(f"{count} lengths up to {max_length} tokens cannot be: needs 1 <= number <= longest")
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

"""Numbers and texts that no command can do anything with, refused in one place for all options of all commands."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from headprobe.errors import OptionError

MOST = 2**40  # of anything that is counted: times layers and heads it still fits into 64 bits
LARGEST_SEED = 2**53  # whole numbers up to here are exact in JSON and in a float


def refuse_undecodable(arguments: Sequence[str]) -> None:
    """Raise `OptionError` for an argument that is not UTF-8, or holds a null character.

    No file of ours may be called so: score files, journals and pages hold names as text.
    """
    for argument in arguments:
        if "\0" in argument:
            raise OptionError(f"the argument {argument!r:.200} holds a null character")
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            raise OptionError(f"the argument {argument!r:.200} is not UTF-8: use another name") from None


def check_number(name: str, value: object) -> None:
    """Raise `OptionError`, quoting the limits, for a number beyond them or one that is not finite.

    >>> check_number("--limit", 2**64)
    Traceback (most recent call last):
    headprobe.errors.OptionError: --limit is 18446744073709551616, need -1099511627776 to 1099511627776
    """
    limit = LARGEST_SEED if name == "--seed" else MOST
    if isinstance(value, list | tuple):
        for each in value:
            check_number(name, each)
    elif isinstance(value, float) and not isfinite(value):
        raise OptionError(f"{name} is {value}, need a finite number")
    elif isinstance(value, int) and abs(value) > limit:
        raise OptionError(f"{name} is {_shown(value)}, need {-limit} to {limit}")


def _shown(value: int) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text.lstrip('-'))} digits)"

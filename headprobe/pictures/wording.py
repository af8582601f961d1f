"""Words of strangers, made fit for one line of a picture."""

from __future__ import annotations

LONGEST_NAME = 64
LONGEST_FORMULA = 240


def printable(text: str, longest: int = LONGEST_NAME) -> str:
    """`text` on one line, without control characters, its middle left out when it is longer than `longest`.

    >>> printable("a\\x1b[31mb\\nc"), printable("abcdefghij", 7)
    ('a[31mb c', 'abc...j')
    """
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    if len(line) <= longest:
        return line
    ahead = (longest - 2) // 2 + 1
    return line[:ahead] + "..." + line[len(line) - (longest - 3 - ahead) :]


def count(number: int, noun: str) -> str:
    """`number` and the noun, in the plural unless it is 1.

    >>> count(1, "trial"), count(1200, "head")
    ('1 trial', '1,200 heads')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"

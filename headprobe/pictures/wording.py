"""Words of strangers, made fit for one line of a picture, and the words for numbers and formats: no matplotlib here."""

from __future__ import annotations

from pathlib import Path

from headprobe.errors import OptionError

FORMATS = ("png", "svg", "pdf")
UNITS = ("bytes", "KiB", "MiB", "GiB")
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


def told_bytes(number: int) -> str:
    """`number` bytes with three digits.

    >>> told_bytes(512), told_bytes(1536), told_bytes(3 * 2**30)
    ('512 bytes', '1.5 KiB', '3 GiB')
    """
    value, unit = float(number), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {UNITS[unit]}"


def format_of(path: Path | str) -> str:
    """`png`, `svg` or `pdf`, from the ending of `path`. Raises `OptionError` for another ending.

    >>> format_of("heads.SVG")
    'svg'
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise OptionError(f"cannot draw {Path(path).name}: its ending must be .png, .svg or .pdf")
    return kind

"""The words and colours of all pictures: strangers' text made fit for one line, numbers, formats, ramps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headprobe.errors import OptionError

# Words of strangers, made fit for one line of a picture, and the words for numbers and formats: no matplotlib here.

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


# The colours of all pictures, as (red, green, blue) from 0 to 255; lightness falls or rises evenly along a ramp.

RGB = tuple[int, int, int]

INK: RGB = (33, 37, 41)
QUIET: RGB = (108, 117, 125)
PAPER: RGB = (255, 255, 255)
RING: RGB = (232, 89, 12)

# score 0 -> 1 on paper: a warm grey tile, then ever deeper water
ON_PAPER: tuple[RGB, ...] = (
    (241, 241, 237),
    (207, 226, 222),
    (148, 200, 204),
    (84, 163, 185),
    (42, 117, 158),
    (28, 73, 121),
    (20, 35, 74),
)
# score 0 -> -1 on paper (only `contrast` goes below 0)
BELOW_ZERO: tuple[RGB, ...] = ((241, 241, 237), (240, 215, 180), (222, 170, 110), (180, 116, 52), (120, 66, 18))
# score 0 -> 1 in a terminal: night to daylight
AT_NIGHT: tuple[RGB, ...] = (
    (30, 33, 48),
    (35, 58, 96),
    (31, 98, 129),
    (46, 145, 140),
    (126, 190, 120),
    (232, 218, 110),
    (255, 250, 214),
)
# score 0 -> -1 in a terminal
BELOW_NIGHT: tuple[RGB, ...] = ((30, 33, 48), (92, 45, 55), (168, 70, 62), (226, 120, 84))


def along(ramp: Sequence[RGB], fraction: float) -> RGB:
    """The colour at `fraction` of the way along the ramp; beyond its ends, the end.

    >>> along([(0, 0, 0), (100, 200, 50)], 0.5)
    (50, 100, 25)
    """
    place = min(max(fraction, 0.0), 1.0) * (len(ramp) - 1)
    index = min(int(place), len(ramp) - 2)
    low, high, part = ramp[index], ramp[index + 1], place - index
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue


def is_dark(colour: RGB) -> bool:
    """Whether white reads better than ink on this colour."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140


def hexadecimal(colour: RGB) -> str:
    """`#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)

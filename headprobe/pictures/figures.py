"""A figure as a file: the house's style, the formats, and bytes that hold no date."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from headprobe.pictures.colours import PAPER, hexadecimal

DPI = 200
_NO_DATES = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": "headprobe"},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": "headprobe"},
}
_STYLE = {
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "headprobe",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "axes.unicode_minus": False,
}


def figure_bytes(draw: Callable[[], Figure], kind: str) -> bytes:
    """What `draw` makes, as a file of `kind`; the same figure gives the same bytes."""
    buffer = BytesIO()
    with house_style():
        figure = draw()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=_NO_DATES[kind], facecolor=hexadecimal(PAPER))
    return buffer.getvalue()


@contextmanager
def house_style() -> Iterator[None]:
    """Whatever a user's matplotlibrc says, the same picture; letters that the font lacks are drawn as boxes."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams
        settings.update(_STYLE)
        yield

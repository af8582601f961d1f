"""Score files of all programs. A format is one file here: how it is recognised, read, written, and what that loses.

To add one, write the file with a `Format` at its end and name it below; another package names its own in the group
`headprobe.formats`. Files are offered to the formats in this order, to those of other packages last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headprobe.registry import LatePart, Registry

if TYPE_CHECKING:
    from headprobe.scores.formats.format import Format

_WRITTEN = {
    "headprobe": LatePart("headprobe.scores.formats.native:NATIVE"),
    "headkv": LatePart("headprobe.scores.formats.keyed:KEYED"),
    "duo": LatePart("headprobe.scores.formats.duo:DUO"),
}
_READ_ONLY = {
    "qrhead": LatePart("headprobe.scores.formats.qrhead:QRHEAD"),
    "kvzip": LatePart("headprobe.scores.formats.kvzip:KVZIP"),
    "locos": LatePart("headprobe.scores.formats.locos:LOCOS"),
}
FORMATS: Registry[Format] = Registry(
    "headprobe.formats", "format", _WRITTEN | _READ_ONLY, LatePart("headprobe.scores.formats.format:Format")
)


def names_to_write() -> list[str]:
    """Formats that can be written, by name; one of another package, which is not loaded for this, may turn out not to.

    >>> names_to_write()[:3]
    ['headprobe', 'headkv', 'duo']
    """
    return [name for name in FORMATS if name not in _READ_ONLY]

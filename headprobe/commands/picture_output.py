"""Where a command's picture goes: never over a file of another's, nor over one that it was drawn from, unasked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headprobe.pictures.style import format_of
from headprobe.scores.files import check_place, refuse_one_place, write_atomically


@dataclass(frozen=True)
class PictureFile:
    """A picture that is to be written to `path`, a `kind` of png, svg or pdf."""

    path: Path
    kind: str
    overwrite: bool

    def write(self, draw: Callable[[], Any]) -> None:
        """Write the figure that `draw` makes. Raises as `write_atomically`."""
        write_atomically(self.path, figures().figure_bytes(draw, self.kind), self.overwrite)


def picture_file(path: Path, overwrite: bool, inputs: Mapping[str, Path | str | None]) -> PictureFile:
    """The picture at `path`, if it can be written there; asked before any work.

    `inputs`: what the picture is drawn from, by what it is called in a message. Raises `OptionError` for another ending
    and where an input would be written over, `OutputExistsError` and `FileAccessError` as `write_atomically`.
    """
    kind = format_of(path)
    refuse_one_place({"the picture": path}, inputs)
    check_place(path, overwrite)
    return PictureFile(path, kind, overwrite)


def figures() -> Any:
    """The module `headprobe.pictures.figures`, loaded when something is drawn."""
    from headprobe.pictures import figures as drawn  # matplotlib, only once there is something to draw

    return drawn

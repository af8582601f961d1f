"""Named parts of one kind: those that are built in, and those that other packages bring through entry points.

A selector, an allocator, an estimator or a score format is one object in one file. Ours are listed where their registry
is made; a package of somebody else's names its own in its pyproject.toml and is found once it is installed:

    [project.entry-points."headprobe.selectors"]
    value-norm = "their_package:ValueNorm"

Nothing is imported before it is asked for by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from headprobe.errors import OptionError

Part = TypeVar("Part")


class Registry(Mapping[str, Part], Generic[Part]):
    """The parts of one kind by name, ours first, in the order in which they are listed.

    `group`: the entry-point group of other packages, such as `headprobe.selectors`; `noun`: what messages call a part,
    such as "selector"; `built_in`: each name with its object, or with `module:attribute` where that is loaded late.

    >>> colours = Registry[str]("headprobe.doctest", "colour", {"red": "#f00"})
    >>> colours["red"], list(colours)
    ('#f00', ['red'])
    >>> colours["blue"]
    Traceback (most recent call last):
    headprobe.errors.OptionError: unknown colour 'blue': known are red
    """

    def __init__(self, group: str, noun: str, built_in: Mapping[str, Part | LatePart]) -> None:
        self.group, self.noun = group, noun
        self._built_in: dict[str, Part | LatePart] = dict(built_in)

    def __getitem__(self, name: str) -> Part:
        """The part called `name`. Raises `OptionError` for a name that nobody has, or that cannot be loaded."""
        found = self._built_in.get(name)
        if found is None:
            if name not in self._foreign:
                raise OptionError(f"unknown {self.noun} {name!r:.60}: known are {', '.join(self)}")
            found = self._built_in[name] = self._load(self._foreign[name])
        elif isinstance(found, LatePart):
            found = self._built_in[name] = cast("Part", found.load())
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in
        yield from (name for name in self._foreign if name not in self._built_in)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._foreign

    @cached_property
    def _foreign(self) -> dict[str, EntryPoint]:
        """Parts of other packages. One that takes a name of ours is left out: ours keep their meaning."""
        return {point.name: point for point in entry_points(group=self.group) if point.name not in self._built_in}

    def _load(self, point: EntryPoint) -> Part:
        try:
            return cast("Part", point.load())
        except Exception as error:
            package = "a package" if point.dist is None else point.dist.name
            reason = f"{type(error).__name__}: {error}"
            raise OptionError(
                f"the {self.noun} {point.name!r} of {package} cannot be loaded from {point.value}: {reason}"
            ) from error


class LatePart:
    """A built-in part that is imported when it is first asked for: `LatePart("package.module:attribute")`."""

    def __init__(self, place: str) -> None:
        self.place = place

    def load(self) -> Any:
        """The object behind the name."""
        module, _, attribute = self.place.partition(":")
        return getattr(import_module(module), attribute)

"""Named parts of one kind: those that are built in, and those that other packages bring through entry points.

A selector, an allocator, an estimator or a score format is one object in one file. Ours are listed where their registry
is made; a package of somebody else's names its own in its pyproject.toml and is found once it is installed:

    [project.entry-points."headprobe.selectors"]
    value-norm = "their_package:ValueNorm"

Nothing is imported before it is asked for by name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from headprobe.errors import OptionError

Part = TypeVar("Part")


class Registry(Mapping[str, Part], Generic[Part]):
    """The parts of one kind by name, ours first, in the order in which they are listed.

    `group`: the entry-point group of other packages, such as `headprobe.selectors`; `noun`: what messages call a part,
    such as "selector"; `built_in`: each name with its object, or with `module:attribute` where that is loaded late;
    `kind`: the protocol or class that says what every part has, against which parts of others are held. `ours` are the
    names of the built-in parts.

    >>> colours = Registry[str]("headprobe.doctest", "colour", {"red": "#f00"})
    >>> colours["red"], list(colours)
    ('#f00', ['red'])
    >>> colours["blue"]
    Traceback (most recent call last):
    headprobe.errors.OptionError: unknown colour 'blue': known are red
    """

    def __init__(
        self, group: str, noun: str, built_in: Mapping[str, Part | LatePart], kind: LatePart | None = None
    ) -> None:
        self.group, self.noun = group, noun
        self.ours = frozenset(built_in)
        self._parts: dict[str, Part | LatePart] = dict(built_in)
        self._kind = kind

    def __getitem__(self, name: str) -> Part:
        """The part called `name`. Raises `OptionError` for a name that nobody has, or that cannot be loaded."""
        found = self._parts.get(name)
        if found is None:
            if name not in self._foreign:
                raise OptionError(f"unknown {self.noun} {name!r:.60}: known are {', '.join(self)}")
            found = self._parts[name] = self._load(self._foreign[name])
        elif isinstance(found, LatePart):
            found = self._parts[name] = cast("Part", found.load())
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._parts, *self._foreign]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._parts or name in self._foreign

    def add(self, name: str, part: Part) -> None:
        """Add a part for as long as this process runs, as a notebook does. Raises `OptionError` for a name that is
        taken, and for a part that lacks something.

        >>> colours = Registry[str]("headprobe.doctest", "colour", {"red": "#f00"})
        >>> colours.add("blue", "#00f")
        >>> dict(colours)
        {'red': '#f00', 'blue': '#00f'}
        """
        if name in self:
            raise OptionError(f"there is a {self.noun} {name!r:.60} already")
        self._check(name, part, f"the {self.noun} {name!r}")
        self._parts[name] = part

    @cached_property
    def _foreign(self) -> dict[str, EntryPoint]:
        """Parts of other packages. One that takes a name of ours is left out: ours keep their meaning."""
        points = _entry_points(tuple(sys.path)).select(group=self.group)
        return {point.name: point for point in points if point.name not in self._parts}

    def _load(self, point: EntryPoint) -> Part:
        package = "a package" if point.dist is None else point.dist.name
        what = f"the {self.noun} {point.name!r} of {package}"
        try:
            part = cast("Part", point.load())
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise OptionError(f"{what} cannot be loaded from {point.value}: {reason}") from error
        self._check(point.name, part, what)
        return part

    def _check(self, name: str, part: object, what: str) -> None:
        """Hold a part of somebody else's against `kind`: better now than in the middle of a run."""
        if self._kind is None:
            return
        lacking = [member for member in _members(self._kind.load()) if not hasattr(part, member)]
        if lacking:
            raise OptionError(f"{what} lacks {', '.join(lacking)}")
        if getattr(part, "name", name) != name:
            raise OptionError(f"{what} calls itself {getattr(part, 'name', name)!r:.60}")


class LatePart:
    """A built-in part that is imported when it is first asked for: `LatePart("package.module:attribute")`."""

    def __init__(self, place: str) -> None:
        self.place = place

    def load(self) -> Any:
        """The object behind the name."""
        module, _, attribute = self.place.partition(":")
        return getattr(import_module(module), attribute)


@lru_cache(maxsize=1)
def _entry_points(path: tuple[str, ...]) -> Any:
    """Those of all packages on `path`, which is `sys.path`; looked up once, since all registries ask."""
    return entry_points()


def _members(kind: type) -> list[str]:
    """What a protocol or a dataclass says that every part has."""
    return [name for name in {**kind.__annotations__, **vars(kind)} if not name.startswith("_")]

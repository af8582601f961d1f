from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest

from headprobe.errors import OptionError
from headprobe.registry import LatePart, Registry

GROUP = "headprobe.parts_of_this_test"


class Wanted(Protocol):
    """What the parts of a registry in these tests have."""

    name: str

    @property
    def depth(self) -> int:
        """A number."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of somebody else's, as pip leaves it, with three entry points."""
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        f"[{GROUP}]\ngreen = their_package:GREEN\nred = their_package:RED\nbroken = their_package:NOWHERE\n"
    )
    (tmp_path / "their_package.py").write_text("GREEN = '#0f0'\nRED = 'not ours'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("their_package", None)


def test_parts_of_other_packages_come_behind_ours(installed: Path) -> None:
    colours = Registry[str](GROUP, "colour", {"red": "#f00"})
    assert list(colours) == ["red", "green", "broken"]
    assert (len(colours), "green" in colours, "blue" in colours) == (3, True, False)
    assert colours["green"] == "#0f0"


def test_a_name_of_ours_keeps_its_meaning(installed: Path) -> None:
    assert Registry[str](GROUP, "colour", {"red": "#f00"})["red"] == "#f00"


def test_an_unknown_name_is_refused_with_those_that_are_known(installed: Path) -> None:
    with pytest.raises(OptionError, match=r"unknown colour 'blue': known are red, green, broken$"):
        Registry[str](GROUP, "colour", {"red": "#f00"})["blue"]


def test_a_part_that_cannot_be_loaded_is_named_with_its_package(installed: Path) -> None:
    colours = Registry[str](GROUP, "colour", {})
    with pytest.raises(OptionError, match=r"colour 'broken' of their-package cannot be loaded from their_package:NOWH"):
        colours["broken"]
    assert colours["green"] == "#0f0"


def test_late_parts_are_imported_when_they_are_asked_for() -> None:
    parts = Registry[type](GROUP, "part", {"counter": LatePart("collections:Counter")})
    assert parts["counter"] is Counter
    assert parts["counter"] is Counter


def test_a_part_that_is_added_is_there_at_once_and_a_name_that_is_taken_is_refused(installed: Path) -> None:
    colours = Registry[str](GROUP, "colour", {"red": "#f00"})
    colours.add("blue", "#00f")
    assert (colours["blue"], list(colours)) == ("#00f", ["red", "blue", "green", "broken"])
    for name in ("red", "green", "blue"):
        with pytest.raises(OptionError, match=f"there is a colour '{name}' already"):
            colours.add(name, "#000")


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (SimpleNamespace(name="deep"), "the part 'deep' lacks depth"),
        (SimpleNamespace(), "the part 'deep' lacks name, depth"),
        (SimpleNamespace(name="flat", depth=1), "the part 'deep' calls itself 'flat'"),
    ],
)
def test_a_part_is_held_against_the_protocol_of_its_registry(part: Any, told: str) -> None:
    parts = Registry[Any](GROUP, "part", {}, LatePart("tests.test_registry:Wanted"))
    with pytest.raises(OptionError, match=told):
        parts.add("deep", part)
    parts.add("deep", SimpleNamespace(name="deep", depth=1))
    assert parts["deep"].depth == 1

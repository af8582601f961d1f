from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from headprobe.compression.allocators import Fixed
from headprobe.compression.policies import (
    ALLOCATORS,
    SELECTORS,
    Policy,
    has_option,
    make_policy,
    make_policy_with,
    with_selector,
)
from headprobe.compression.selectors import OneColumn, Window
from headprobe.errors import OptionError


@dataclass(frozen=True)
class Theirs(OneColumn):
    """A selector of somebody else's: `window` and a parameter that no option of ours is called after."""

    window: int = 3
    share: int = 4
    name: ClassVar[str] = "theirs"


@dataclass(frozen=True)
class Steps(Fixed):
    """An allocator with a parameter of its own, and one that is called as one of ours."""

    steps: int = 2
    beta: float = 5.0
    name: ClassVar[str] = "steps"


@pytest.mark.parametrize("registry", [SELECTORS, ALLOCATORS])
def test_parts_are_called_as_they_are_listed(registry) -> None:
    assert [part.name for part in registry.values()] == list(registry)


def test_options_go_to_the_part_that_has_such_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTORS._parts, "theirs", Theirs)
    monkeypatch.setitem(ALLOCATORS._parts, "steps", Steps)
    made = make_policy("theirs+steps", window=9, share=2, steps=7, beta=2.0, sinks=5)
    assert (made.selector, made.allocator, made.sinks) == (Theirs(9, 2), Steps(7, 2.0), 5)
    assert made.floor == 14
    kept = make_policy_with("theirs+steps", {"window": 6, "pool": 3})
    assert kept.selector == Theirs(6)


def test_an_option_that_no_part_has_is_refused_with_its_value() -> None:
    with pytest.raises(OptionError, match=r"^the policy window\+uniform has no beta \(given: 1.5\)$"):
        make_policy("window+uniform", window=4, beta=1.5)
    with pytest.raises(OptionError, match="the policy snapkv has no name of"):
        make_policy("snapkv", **{"name of": 1})


def test_what_is_no_field_is_no_option() -> None:
    policy = make_policy("headkv-r2")
    assert [has_option(policy, name) for name in ("window", "beta", "sinks", "name", "needs_scores")] == [
        *(True, True, False, False, False)
    ]


def test_a_selector_brings_the_sinks_of_its_pairs() -> None:
    assert make_policy("sink-recent+uniform").sinks == 4
    assert make_policy("accumulated+uniform").sinks == 0


def test_only_the_parameters_that_a_selector_has_are_set() -> None:
    policy = Policy("mine", Theirs())
    assert with_selector(policy, {"window": 8, "pool": 5}).selector == Theirs(8)
    assert with_selector(make_policy("snapkv"), {"window": 2, "pool": 5}).selector == Window(2, 5)
    assert with_selector(make_policy("h2o"), {"window": 2}) == make_policy("h2o")

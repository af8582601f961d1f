"""Named policies: a selector and an allocator that belong together. Any other pair is made by naming the two parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from headprobe.compression.allocators import ALLOCATORS, Adaptive, Allocator, HeadScore, Pyramid, RetrievalFull, Uniform
from headprobe.compression.selectors import SELECTORS, Accumulated, History, Selector, SinkRecent, Window
from headprobe.errors import OptionError


@dataclass(frozen=True)
class Policy:
    """Which entries a cache keeps (`selector`) and how many in each head (`allocator`).

    `sinks`: first positions that always stay. `value_aware`: importance is multiplied by the L1 norm of the entry's
    value (VATP), as `(importance + value_eps) * norm`. `evicts_while_decoding`: capacities hold for new entries too,
    which take the place of others; else new entries are added. `compensates`: one entry of each shortened head is the
    mean of what it dropped, weighted by its number (Razor). `scores`: the method whose head scores it wants, or None.
    `keeps_all`: nothing is ever evicted (`full`). Raises `OptionError` where the parts don't fit.
    """

    name: str
    selector: Selector = field(default_factory=SinkRecent)
    allocator: Allocator = field(default_factory=Uniform)
    sinks: int = 0
    value_aware: bool = False
    value_eps: float = 0.0
    evicts_while_decoding: bool = False
    compensates: bool = False
    scores: str | None = None
    keeps_all: bool = False

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise OptionError(f"sinks is {self.sinks}, need 0 or more")
        if self.value_eps < 0:
            raise OptionError(f"the value norm's eps is {self.value_eps}, need 0 or more")
        if self.evicts_while_decoding and not self.selector.follows_decoding:
            raise OptionError(f"the selector {self.selector.name} cannot evict while decoding")

    @property
    def floor(self) -> int:
        """Entries that every head keeps: window and sinks."""
        return self.selector.window + self.sinks

    @property
    def needs_scores(self) -> bool:
        """Whether it needs head scores."""
        return self.allocator.needs_scores


def _snapkv() -> Policy:
    return Policy("snapkv", Window())


def _headkv(name: str, method: str, **more: Any) -> Policy:
    return Policy(name, Window(), HeadScore(), scores=method, **more)


POLICIES: dict[str, Callable[[], Policy]] = {
    "full": lambda: Policy("full", keeps_all=True),
    "streaming-llm": lambda: Policy("streaming-llm", SinkRecent(), sinks=4, evicts_while_decoding=True),
    "h2o": lambda: Policy("h2o", Accumulated(), evicts_while_decoding=True),
    "scissorhands": lambda: Policy("scissorhands", History(), evicts_while_decoding=True),
    "snapkv": _snapkv,
    "pyramidkv": lambda: Policy("pyramidkv", Window(), Pyramid()),
    "ada-snapkv": lambda: Policy("ada-snapkv", Window(), Adaptive()),
    "headkv-r": lambda: _headkv("headkv-r", "retrieval"),
    "headkv-er": lambda: _headkv("headkv-er", "enhanced"),
    "headkv-r2": lambda: _headkv("headkv-r2", "r2"),
    "razor": lambda: Policy("razor", SinkRecent(), RetrievalFull(), sinks=4, compensates=True, scores="retrieval"),
    "duo": lambda: Policy("duo", SinkRecent(), RetrievalFull(), sinks=4, scores="duo"),
    "vatp-h2o": lambda: Policy("vatp-h2o", Accumulated(), sinks=4, value_aware=True, evicts_while_decoding=True),
    "vatp-scissorhands": lambda: Policy(
        "vatp-scissorhands", History(), sinks=4, value_aware=True, evicts_while_decoding=True
    ),
    "headkv-vatp": lambda: _headkv("headkv-vatp", "r2", sinks=4, value_aware=True),
}
DEFAULT_POLICY = "headkv-r2"


def make_policy(
    name: str = DEFAULT_POLICY,
    *,
    beta: float | None = None,
    window: int | None = None,
    pool: int | None = None,
    sinks: int | None = None,
    value_aware: bool | None = None,
    value_eps: float | None = None,
    compat: str | None = None,
) -> Policy:
    """The policy called `name`, with options changed: a named one, or `SELECTOR+ALLOCATOR` such as `window+pyramid`.

    Raises `OptionError` for an unknown name or an option that the policy does not have.

    >>> make_policy("snapkv", window=16).selector
    Window(window=16, pool=7)
    >>> make_policy("accumulated+head-score", beta=1.1).allocator
    HeadScore(beta=1.1, compat=None)
    """
    policy = POLICIES[name]() if name in POLICIES else _pair(name)
    policy = _change(policy, "selector", window=window, pool=pool)
    policy = _change(policy, "allocator", beta=beta, compat=compat)
    own: dict[str, Any] = {"sinks": sinks, "value_aware": value_aware, "value_eps": value_eps}
    return replace(policy, **{key: value for key, value in own.items() if value is not None})


def has_option(policy: Policy, option: str) -> bool:
    """Whether `policy` knows `window`, `pool`, `beta`, `compat`, or (for policies that have sinks) `sinks`."""
    if option == "sinks":
        return policy.sinks > 0
    return any(option in getattr(part, "__dataclass_fields__", {}) for part in (policy.selector, policy.allocator))


def make_policy_with(name: str, options: Mapping[str, Any]) -> Policy:
    """The policy called `name`, changed by those of `options` that it has (None leaves one as it is)."""
    plain = make_policy(name)
    return make_policy(name, **{key: value for key, value in options.items() if has_option(plain, key)})


def _pair(name: str) -> Policy:
    first, plus, second = name.partition("+")
    if not plus or first not in SELECTORS or second not in ALLOCATORS:
        raise OptionError(
            f"unknown policy {name!r}: known are {', '.join(POLICIES)}, and SELECTOR+ALLOCATOR of "
            f"{', '.join(SELECTORS)} and {', '.join(ALLOCATORS)}"
        )
    allocator = ALLOCATORS[second]()
    return Policy(
        name, SELECTORS[first](), allocator, sinks=4 if first == SinkRecent.name else 0,
        scores="r2" if allocator.needs_scores else None,
    )  # fmt: skip


def _change(policy: Policy, part: str, **options: Any) -> Policy:
    """`policy` with options of its selector or allocator changed; `OptionError` where it has no such option."""
    given = {key: value for key, value in options.items() if value is not None}
    if not given:
        return policy
    old: Any = getattr(policy, part)
    fields = set(getattr(old, "__dataclass_fields__", {}))
    for key, value in given.items():
        if key not in fields:
            raise OptionError(f"the policy {policy.name} has no {key} (given: {value})")
    changed: Any = {part: replace(old, **given)}
    return replace(policy, **changed)

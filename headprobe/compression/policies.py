"""Policies: named pairs of a selector and an allocator, and what one compression does with them: its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headprobe.compression.budgets import BudgetRequest, Floats, Ints
from headprobe.errors import OptionError
from headprobe.registry import LatePart, Registry

if TYPE_CHECKING:
    from headprobe.compression.allocators import Allocator
    from headprobe.compression.selectors import Selector
    from headprobe.models.placement import HeadSpread


# Selectors, allocators and named policies: a selector and an allocator that belong together, or any pair by two
# names.
#
# Nothing here imports torch before a policy is made, so that help texts can list all names.

SELECTORS: Registry[type[Selector]] = Registry(
    "headprobe.selectors",
    "selector",
    {
        "window": LatePart("headprobe.compression.selectors:Window"),
        "accumulated": LatePart("headprobe.compression.selectors:Accumulated"),
        "history": LatePart("headprobe.compression.selectors:History"),
        "sink-recent": LatePart("headprobe.compression.selectors:SinkRecent"),
    },
    LatePart("headprobe.compression.selectors:Selector"),
)
ALLOCATORS: Registry[type[Allocator]] = Registry(
    "headprobe.allocators",
    "allocator",
    {
        "uniform": LatePart("headprobe.compression.allocators:Uniform"),
        "pyramid": LatePart("headprobe.compression.allocators:Pyramid"),
        "adaptive": LatePart("headprobe.compression.allocators:Adaptive"),
        "head-score": LatePart("headprobe.compression.allocators:HeadScore"),
        "retrieval-full": LatePart("headprobe.compression.allocators:RetrievalFull"),
    },
    LatePart("headprobe.compression.allocators:Allocator"),
)
RAZOR_SHARE = 0.15  # of the heads keep all: the best 14 % by induction and the best 1 % by echo
DEFAULT_SCORES = "r2"  # the method that an allocator of a pair takes where it needs scores
_SWITCHES = ("sinks", "value_aware", "value_eps")


@dataclass(frozen=True)
class Policy:
    """Which entries a cache keeps (`selector`) and how many in each head (`allocator`).

    `sinks`: first positions that always stay. `value_aware`: importance is multiplied by the L1 norm of the entry's
    value (VATP), as `(importance + value_eps) * norm`. `evicts_while_decoding`: capacities hold for new entries too,
    which take the place of others; else new entries are added. `compensates`: one entry of each shortened head is the
    mean of what it dropped, weighted by its number (Razor). `scores`: the method whose head scores it wants, or None;
    `scores_beside`: a second one whose best heads count too (`known_scores.with_best_of`).
    `keeps_all`: nothing is ever evicted (`full`). Raises `OptionError` where the parts do not fit together.
    """

    name: str
    selector: Selector = field(default_factory=lambda: SELECTORS["sink-recent"]())
    allocator: Allocator = field(default_factory=lambda: ALLOCATORS["uniform"]())
    sinks: int = 0
    value_aware: bool = False
    value_eps: float = 0.0
    evicts_while_decoding: bool = False
    compensates: bool = False
    scores: str | None = None
    scores_beside: str | None = None
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


def _named(name: str, selector: str, allocator: str, **more: Any) -> Policy:
    return Policy(name, SELECTORS[selector](), ALLOCATORS[allocator](), **more)


def _headkv(name: str, method: str, **more: Any) -> Policy:
    return _named(name, "window", "head-score", scores=method, **more)


def _h2o(name: str, **more: Any) -> Policy:
    return _named(name, "accumulated", "uniform", evicts_while_decoding=True, **more)


def _scissorhands(name: str, **more: Any) -> Policy:
    return _named(name, "history", "uniform", evicts_while_decoding=True, **more)


def _two_kinds(name: str, method: str, **more: Any) -> Policy:
    return _named(name, "sink-recent", "retrieval-full", sinks=4, scores=method, **more)


def _razor(name: str) -> Policy:
    policy = _two_kinds(name, "induction", compensates=True, scores_beside="echo")
    return replace(policy, allocator=_changed(policy.allocator, {"most_full": RAZOR_SHARE}))


POLICIES: dict[str, Callable[[], Policy]] = {
    "full": lambda: Policy("full", keeps_all=True),
    "streaming-llm": lambda: _named("streaming-llm", "sink-recent", "uniform", sinks=4, evicts_while_decoding=True),
    "h2o": lambda: _h2o("h2o"),
    "scissorhands": lambda: _scissorhands("scissorhands"),
    "snapkv": lambda: _named("snapkv", "window", "uniform"),
    "pyramidkv": lambda: _named("pyramidkv", "window", "pyramid"),
    "ada-snapkv": lambda: _named("ada-snapkv", "window", "adaptive"),
    "headkv-r": lambda: _headkv("headkv-r", "retrieval"),
    "headkv-er": lambda: _headkv("headkv-er", "enhanced"),
    "headkv-r2": lambda: _headkv("headkv-r2", "r2"),
    "razor": lambda: _razor("razor"),
    "duo": lambda: _two_kinds("duo", "duo"),
    "vatp-h2o": lambda: _h2o("vatp-h2o", sinks=4, value_aware=True),
    "vatp-scissorhands": lambda: _scissorhands("vatp-scissorhands", sinks=4, value_aware=True),
    "headkv-vatp": lambda: _headkv("headkv-vatp", "r2", sinks=4, value_aware=True),
}
DEFAULT_POLICY = "headkv-r2"


def make_policy(name: str = DEFAULT_POLICY, **options: Any) -> Policy:
    """The policy called `name`, with options changed: a named one, or `SELECTOR+ALLOCATOR` such as `window+pyramid`.

    An option is a switch of the policy (`sinks`, `value_aware`, `value_eps`) or a field of its selector or allocator,
    such as `window`, `pool`, `beta` or `compat`; None leaves it as it is. Raises `OptionError` for an unknown name or
    an option that the policy does not have.

    >>> make_policy("snapkv", window=16).selector
    Window(window=16, pool=7)
    >>> make_policy("accumulated+head-score", beta=1.1).allocator
    HeadScore(beta=1.1, compat=None)
    """
    policy = POLICIES[name]() if name in POLICIES else _pair(name)
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if key not in _SWITCHES and not has_option(policy, key):
            raise OptionError(f"the policy {policy.name} has no {key} (given: {value})")
    switches: dict[str, Any] = {key: value for key, value in given.items() if key in _SWITCHES}
    parts = {"selector": _changed(policy.selector, given), "allocator": _changed(policy.allocator, given)}
    return replace(policy, **parts, **switches)


def has_option(policy: Policy, option: str) -> bool:
    """Whether the selector or the allocator of `policy` has such a field; `sinks`, whether it has sinks."""
    if option == "sinks":
        return policy.sinks > 0
    return option in parameters(policy.selector) or option in parameters(policy.allocator)


def parameters(part: Any) -> tuple[str, ...]:
    """The names of what can be set on a selector or an allocator: the fields of its dataclass.

    >>> parameters(make_policy("snapkv").selector)
    ('window', 'pool')
    """
    return tuple(each.name for each in fields(part) if each.init) if is_dataclass(part) else ()


def make_policy_with(name: str, options: Mapping[str, Any]) -> Policy:
    """The policy called `name`, changed by those of `options` that it has (None leaves one as it is)."""
    plain = make_policy(name)
    return make_policy(name, **{key: value for key, value in options.items() if has_option(plain, key)})


def with_selector(policy: Policy, given: Mapping[str, Any]) -> Policy:
    """`policy` with those of the `given` parameters that its selector has."""
    return replace(policy, selector=_changed(policy.selector, given))


def _pair(name: str) -> Policy:
    first, plus, second = name.partition("+")
    if not plus or first not in SELECTORS or second not in ALLOCATORS:
        raise OptionError(
            f"unknown policy {name!r}: known are {', '.join(POLICIES)}, and SELECTOR+ALLOCATOR of "
            f"{', '.join(SELECTORS)} and {', '.join(ALLOCATORS)}"
        )
    selector, allocator = SELECTORS[first](), ALLOCATORS[second]()
    scores = DEFAULT_SCORES if allocator.needs_scores else None
    return Policy(name, selector, allocator, sinks=selector.default_sinks, scores=scores)


def _changed(part: Any, given: Mapping[str, Any]) -> Any:
    """`part` with those of `given` that it has."""
    own = {key: value for key, value in given.items() if key in parameters(part) and key not in _SWITCHES}
    return replace(part, **own) if own else part


# What one compression does: a policy, a budget, and the head scores that go with them.

UNLIMITED = 1 << 40  # tokens: longer than any prompt


def check_ratio(ratio: float) -> None:
    """Raise `OptionError` for a share of the prompt that is not in (0, 1]."""
    if not 0.0 < ratio <= 1.0:
        raise OptionError(f"a ratio of {ratio} is out of range, need more than 0 and at most 1")


@dataclass(frozen=True, eq=False)
class CompressionPlan:
    """A policy with its budget, for a model with `num_layers` compressible layers of `num_kv_heads` KV heads.

    `budget`: mean entries per KV head, window and sinks included; or `ratio` of the prompt's length, in (0, 1].
    `head_scores` `[L, G]`, not negative, for policies that need them. `spread`: where the heads lie on several
    processes, which of them are this one's; budgets follow from all heads, and `capacities` and `limits` give those of
    its own. Raises `OptionError` for what doesn't fit.
    """

    policy: Policy
    num_layers: int
    num_kv_heads: int
    budget: int | None = None
    ratio: float | None = None
    head_scores: Floats | None = None
    spread: HeadSpread | None = None
    _known: dict[int, Ints] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.policy.keeps_all:
            return
        if (self.budget is None) == (self.ratio is None):
            raise OptionError(f"the policy {self.policy.name} needs a budget or a ratio, one of the two")
        if self.ratio is not None:
            check_ratio(self.ratio)
        if self.policy.needs_scores and self.head_scores is None:
            raise OptionError(f"the policy {self.policy.name} needs head scores; `headprobe score` makes them")
        if self.budget is not None:
            self._request(UNLIMITED)

    def budget_for(self, prompt_tokens: int) -> int:
        """Mean entries per KV head for a prompt of `prompt_tokens` tokens."""
        if self.policy.keeps_all:
            return prompt_tokens
        if self.budget is not None:
            return self.budget
        assert self.ratio is not None
        return max(1, round(self.ratio * prompt_tokens))

    @property
    def own_kv_heads(self) -> int:
        """KV heads of a layer that lie on this process."""
        return self.num_kv_heads if self.spread is None else self.num_kv_heads // self.spread.size

    def capacities(self, prompt_tokens: int) -> Ints:
        """Entries `[L, own heads]` that each KV head keeps of such a prompt; never more than it has tokens."""
        return self._own(self.all_capacities(prompt_tokens))

    def _own(self, table: Ints) -> Ints:
        return table if self.spread is None else table[:, self.spread.own(self.num_kv_heads)]

    def all_capacities(self, prompt_tokens: int) -> Ints:
        """As `capacities`, of all heads: `[L, G]`."""
        if prompt_tokens not in self._known:
            if self.policy.keeps_all or self.budget_for(prompt_tokens) >= prompt_tokens:
                request = BudgetRequest(prompt_tokens, prompt_tokens, self.num_layers, self.num_kv_heads)
                self._known[prompt_tokens] = _everything(request)
            else:
                self._known[prompt_tokens] = self.policy.allocator.capacities(self._request(prompt_tokens))
        return self._known[prompt_tokens]

    def limits(self, prompt_tokens: int) -> Ints:
        """Entries `[L, own heads]` that each may hold while decoding, for policies that evict then."""
        budget = self.budget_for(prompt_tokens)
        return self.capacities(prompt_tokens if budget < prompt_tokens else UNLIMITED)

    def _request(self, prompt_tokens: int) -> BudgetRequest:
        return BudgetRequest(
            budget=self.budget_for(prompt_tokens),
            prompt_tokens=prompt_tokens,
            num_layers=self.num_layers,
            num_kv_heads=self.num_kv_heads,
            floor=self.policy.floor,
            head_scores=self.head_scores,
        )


def _everything(request: BudgetRequest) -> Ints:
    return np.full(request.shape, request.prompt_tokens, dtype=np.int64)

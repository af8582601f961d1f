"""The policy file: a policy with all its options, its budget and head scores, and the model it was chosen for.

    {"schema": "headprobe-policy/1", "policy": "headkv-r2", "options": {"window": 2, "pool": 49, "beta": 1.2},
     "budget": 64, "gqa": "mean", "scores": {"file": "demo--r2.json", "sha256": "..."},
     "model": {"name": "demo", "config_sha256": "...", "weights_sha256": "..."}}

In place of `budget` there may be a `ratio`; `scores` is null for a policy that takes none; `found` may say how the
policy was found. The scores lie beside the file, in `scores/`, or with the bundled model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from headprobe.compression.budgets import check_budget
from headprobe.compression.policies import Policy, check_ratio, make_policy, parameters
from headprobe.errors import FileFormatError, OptionError, shown
from headprobe.evaluation.known_scores import SHIPPED
from headprobe.evaluation.variants import PolicyOptions
from headprobe.home import in_home
from headprobe.models.catalog import bundled_model_folder
from headprobe.models.loading import LoadedModel
from headprobe.scores.any_scores import AnyScores, check_gqa, read_any
from headprobe.scores.files import file_bytes, write_atomically
from headprobe.scores.strict_json import Fields, layout, parse

SCHEMA = "headprobe-policy/1"
_MAX_BYTES = 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SWITCHES = ("sinks", "value_aware", "value_eps")


@dataclass(frozen=True)
class ScoresNamed:
    """Head scores by the name of their file, which says no folder, and the sha256 of its bytes."""

    file: str
    sha256: str


@dataclass(frozen=True)
class ModelNamed:
    """A model by its name and the hashes of its config and weights."""

    name: str
    config_sha256: str
    weights_sha256: str

    @classmethod
    def of(cls, loaded: LoadedModel) -> ModelNamed:
        """The model that is loaded."""
        return cls(loaded.name, loaded.config_sha256, loaded.weights_sha256)


@dataclass(frozen=True)
class PolicyFile:
    """What a policy file holds. `policy` has all options; `found`: how it was found, for a reader only.

    One of `budget` (mean entries per KV head, window and sinks included) and `ratio` of the prompt is None. `path`:
    where it was read from, None before it is written. Raises `OptionError` for what doesn't fit.
    """

    policy: Policy
    model: ModelNamed
    budget: int | None = None
    ratio: float | None = None
    gqa: str = "mean"
    scores: ScoresNamed | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.policy.keeps_all:
            raise OptionError(f"the policy {self.policy.name} keeps everything: a policy file is for those that evict")
        if (self.budget is None) == (self.ratio is None):
            raise OptionError(f"the policy {self.policy.name} needs a budget or a ratio, one of the two")
        if self.budget is not None:
            check_budget(self.budget)
        if self.ratio is not None:
            check_ratio(self.ratio)
        check_gqa(self.gqa)
        if self.policy.needs_scores != (self.scores is not None):
            wants = "needs head scores" if self.policy.needs_scores else "takes no head scores"
            raise OptionError(f"the policy {self.policy.name} {wants}")

    @property
    def options(self) -> dict[str, Any]:
        """All options of the policy. Raises as `options_of`."""
        return options_of(self.policy)

    @property
    def policy_options(self) -> PolicyOptions:
        """As evaluations take them: this very policy under its name, and no recommended window in place of its own."""
        own = self.options
        return PolicyOptions(own.get("window"), own.get("pool"), exact=self.policy)

    def scores_path(self, given: Path | None = None, folder: Path = Path("scores")) -> Path | None:
        """Where its head scores lie: in the file `given`, else beside the policy file, in `folder`, or with the bundled
        model; None where it takes none. Raises `OptionError` where they are not there, or have other bytes.
        """
        if self.scores is None:
            return None
        beside = [] if self.path is None else [self.path.parent]
        folders = [*beside, folder, bundled_model_folder() / SHIPPED]
        places = [place / self.scores.file for place in folders] if given is None else [given]
        there = [place for place in places if place.is_file()]
        for place in there:
            if sha256(file_bytes(place)).hexdigest() == self.scores.sha256:
                return place
        if there:
            raise OptionError(
                f"{there[0]} has changed: {self._name} names scores with sha256 {self.scores.sha256[:12]}..."
            )
        where = f"{given} is not there" if given is not None else f"neither beside it nor in {folder}/ is such a file"
        raise OptionError(
            f"{self._name} names the head scores {self.scores.file!r}: {where}; --scores says where it lies"
        )

    def arguments(self, scores: Path | None = None) -> dict[str, Any]:
        """The keywords of `headprobe.compress`, scores read; `scores` as in `scores_path`."""
        path = self.scores_path(scores)
        table: AnyScores | None = None if path is None else read_any(path)
        return {
            "policy": self.policy, "budget": self.budget, "ratio": self.ratio, "scores": table, "gqa": self.gqa
        }  # fmt: skip

    def remark(self, loaded: LoadedModel) -> str | None:
        """In words that it was chosen for another model; None where it was for this one."""
        if (self.model.config_sha256, self.model.weights_sha256) == (loaded.config_sha256, loaded.weights_sha256):
            return None
        other = "other weights" if self.model.name == loaded.name else self.model.name
        return f"{self._name} was chosen for {other}, not for this {loaded.name}: what it keeps here is not known"

    def write(self, path: Path, *, overwrite: bool = False) -> PolicyFile:
        """Write it, and give it with its `path`. Raises as `write_atomically`."""
        write_atomically(path, layout(self.record()).encode(), overwrite)
        return replace(self, path=path)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        size = {"budget": self.budget} if self.ratio is None else {"ratio": self.ratio}
        record: dict[str, Any] = {"schema": SCHEMA, "policy": self.policy.name, "options": self.options, **size}
        record |= {"gqa": self.gqa, "scores": None if self.scores is None else dict(vars(self.scores))}
        record["model"] = dict(vars(self.model))
        return record | ({"found": dict(self.found)} if self.found else {})

    @property
    def _name(self) -> str:
        return "the policy file" if self.path is None else str(self.path)


def options_of(policy: Policy) -> dict[str, Any]:
    """The options with which `make_policy` gives `policy` by its name. Raises `OptionError` where none do.

    >>> options_of(make_policy("headkv-r2", window=2))
    {'window': 2, 'pool': 7, 'beta': 1.2}
    """
    plain = make_policy(policy.name)
    own = {key: getattr(part, key) for part in (policy.selector, policy.allocator) for key in parameters(part)}
    own |= {key: getattr(policy, key) for key in _SWITCHES if getattr(policy, key) != getattr(plain, key)}
    found = {key: value for key, value in own.items() if value is not None}
    if make_policy(policy.name, **found) != policy or not all(_is_plain(value) for value in found.values()):
        raise OptionError(f"the policy {policy.name} cannot be written down by its name and options")
    return found


def read_policy_file(path: Path | str) -> PolicyFile:
    """The policy file at `path`. Raises `FileFormatError` for anything else, and for an unknown policy or option."""
    place = in_home(path)
    data: Any = parse(file_bytes(place, _MAX_BYTES), place)
    try:
        return replace(_read(Fields(data, "")), path=place)
    except (ValueError, OptionError) as error:
        raise FileFormatError(str(error), place) from None


def _read(given: Fields) -> PolicyFile:
    schema = given.text("schema")
    if schema != SCHEMA:
        raise ValueError(f"schema is {shown(schema)}, need {SCHEMA!r}: this is no policy file that is known here")
    name, options = given.text("policy"), given.block("options").everything()
    plain = make_policy(name)
    for key, value in options.items():
        _check_option(plain, key, value)
    budget = given.integer("budget", 1) if given.has("budget") else None
    ratio = given.number("ratio", 0.0, 1.0) if given.has("ratio") else None
    has_scores = given.has("scores") and given.everything()["scores"] is not None
    made = PolicyFile(
        policy=make_policy(name, **options),
        model=_model(given.block("model")),
        budget=budget,
        ratio=ratio,
        gqa=given.text("gqa"),
        scores=_scores(given.block("scores")) if has_scores else None,
        found=given.block("found").everything() if given.has("found") else {},
    )
    _refuse_rest(given, "")
    return made


def _scores(given: Fields) -> ScoresNamed:
    named = ScoresNamed(given.text("file"), _hash(given, "sha256"))
    if not named.file or named.file in (".", "..") or re.search(r"[/\\:\0]", named.file):
        raise ValueError(f"scores.file is {shown(named.file)}, need the name of a file without a folder")
    _refuse_rest(given, "scores.")
    return named


def _model(given: Fields) -> ModelNamed:
    named = ModelNamed(given.text("name"), _hash(given, "config_sha256"), _hash(given, "weights_sha256"))
    _refuse_rest(given, "model.")
    return named


def _hash(given: Fields, key: str) -> str:
    value = given.text(key)
    if not _SHA256.fullmatch(value):
        raise ValueError(f"{given.name(key)} is {shown(value)}, need 64 digits of 0-9a-f")
    return value


def _refuse_rest(given: Fields, where: str) -> None:
    if given.rest():
        raise ValueError(f"unknown field {shown(where + next(iter(given.rest())))}")


def _check_option(plain: Policy, key: str, value: Any) -> None:
    """Raise `ValueError` for an option that is unknown, or of another type than the policy has there."""
    known = {each: getattr(part, each) for part in (plain.selector, plain.allocator) for each in parameters(part)}
    known |= {each: getattr(plain, each) for each in _SWITCHES}
    if key not in known:
        raise ValueError(f"the policy {plain.name} has no option {shown(key)}")
    usual = known[key]
    kinds = {bool: (bool,), int: (int,), float: (int, float)}.get(type(usual), (str,))
    if type(value) not in kinds:
        words = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(usual), "a text")
        raise ValueError(f"options.{key} is {shown(value)}, need {words}")


def _is_plain(value: Any) -> bool:
    return type(value) in (bool, int, float, str)

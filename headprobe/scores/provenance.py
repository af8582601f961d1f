"""Where scores come from: model, tokenizer, probes, environment, and what is known of a method's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any

# Where scores come from: model, tokenizer, probes and environment.


@dataclass(frozen=True)
class ModelIdentity:
    """The model as given (`id`) and as resolved: revision (a commit hash or None), sha256 of its config, class name.

    `weights_sha256`: of samples of all parameters, see `models.fingerprint`; it changes when a model is retrained.
    `gguf`: the GGUF file that the weights come from, as `file`, `sha256`, `types` (how many tensors are of which type)
    and perhaps `packages`; None for other models. `quantization`: how the weights are held where they are quantized,
    with transformers' `quant_method`, such as "torchao"; None for plain weights.
    """

    id: str
    revision: str | None = None
    config_sha256: str | None = None
    architecture: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    weights_sha256: str | None = None
    gguf: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerIdentity:
    """The tokenizer and its chat template (None where it has none or none was used)."""

    id: str
    sha256: str | None = None
    chat_template_sha256: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """What a stranger needs to measure the scores again.

    `probes` holds at least `needles {name, sha256}`, `haystack {name, sha256, repeats}`, `lengths` (tokens), `depths`
    (percent), `template`, `seed` and the plan's `digest`; more fields are welcome. `environment` is free: versions,
    device, command line without paths. `created_at` is ISO 8601 UTC; None stands for the time of writing.
    """

    model: ModelIdentity
    tokenizer: TokenizerIdentity | None = None
    probes: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    created_at: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "probes", _plain(self.probes))
        object.__setattr__(self, "environment", _plain(self.environment))


def _plain(value: Any) -> Any:
    """The value with mappings as dicts and tuples as lists, as JSON will give it back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


# What is known of a scoring method's numbers: by this the checks know which scores cannot be.
#
# The facts of a method of somebody else's stand in the score files that it makes (`method.parameters.scores`), so
# that they are checked as ours are on a machine that does not have that method.

MASS, COUNT, DIFFERENCE, LOGITS = "mass", "count", "difference", "logits"
STATED_AS = "scores"
STEPS_RULE = "steps_rule"  # in a file's parameters, where it is not that of the answer's length


@dataclass(frozen=True)
class MethodFacts:
    """`least` and `most`: the smallest and largest score that a trial can give; None where unknown or without limit.

    `kind`: `mass` adds up attention, so that scores are hardly ever fractions of few steps; `count` counts hits among
    the N tokens of an answer, so that a trial's scores are multiples of 1/N; any other word, such as `difference` or
    `logits`, and None are not checked.
    """

    least: float | None = None
    most: float | None = None
    kind: str | None = None

    @property
    def can_be_negative(self) -> bool:
        """Whether scores below 0 are possible."""
        return self.least is None or self.least < 0.0

    def record(self) -> dict[str, Any]:
        """As a score file states them.

        >>> MethodFacts(0.0, 1.0, MASS).record()
        {'least': 0.0, 'most': 1.0, 'kind': 'mass'}
        """
        return asdict(self)


METHODS: Mapping[str, MethodFacts] = {
    "r2": MethodFacts(0.0, 1.0, MASS),
    "retrieval": MethodFacts(0.0, 1.0, COUNT),
    "enhanced": MethodFacts(0.0, 1.0, MASS),
    "value": MethodFacts(0.0, 1.0, MASS),
    "contrast": MethodFacts(-1.0, 1.0, DIFFERENCE),
    "mass": MethodFacts(0.0, 1.0, MASS),
    "qr": MethodFacts(-1.0, 1.0, DIFFERENCE),
    "logit": MethodFacts(None, None, LOGITS),
    "reconstruction": MethodFacts(0.0, 1.0, MASS),
    "induction": MethodFacts(0.0, 1.0, MASS),
    "echo": MethodFacts(0.0, 1.0, MASS),
}
"""The methods whose files do not state their facts: many were written before they could."""

PER_ANSWER_TOKEN = frozenset({"r2", "retrieval", "enhanced", "value", "contrast", "mass"})
"""The methods that divide a sum over steps by the answer's tokens in the context."""

UNKNOWN = MethodFacts()


def facts_of(name: str, parameters: Mapping[str, Any]) -> MethodFacts:
    """The facts of the method in a score file: by its name, else as `parameters` state them.

    Raises `ValueError` for stated facts that are none.

    >>> facts_of("theirs", {"scores": {"least": 0, "most": 8, "kind": "mass"}}).most
    8.0
    """
    stated = _stated(parameters[STATED_AS]) if STATED_AS in parameters else UNKNOWN
    known = METHODS.get(name, stated)
    # A bound of 1 holds for steps up to the answer's length: more of them can hit the same token again.
    return known if parameters.get(STEPS_RULE) is None else replace(known, most=None)


def _stated(block: Any) -> MethodFacts:
    where = f"method.parameters.{STATED_AS}"
    if not isinstance(block, dict):
        raise ValueError(f"{where} is {block!r:.60}, need an object with least, most and kind")
    least, most = (_limit(block.get(name), f"{where}.{name}") for name in ("least", "most"))
    kind = block.get("kind")
    if kind is not None and not isinstance(kind, str):
        raise ValueError(f"{where}.kind is {kind!r:.60}, need a text or null")
    if least is not None and most is not None and least > most:
        raise ValueError(f"{where}.least is {least:g}, need at most the {most:g} of {where}.most")
    return MethodFacts(least, most, kind)


def _limit(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or abs(value) > 1e300 or not isfinite(value):
        raise ValueError(f"{where} is {value!r:.60}, need a number within +-1e300 or null")
    return float(value)

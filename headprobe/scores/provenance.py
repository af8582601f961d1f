"""Where scores come from: model, tokenizer, probes and environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelIdentity:
    """The model as given (`id`) and as resolved: revision (a commit hash or None), sha256 of its config, class name.

    `weights_sha256`: of samples of all parameters, see `models.fingerprint`; it tells retrained weights from old ones.
    `gguf`: the GGUF file that the weights come from, as `file`, `sha256`, `types` (how many tensors are of which type)
    and perhaps `packages`; None for other models.
    """

    id: str
    revision: str | None = None
    config_sha256: str | None = None
    architecture: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    weights_sha256: str | None = None
    gguf: Mapping[str, Any] | None = None
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

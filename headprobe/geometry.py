"""The numbers of a model that head scores depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headprobe.errors import ModelError

FULL_ATTENTION = "full_attention"
SLIDING_ATTENTION = "sliding_attention"


@dataclass(frozen=True)
class ModelGeometry:
    """Layers, heads and their width. `layer_types` names each layer's attention as transformers does."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple[str, ...]

    def __post_init__(self) -> None:
        if min(self.num_hidden_layers, self.num_attention_heads, self.num_key_value_heads, self.head_dim) < 1:
            raise ModelError(f"a model needs at least one layer and head, got {self}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"{self.num_attention_heads} query heads cannot be shared evenly by {self.num_key_value_heads} KV heads"
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ModelError(f"{len(self.layer_types)} layer types for {self.num_hidden_layers} layers")

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def shape(self) -> tuple[int, int]:
        """`(num_hidden_layers, num_attention_heads)`: the shape of a table of head scores."""
        return self.num_hidden_layers, self.num_attention_heads

    @property
    def full_attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers that see the whole context."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == FULL_ATTENTION)

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """Bytes that one token takes in the caches of all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_element

    @classmethod
    def from_config(cls, config: Any) -> ModelGeometry:
        """Read the geometry from a transformers text config. Raises `ModelError` where a number is missing."""
        heads = getattr(config, "num_attention_heads", None)
        layers = getattr(config, "num_hidden_layers", None)
        if not isinstance(heads, int) or not isinstance(layers, int):
            raise ModelError(f"{type(config).__name__} has no num_hidden_layers and num_attention_heads")
        return cls(
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            layer_types=layer_types_of(config),
        )


def layer_types_of(config: Any) -> tuple[str, ...]:
    """Each layer's kind of attention by a transformers text config; without a list all layers are of one kind."""
    if types := getattr(config, "layer_types", None):
        return tuple(types)
    kind = SLIDING_ATTENTION if getattr(config, "sliding_window", None) else FULL_ATTENTION
    return (kind,) * config.num_hidden_layers

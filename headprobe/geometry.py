"""The numbers of a model that head scores depend on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headprobe.errors import ModelError, shown

FULL_ATTENTION = "full_attention"
SLIDING_ATTENTION = "sliding_attention"
LARGEST = 2**16  # of layers, heads and their width: beyond it a config is broken, and lists of that length are slow

# What must be one number for all layers, and what families call that number in their other layers.
EVEN = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "sliding_window")
IN_OTHER_LAYERS = {
    "global_head_dim": "head_dim", "num_global_key_value_heads": "num_key_value_heads",
    "swa_head_dim": "head_dim", "swa_v_head_dim": "v_head_dim", "swa_num_attention_heads": "num_attention_heads",
}  # fmt: skip
BY_LAYER = ("num_attention_heads_per_layer", "num_key_value_heads_per_layer", "num_query_heads", "num_kv_heads")


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
        """Read the geometry from a transformers text config.

        Raises `ModelError` where a number is missing or no number, and where layers differ in their heads: a table of
        scores has the same columns for all of them.
        """
        for difference in differences(config):
            raise ModelError(f"{difference}; headprobe needs the same heads in all layers")
        heads, layers = config_number(config, "num_attention_heads"), config_number(config, "num_hidden_layers")
        if heads is None or layers is None:
            raise ModelError("config.json has no num_hidden_layers and num_attention_heads")
        width = config_number(config, "qk_head_dim") or config_number(config, "head_dim")
        if width is None:
            hidden = config_number(config, "hidden_size", largest=LARGEST**2)
            if hidden is None:
                raise ModelError("config.json has neither head_dim nor hidden_size")
            width = hidden // heads
        return cls(
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=config_number(config, "num_key_value_heads") or heads,
            head_dim=width,
            layer_types=_checked_layer_types(config),
        )


def config_number(config: Any, name: str, largest: int = LARGEST) -> int | None:
    """The whole number called `name` in a config, None where it is not stated; `ModelError` for anything else.

    >>> from types import SimpleNamespace
    >>> config_number(SimpleNamespace(head_dim=64), "head_dim")
    64
    """
    value = getattr(config, name, None)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise ModelError(f"{name} in config.json is {shown(value)}, need a whole number from 1 to {largest}")
    return value


def differences(config: Any) -> Iterator[str]:
    """In words what a text config has otherwise in some layers than in others, of all that a geometry holds.

    Knows transformers' `per_layer_config` (Gemma 4; also as the plain table of a `config.json`), lists with a number
    for each layer (OpenELM, Laguna), a second number for one kind of layers, blocks (Nemotron-NAS), and layers
    that do not look at the text (Llama 3.2 Vision).
    """
    for name, found in _by_layer(config):
        values = list(dict.fromkeys(found))
        if len(values) > 1:
            listed = ", ".join(shown(value, 20) for value in values[:4])
            yield f"{name} differs from layer to layer ({listed}{', ...' if len(values) > 4 else ''})"
    without = _without_attention(config)
    if without:
        listed = ", ".join(str(layer) for layer in without[:4])
        yield f"layers {listed}{', ...' if len(without) > 4 else ''} have no attention over the text"


def layer_types_of(config: Any) -> tuple[str, ...]:
    """Each layer's kind of attention by a transformers text config; without a list all layers are of one kind."""
    if types := getattr(config, "layer_types", None):
        return tuple(types)
    kind = SLIDING_ATTENTION if getattr(config, "sliding_window", None) else FULL_ATTENTION
    return (kind,) * config.num_hidden_layers


def _checked_layer_types(config: Any) -> tuple[str, ...]:
    types = getattr(config, "layer_types", None)
    if types is not None and not (isinstance(types, list | tuple) and all(isinstance(kind, str) for kind in types)):
        raise ModelError(f"layer_types in config.json is {shown(types)}, need a list of names, one for each layer")
    if not types and getattr(config, "sliding_window", None):
        config_number(config, "sliding_window", largest=LARGEST**2)
    return layer_types_of(config)


def _by_layer(config: Any) -> Iterator[tuple[str, list[Any]]]:
    """Names of numbers, each with its values in all layers or in the kinds of them."""
    varying, layers = _overrides(config)
    for name in EVEN:
        if name in varying:
            yield name, [_hashable(layer.get(name)) for layer in layers]
    for name in (*EVEN, *BY_LAYER):
        value = None if name in varying else getattr(config, name, None)
        if isinstance(value, list | tuple):
            yield name, [_hashable(number) for number in value]
    for other, name in IN_OTHER_LAYERS.items():
        value = None if name in varying else getattr(config, name, None)
        if getattr(config, other, None) is not None and value is not None:
            yield f"{name} ({other})", [_hashable(value), _hashable(getattr(config, other))]
    blocks = [
        block["attention"] for block in _tables(config, "block_configs") if isinstance(block.get("attention"), dict)
    ]
    yield (
        "n_heads_in_group",
        [_hashable(block["n_heads_in_group"]) for block in blocks if block.get("n_heads_in_group")],
    )


def _overrides(config: Any) -> tuple[set[str], list[dict[str, Any]]]:
    """What `per_layer_config` changes: the names of it that matter here, and each layer's values of them."""
    given = getattr(config, "per_layer_config", None)
    if getattr(config, "is_heterogeneous", False):
        names = set(config.per_layer_attributes or ()) & set(EVEN)
        return names, [{name: getattr(layer, name, None) for name in names} for layer in given or ()]
    tables = [table for table in given.values() if isinstance(table, dict)] if isinstance(given, dict) else []
    names = {name for table in tables for name in table} & set(EVEN)
    shared = {name: getattr(config, name, None) for name in names}
    overridden = [{**shared, **table} for table in tables]
    return names, overridden if len(tables) == getattr(config, "num_hidden_layers", None) else [shared, *overridden]


def _without_attention(config: Any) -> list[int]:
    """Layers that are stated to attend to something else than the text, or to nothing."""
    found = getattr(config, "cross_attention_layers", None) or ()
    layers = [layer for layer in found if isinstance(layer, int)] if isinstance(found, list | tuple) else []
    given = getattr(config, "per_layer_config", None)
    if getattr(config, "is_heterogeneous", False):
        layers += [i for i, layer in enumerate(given or ()) if _skips_attention(layer.skip)]
    elif isinstance(given, dict):
        tables = {i: table for i, table in given.items() if isinstance(table, dict)}
        layers += [int(i) for i, table in tables.items() if str(i).isdecimal() and _skips_attention(table.get("skip"))]
    blocks = [block.get("attention") for block in _tables(config, "block_configs")]
    gone = [isinstance(b, dict) and bool(b.get("no_op") or b.get("replace_with_linear")) for b in blocks]
    return sorted({*layers, *(i for i, is_gone in enumerate(gone) if is_gone)})


def _skips_attention(skipped: Any) -> bool:
    return isinstance(skipped, list | tuple | set) and any("att" in str(part) for part in skipped)


def _tables(config: Any, name: str) -> list[dict[str, Any]]:
    found = getattr(config, name, None)
    return [table for table in found if isinstance(table, dict)] if isinstance(found, list | tuple) else []


def _hashable(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else shown(value)

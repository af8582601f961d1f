"""How much attention each token draws and how large its value is: why sinks are kept for nothing but their attention.

VATP (arXiv 2406.12335) multiplies a token's attention by the L1 norm of its value, since the first tokens draw most of
the attention with values near 0. Here both are measured in one pass, for all layers and KV heads, whatever the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headprobe.attention.dense import attention_weights, dense_attention, query_blocks
from headprobe.attention.tap import LayerCall, tapped
from headprobe.compression import importance
from headprobe.compression.importance import AttentionShape, column_sums, value_norms
from headprobe.errors import DeviceMemoryError, ModelError, NonFiniteError, OptionError, PlanError
from headprobe.models.devices import is_out_of_memory
from headprobe.models.finite import non_finite, usable
from headprobe.models.loading import LoadedModel

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LayerNorms:
    """One layer's tokens, each `[G, n]` float32.

    `attention`: the share of all queries' attention that a token draws, averaged over the query heads of a KV head
    (shares sum to 1 over the tokens, less what gpt-oss's learnt sinks take); `norms`: the L1 norm of its value.
    """

    layer: int
    attention: Floats32
    norms: Floats32
    window: int | None = None

    def median(self, num_sinks: int) -> NDArray[np.float64]:
        """Median norm of the tokens behind the sinks, for each KV head `[G]`."""
        return np.median(self.norms[:, num_sinks:].astype(np.float64), axis=1)


@dataclass(frozen=True)
class SinkDrop:
    """How far the first tokens' values lie below the others', in one layer.

    `median`: of the norms of the tokens behind the sinks, `sink_norm`: mean of the sinks', both averaged over the KV
    heads; `ratio = sink_norm / median`, `position_ratios` the same for each sink alone; `lowest_head` is the KV head
    whose own ratio is least, `lowest_ratio`. `attention`: the share that the sinks draw together, averaged over heads.
    Ratios are None where a median is 0.
    """

    layer: int
    window: int | None
    median: float
    sink_norm: float
    ratio: float | None
    position_ratios: tuple[float | None, ...]
    lowest_head: int | None
    lowest_ratio: float | None
    attention: float

    @classmethod
    def of(cls, norms: LayerNorms, num_sinks: int) -> SinkDrop:
        """The drop of a layer.

        >>> tokens = np.array([[1.0, 4.0, 4.0, 6.0]], dtype=np.float32)
        >>> drop = SinkDrop.of(LayerNorms(0, tokens / 16, tokens), num_sinks=1)
        >>> drop.median, drop.ratio, drop.attention
        (4.0, 0.25, 0.0625)
        """
        medians, sinks = norms.median(num_sinks), norms.norms[:, :num_sinks].astype(np.float64)
        own = [_ratio(float(sink), float(median)) for sink, median in zip(sinks.mean(1), medians, strict=True)]
        known = [(ratio, head) for head, ratio in enumerate(own) if ratio is not None]
        lowest = min(known) if known else (None, None)
        median = float(medians.mean())
        return cls(
            layer=norms.layer,
            window=norms.window,
            median=median,
            sink_norm=float(sinks.mean()),
            ratio=_ratio(float(sinks.mean()), median),
            position_ratios=tuple(_ratio(float(norm), median) for norm in sinks.mean(0)),
            lowest_head=lowest[1],
            lowest_ratio=lowest[0],
            attention=float(norms.attention[:, :num_sinks].sum(1, dtype=np.float64).mean()),
        )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0.0 else None


@dataclass(frozen=True, eq=False)
class ValueNorms:
    """Attention and value norms of a prompt's tokens in every layer; its first `num_sinks` tokens are the sinks."""

    input_ids: tuple[int, ...]
    num_sinks: int
    layers: tuple[LayerNorms, ...]

    def drops(self) -> tuple[SinkDrop, ...]:
        """How far the sinks' norms fall, layer by layer."""
        return tuple(SinkDrop.of(layer, self.num_sinks) for layer in self.layers)


def measure_value_norms(loaded: LoadedModel, input_ids: Sequence[int], num_sinks: int = 4) -> ValueNorms:
    """Run `input_ids` through the model once; memory beside the model's own is linear in their number.

    Raises `OptionError` and `PlanError` for prompts that are too short for their sinks or longer than the window,
    `ModelError` for attention that can't be read, `NonFiniteError`, and `DeviceMemoryError`.
    """
    ids = tuple(input_ids)
    if num_sinks < 1:
        raise OptionError(f"sinks is {num_sinks}, need at least 1")
    if len(ids) > loaded.window:
        raise PlanError(f"the prompt has {len(ids)} tokens, the model's window only {loaded.window}")
    if len(ids) <= num_sinks:
        raise OptionError(f"the prompt has {len(ids)} tokens, need more than its {num_sinks} sinks")
    found: dict[int, LayerNorms] = {}
    try:
        with norm_capture(loaded.model, found), torch.inference_mode():
            batch = torch.tensor([ids], device=loaded.device)
            logits = loaded.model(input_ids=batch, use_cache=False, logits_to_keep=1).logits
    except NonFiniteError as error:
        raise non_finite(loaded.model, str(error)) from error
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(f"a prompt of {len(ids)} tokens does not fit on {loaded.device}: take less") from error
    if not bool(usable(logits[:, -1]).all()):
        raise non_finite(loaded.model, "NaN or infinity in the logits after the prompt")
    if len(found) < loaded.geometry.num_hidden_layers:
        raise ModelError(f"{len(found)} of {loaded.geometry.num_hidden_layers} layers of {loaded.name} could be read")
    return ValueNorms(ids, num_sinks, tuple(found[layer] for layer in sorted(found)))


# -- the model's attention ------------------------------------------------------------------------------------------


@contextmanager
def norm_capture(model: Any, found: dict[int, LayerNorms]) -> Iterator[None]:
    """Inside the block every pass of `model` puts its layers into `found`; whole prompts without padding only.

    The model's own attention function is restored whatever happens. Raises `ModelError` for a model without
    transformers' attention interface, or with attention in chunks.
    """
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    if "chunked_attention" in kinds:
        raise ModelError(f"{type(model).__name__} attends in chunks: its value norms can't be read")
    with tapped(model, lambda call: _attend(call, found), consequence=", so its values can't be read"):
        yield


def _attend(call: LayerCall, found: dict[int, LayerNorms]) -> torch.Tensor:
    """A layer's output; what its tokens draw, and their norms, go into `found`."""
    shape = AttentionShape(call.scaling, call.softcap, call.sinks)
    attention = _table(_column_sums(call, shape) / call.query.shape[2])
    norms = _table(value_norms(call.value[0]))
    if not (np.isfinite(attention).all() and np.isfinite(norms).all()):
        raise NonFiniteError(f"layer {call.layer} has attention or values that are not finite")
    found[call.layer] = LayerNorms(call.layer, attention, norms, call.window)
    options = {"scaling": call.scaling, "softcap": call.softcap, "sinks": call.sinks, "window": call.window}
    return dense_attention(call.query, call.key, call.value, call.mask, **options)  # type: ignore[arg-type]


def _table(values: torch.Tensor) -> Floats32:
    return np.asarray(values.float().cpu().numpy(), dtype=np.float32)


def _column_sums(call: LayerCall, shape: AttentionShape) -> torch.Tensor:
    """Attention that each token draws from all queries, averaged over groups: `[G, n]` float32."""
    (_, heads, tokens, _), groups = call.query.shape, call.key.shape[1]
    window = call.window if call.window is not None and call.window < tokens else None
    if call.mask is None and window is None:
        return column_sums(call.query[0], call.key[0], shape)
    sums = torch.zeros(groups, tokens, dtype=torch.float32, device=call.key.device)
    block = min(max(1, importance.TILE_ELEMENTS // (2 * heads * (window or tokens))), window or tokens)
    options = {"scaling": shape.scaling, "softcap": shape.softcap, "sinks": shape.sinks}
    for a, b, start, end, seen in query_blocks(tokens, tokens, call.mask, window, block, call.key.device):
        keys = call.key[:, :, start:end]
        weights = attention_weights(call.query[:, :, a:b], keys, seen, **options)  # type: ignore[arg-type]
        sums[:, start:end] += weights[0].sum(1).view(groups, heads // groups, -1).mean(1)
    return sums


def strongest_heads(measured: ValueNorms, layers: Sequence[int]) -> list[tuple[int, int]]:
    """Of each layer the KV head whose sinks draw most attention; of equal ones the first."""
    found = {layer.layer: layer for layer in measured.layers}
    return [(layer, _strongest(found[layer], measured.num_sinks)) for layer in layers]


def _strongest(layer: LayerNorms, num_sinks: int) -> int:
    return int(layer.attention[:, :num_sinks].sum(1, dtype=np.float64).argmax())

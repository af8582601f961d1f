"""What it takes to read a prompt for compressed caches, before it is read."""

from __future__ import annotations

from typing import Any

from headprobe.models.devices import free_bytes
from headprobe.models.loading import LoadedModel
from headprobe.models.memory import MemoryNeed, Pass
from headprobe.profiling.preflight import needed

MEMORY_NOTES = {
    "weights_bytes": "of the model",
    "activations_bytes": "of a chunk, and the hidden states of the longest prompt",
    "kv_layer_bytes": "keys and values of the longest prompt in one layer",
    "kv_bytes": "the same in all layers",
    "needed_bytes": "where each prompt is read once for all policies",
    "needed_bytes_one_by_one": "where each policy reads for itself, as happens when the former does not fit",
    "free_bytes": "on the device, for all of that",
    "fits": "whether one of the two does",
}


def reading_need(loaded: LoadedModel, tokens: int, *, prefill_chunk: int | None, one_layer: bool) -> MemoryNeed:
    """For a prompt of N tokens: with `one_layer` the full keys and values of one layer at a time, as a cache of
    its own takes; otherwise those of all layers, as one reading for many policies."""
    chunk = tokens if prefill_chunk is None else min(prefill_chunk, tokens)
    largest = Pass(tokens=chunk, keys=tokens, kv_layers=1 if one_layer else None, states=tokens)
    return needed(loaded, largest)


def reading_plan(loaded: LoadedModel, tokens: int, prefill_chunk: int | None) -> dict[str, Any]:
    """What the longest prompt takes, and what there is, in bytes; prompts are read once for all policies where that
    fits, otherwise by each policy for itself."""
    once, alone = (
        reading_need(loaded, tokens, prefill_chunk=prefill_chunk, one_layer=one_layer) for one_layer in (False, True)
    )
    free = free_bytes(loaded.device)
    if free is not None and loaded.model.device.type != "meta":
        free += once.weights
    return {
        "weights_bytes": once.weights,
        "activations_bytes": once.activations,
        "kv_layer_bytes": once.kv_layer,
        "kv_bytes": once.kv,
        "needed_bytes": once.total,
        "needed_bytes_one_by_one": alone.total,
        "free_bytes": free,
        "fits": None if free is None else alone.total <= free,
    }

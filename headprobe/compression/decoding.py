"""The decode loop: greedy, one token at a time, captured as a CUDA graph where that can be done.

`model.generate()` on the session's cache gives the same tokens; this loop is what is fast on a GPU, where a step of a
small cache is bound by the time that Python takes to launch kernels.
"""

from __future__ import annotations

from typing import Any

import torch

from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.ragged_layer import RaggedLayer

WARM_UP_STEPS = 2


class Decoder:
    """Feeds single tokens `[B]` to a model on a compressed cache and gives the next logits `[B, vocabulary]`.

    On a CUDA device, once a few steps have run, a step is captured and replayed; where segments run out of room the
    cache is laid out anew and captured again. `graphs=False` never captures.
    """

    def __init__(self, model: Any, cache: RaggedCache, *, graphs: bool = True) -> None:
        self.model, self.cache = model, cache
        self._graph: CapturedStep | None = None
        self._may_capture = graphs and model.device.type == "cuda" and _is_capturable(cache)
        self._eager_steps = 0

    @property
    def uses_graph(self) -> bool:
        """Whether steps are replayed from a captured graph by now."""
        return self._graph is not None

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits behind `tokens`, one more for each sequence."""
        if self._graph is not None and not self.cache.has_room(1):
            self._graph = None
            self._eager_steps = 0
        if self._graph is not None:
            return self._graph.replay(tokens)
        if self._may_capture and self._eager_steps >= WARM_UP_STEPS and self.cache.has_room(1):
            self._graph = CapturedStep(self.model, self.cache)
            return self._graph.replay(tokens)
        self._eager_steps += 1
        return run_step(self.model, self.cache, tokens[:, None], self.cache.next_positions(tokens.device))


class CapturedStep:
    """One decode step as a CUDA graph: fixed buffers, appended in place.

    Capturing runs the Python code once without computing anything, so what it counts on the host is set back.
    """

    def __init__(self, model: Any, cache: RaggedCache) -> None:
        self.cache = cache
        positions = cache.next_positions(model.device)
        self.tokens = torch.zeros_like(positions)
        self.positions = positions.clone()
        self.graph = torch.cuda.CUDAGraph()
        counted = [layer.counters for layer in cache.ragged_layers]
        with torch.cuda.graph(self.graph):
            self.logits = run_step(model, cache, self.tokens, self.positions)
            self.positions += 1
        for layer, counters in zip(cache.ragged_layers, counted, strict=True):
            layer.counters = counters

    def replay(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits `[B, vocabulary]`, in a buffer that the next replay overwrites."""
        self.tokens.copy_(tokens[:, None])
        self.graph.replay()
        self.cache.advance()
        return self.logits


def run_step(
    model: Any, cache: RaggedCache, tokens: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits `[B, vocabulary]` behind `tokens` `[B, T]` at `positions` `[B, T]` (None: those that follow, no pads)."""
    out = model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: torch.Tensor = out.logits[:, -1]
    return logits


def _is_capturable(cache: RaggedCache) -> bool:
    """Sliding-window and linear layers allocate at every step, so their models are decoded step by step."""
    return all(isinstance(layer, RaggedLayer) for layer in cache.layers)

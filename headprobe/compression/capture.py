"""Work captured as a CUDA graph, and what torch leaves behind of a capture that failed, put right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch


def captured(
    work: Callable[[], object], device: torch.device, generator: torch.Generator | None = None
) -> torch.cuda.CUDAGraph:
    """`work` as a graph on `device`, to be replayed; it must have run before, so that nothing in it is done for the
    first time. `generator`: what it draws from, beside the device's own.

    Raises what `work` raised while it was captured (a `RuntimeError` for what cannot be captured), or what torch says
    of it where it raised nothing. Afterwards the device can be used as before, whatever happened: by itself torch
    would stay on the stream of a failed capture, refuse to give memory back and to draw from the device's generator.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    if generator is not None:
        graph.register_generator_state(generator)
    fault: Exception | None = None
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=_side_stream(torch.cuda.current_device())):
                try:
                    work()
                except Exception as error:
                    fault = error
                    raise
        except Exception as error:
            if error is fault:  # the capture itself was ended in order
                raise
            _put_right(stream, pool)
            raise error if fault is None else fault from None  # the end of a capture says only that it had failed
    return graph


def _put_right(stream: Any, pool: Any) -> None:
    """After a capture whose end failed: torch leaves off there, and undoes nothing of its beginning."""
    torch.cuda.set_stream(stream)
    device = torch.cuda.current_device()
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        with suppress(RuntimeError, AttributeError):  # how far the capture had come is not known, nor every release
            getattr(torch._C, name)(device, pool)
    # A capture that succeeds takes the device's generator out of the failed one.
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=_side_stream(device)):
        torch.zeros(1, device="cuda")
    torch.cuda.set_stream(stream)


@cache
def _side_stream(device: int) -> Any:
    """The stream on which work of this device is captured: torch has one for all devices, on the first that captures,
    and libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)

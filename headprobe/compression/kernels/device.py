"""The CUDA device that a Triton program is launched on, and what it may take there."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Result = TypeVar("Result")


def on_its_device(launch: Callable[Given, Result]) -> Callable[Given, Result]:
    """`launch`, with the CUDA device of its first argument, a tensor, as the current one: Triton launches on that,
    wherever the tensors lie."""

    @wraps(launch)
    def launched(*given: Given.args, **options: Given.kwargs) -> Result:
        with torch.cuda.device_of(given[0]):
            return launch(*given, **options)

    return launched


LARGE = 160 << 10  # bytes of shared memory of data centre cards, which hold several tiles in flight


def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may take on this CUDA device: 227 KiB on data centre cards since Hopper, 163 KiB
    on an A100, 99 KiB on most others; 0 where torch does not say, `LARGE` in Triton's interpreter."""
    if device.type != "cuda":
        return LARGE
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0))

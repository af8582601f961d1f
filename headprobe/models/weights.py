"""A model's weights as plain numbers, wherever and however they are held, and their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch


def plain_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter by its name, in full and as plain numbers, one after another.

    What is spread over processes is brought together, so all of them must ask in the same order; what lies on disk or
    on the host for a while is read there.
    """
    seen: set[int] = set()  # weights that are tied count once, under their first name
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            yield f"{prefix}.{name}" if prefix else name, plain(_held(module, name, parameter.detach()))


def plain(weight: torch.Tensor) -> torch.Tensor:
    """A weight in full, brought together where it is spread (then all processes must ask for it), as plain numbers
    where it is quantized."""
    for name in ("full_tensor", "dequantize"):
        if type(weight) not in (torch.Tensor, torch.nn.Parameter) and hasattr(weight, name):
            weight = getattr(weight, name)()
    return weight


def here(weight: torch.Tensor) -> torch.Tensor:
    """What of a weight lies on this process, as it is held."""
    part = getattr(weight, "to_local", None)
    return weight if part is None else part()


def _held(module: Any, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """The parameter itself; for one that accelerate has put elsewhere and fetches for each pass, what lies there."""
    elsewhere = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    if not parameter.is_meta or elsewhere is None:
        return parameter
    found: torch.Tensor = elsewhere[name]
    return found


# Which weights a model has.

SAMPLES = 64  # elements of each parameter, spread evenly over it


def weights_fingerprint(model: Any) -> str:
    """sha256 over names, shapes and samples of all parameters: quick, and it changes with any training.

    Samples are rounded to bfloat16, so that it hardly depends on the dtype that the model was loaded in.
    """
    digest = hashlib.sha256()
    for name, parameter in plain_weights(model):
        flat = parameter.flatten()
        samples = flat[:: max(1, flat.numel() // SAMPLES)].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + samples.numpy().tobytes())
    return digest.hexdigest()

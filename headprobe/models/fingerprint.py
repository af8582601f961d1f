"""Which weights a model has."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from headprobe.models.weights import plain_weights

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

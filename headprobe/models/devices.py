"""Which device and which number format a model runs in."""

from __future__ import annotations

from typing import Any

import torch

from headprobe.errors import OptionError

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def pick_device(device: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:1", "mps". Raises `OptionError` when it is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"device {device!r} is unknown; take auto, cpu, cuda, cuda:0 or mps") from error
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    there = count.get(target.type, 0)
    if (target.index or 0) >= there:
        raise OptionError(f"device {device!r} is not there: torch finds {there} {target.type} device(s) here")
    return target


def check_dtype(dtype: str) -> str:
    """The full name of `dtype` ("bf16" -> "bfloat16"; "auto" stays). Raises `OptionError` for any other."""
    full = DTYPES.get(dtype, dtype)
    if full != "auto" and full not in DTYPES.values():
        raise OptionError(f"dtype {dtype!r} is unknown; take auto, {', '.join(DTYPES.values())}")
    return full


def pick_dtype(dtype: str, device: torch.device, config: Any) -> str:
    """The name of the dtype to load in, with "auto" decided by the device and the config."""
    full = check_dtype(dtype)
    if full != "auto":
        return full
    if device.type == "cpu":
        return "float32"
    stated = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    name = str(stated).removeprefix("torch.")
    return name if name in {"bfloat16", "float16"} else "bfloat16"

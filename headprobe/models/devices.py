"""Which device and number format a model runs in, and how much memory it takes there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from headprobe.errors import OptionError

# Which device and which number format a model runs in.

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


# How much memory is free and in use, and how an error of torch or Python says that it ran out.

_MEMORY, _LIMIT, _USED = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that memory ran out, on the device or in the machine.

    torch has a class for it, but its CPU allocator, cuBLAS and older backends raise a `RuntimeError` that only says
    so in words.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not fit"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; None where the system does not say."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    if device.type != "cpu":
        return None
    try:
        lines = _MEMORY.read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    try:
        limit, used = _LIMIT.read_text().strip(), int(_USED.read_text())
    except (OSError, ValueError):
        return free
    left = [int(limit) - used] if limit.isdecimal() else []
    return min([*left, *([] if free is None else [free])], default=None)


class PeakMemory:
    """The most memory that was in use between `start()` and `bytes()`, less what was in use at the start.

    On a GPU by torch's allocator; on a CPU by the process's resident size, which Linux lets a process reset (elsewhere
    `bytes()` is None).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None

    def start(self) -> None:
        """Forget the highest use so far."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:
            self._before = None
        else:
            self._before = _resident("VmRSS")

    def bytes(self) -> int | None:
        """The peak beyond the start, in bytes; None where the system does not report it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            now: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            now = _resident("VmHWM")
        return None if now is None or self._before is None else max(0, now - self._before)


def _resident(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)

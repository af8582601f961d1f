"""How much memory is in use, and how an error of torch or Python says that it ran out."""

from __future__ import annotations

from pathlib import Path

import torch

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
        """The peak beyond the start, in bytes; None where the system does not tell."""
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

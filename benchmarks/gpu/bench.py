"""The workbench that all parts share: device, model, clock and copy bandwidth."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.record import Record
from benchmarks.gpu.shapes import Shape
from headprobe.compression.capture import captured
from headprobe.compression.kernels.choice import KERNELS, Kernel, KernelNeeds, capability, device_name


class Bench:
    """`dtype` is bfloat16 on a GPU and float32 on a CPU. `copy_bandwidth` in bytes a second, None until measured.
    `real_model`: a folder or GGUF file of a real model, None where there is none."""

    def __init__(
        self, device: torch.device, shape: Shape, record: Record, seconds: float, *, real_model: str | None = None
    ) -> None:
        self.real_model = real_model
        self.device, self.shape, self.record = device, shape, record
        self.on_gpu = device.type == "cuda"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.copy_bandwidth: float | None = None
        self._deadline = time.monotonic() + seconds
        self._model: Any = None

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    @property
    def model(self) -> Any:
        """The shape's model with random weights, made when it is first needed."""
        if self._model is None:
            self._model = self.shape.model(self.device, self.dtype)
        return self._model

    def bandwidth(self) -> float:
        """Copy bandwidth, for those who compare with it."""
        if self.copy_bandwidth is None:
            raise RuntimeError("copy bandwidth has not been measured: the part `bandwidth` failed or was left out")
        return self.copy_bandwidth

    def weights_read(self) -> int:
        """Bytes of weights that a decode step reads: all but the embeddings, of which it reads a row."""
        embedding = self.model.get_input_embeddings().weight
        return sum(weight.nbytes for weight in self.model.parameters()) - embedding.nbytes

    def tokens(self, count: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
        """Random token ids `[batch, count]`."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(2, self.shape.vocabulary, (batch, count), generator=generator).to(self.device)

    # -- time and memory --------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Median seconds of `work`, the device's share included."""
        found = []
        for _ in range(repeats):
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - begin)
        return statistics.median(found)

    def replayed(self, work: Callable[[], object]) -> Callable[[], object]:
        """`work` as a captured CUDA graph, so that launches take no time of their own; as it is on a CPU."""
        work()
        if not self.on_gpu:
            return work
        return captured(work, self.device).replay

    def free(self) -> None:
        """Give unused memory back, so that the next part finds what it would find alone."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def fault(self, error: Exception) -> str:
        """An error in one short line, after memory was given back."""
        self.free()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    # -- kernels ----------------------------------------------------------------------------------------------------

    def needs(self, head_dim: int | None = None, dtype: torch.dtype | None = None, **more: Any) -> KernelNeeds:
        """What is asked of a kernel here."""
        kind = str(dtype or self.dtype).removeprefix("torch.")
        return KernelNeeds(
            self.device.type, kind, head_dim or self.shape.head_dim, device_name=device_name(self.device),
            capability=capability(self.device), **more,
        )  # fmt: skip

    def kernels(self, needs: KernelNeeds | None = None) -> list[Kernel]:
        """The kernels that can serve."""
        asked = needs or self.needs()
        return [kernel for kernel in KERNELS if kernel.refuses(asked) is None]

    def fast_kernels(self) -> list[Kernel]:
        """Those worth timing: plain torch only where there is nothing else."""
        found = self.kernels()
        return [kernel for kernel in found if kernel.name != "torch"] or found

"""Which kernel computes ragged attention for a model and a policy on a device, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.measured import measured_shares
from headprobe.compression.kernels.reference import torch_attention, torch_weigh
from headprobe.compression.kernels.split import split_attention, split_weigh
from headprobe.compression.kernels.varlen import flash2_attention, flash4_attention, torch_varlen_attention
from headprobe.compression.ragged_store import RaggedStore
from headprobe.errors import OptionError

Attend = Callable[[torch.Tensor, RaggedStore, AttentionShape], torch.Tensor]
Weigh = Callable[[torch.Tensor, RaggedStore, AttentionShape], tuple[torch.Tensor, torch.Tensor]]

HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Kernel:
    """A way to compute ragged attention. `refuses(...)` says why it can't be used, or None where it can.

    `attend(query, store, shape)` gives the output `[B, H, T, d_v]`; `weigh`, for one query (T = 1), the output and the
    weights of all entries `[total]`, averaged over each group's heads, which policies need that evict while decoding.
    """

    name: str
    attend: Attend
    weigh: Weigh | None = None
    module: str | None = None  # what must be installed
    softcap: bool = False
    sinks: bool = False
    bias: bool = False
    dtypes: tuple[str, ...] | None = HALF  # None: any
    max_head_dim: int | None = 256
    head_dim_step: int = 8
    only_cuda: bool = True

    def refuses(self, needs: KernelNeeds) -> str | None:
        """Why this kernel cannot serve `needs`; None where it can."""
        width, widest = needs.head_dim, self.max_head_dim
        reasons = (
            (self.only_cuda and needs.device != "cuda", f"runs on CUDA devices only, not on {needs.device}"),
            (self.module is not None and not _installed(self.module), f"{self.module} is not installed"),
            (self.dtypes is not None and needs.dtype not in self.dtypes, f"takes {self._takes}, not {needs.dtype}"),
            (widest is not None and width > widest, f"head width {width} is above {widest}"),
            (width % self.head_dim_step != 0, f"head width {width} is no multiple of {self.head_dim_step}"),
            (needs.softcap and not self.softcap, "cannot cap scores (softcap)"),
            (needs.sinks and not self.sinks, "knows no attention sinks"),
            (needs.bias and not self.bias, "takes no bias (compensation entries)"),
            (needs.weights and self.weigh is None, "gives no weights, from which entries are evicted while decoding"),
        )
        return next((reason for holds, reason in reasons if holds), None)

    @property
    def _takes(self) -> str:
        return "half precision" if self.dtypes == HALF else ", ".join(self.dtypes or ())


@dataclass(frozen=True)
class KernelNeeds:
    """What a model and a policy ask of a kernel, and where: `device_name` as `torch.cuda.get_device_name` gives it."""

    device: str
    dtype: str
    head_dim: int
    softcap: bool = False
    sinks: bool = False
    bias: bool = False
    weights: bool = False
    device_name: str | None = None


# In the order in which they are tried where none has been measured on the device.
KERNELS = (
    Kernel("flash4", flash4_attention, module="flash_attn.cute", softcap=True, sinks=True),
    Kernel("flash2", flash2_attention, module="flash_attn", softcap=True),
    Kernel("torch-varlen", torch_varlen_attention),
    Kernel(
        "triton", split_attention, split_weigh, module="triton", softcap=True, sinks=True, bias=True,
        dtypes=(*HALF, "float32"), head_dim_step=1,
    ),
    Kernel(
        "torch", torch_attention, torch_weigh, softcap=True, sinks=True, bias=True, dtypes=None, max_head_dim=None,
        head_dim_step=1, only_cuda=False,
    ),
)  # fmt: skip
KERNEL_NAMES = ("auto", *(kernel.name for kernel in KERNELS))


def pick_kernel(name: str, needs: KernelNeeds) -> tuple[Kernel, str]:
    """The kernel called `name`, or for "auto" the first of `ranked_kernels` that can serve `needs`; and why.

    Raises `OptionError` for an unknown name, or a named kernel that cannot serve.
    """
    if name not in KERNEL_NAMES:
        raise OptionError(f"unknown attention kernel {name!r}: known are {', '.join(KERNEL_NAMES)}")
    if name == "auto":
        return _first_that_serves(needs)
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    reason = kernel.refuses(needs)
    if reason is not None:
        raise OptionError(f"the attention kernel {name} cannot be used here: {reason}")
    return kernel, "asked for"


def ranked_kernels(device_name: str | None) -> tuple[Kernel, ...]:
    """All kernels, those measured on the device first, from fast to slow; the others as they stand in `KERNELS`."""
    shares = measured_shares(device_name)
    return tuple(sorted(KERNELS, key=lambda kernel: -shares.get(kernel.name, 0.0)))


def device_name(device: torch.device) -> str | None:
    """The name of a CUDA device; None for others."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _first_that_serves(needs: KernelNeeds) -> tuple[Kernel, str]:
    refused: list[str] = []
    for kernel in ranked_kernels(needs.device_name):
        reason = kernel.refuses(needs)
        if reason is None:
            return kernel, "; ".join([*refused, *_why_this_order(kernel, needs)]) or "the first choice"
        refused.append(f"{kernel.name} {reason}")
    raise AssertionError("the torch kernel serves everything")


def _why_this_order(kernel: Kernel, needs: KernelNeeds) -> list[str]:
    """What is known of the kernel's speed; nothing on devices where there is one kernel alone."""
    if needs.device != "cuda":
        return []
    share = measured_shares(needs.device_name).get(kernel.name)
    if share is None:
        return [f"{kernel.name} comes next; its speed has not been measured on {needs.device_name or 'this device'}"]
    return [f"{kernel.name} reads at {share:.0%} of copy bandwidth, measured on {needs.device_name}"]


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False

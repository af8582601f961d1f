"""Which kernel computes ragged attention for a model and a policy on a device, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.reference import torch_attention, torch_weigh
from headprobe.compression.kernels.source import FLASH2, FLASH4, TRITON, Source
from headprobe.compression.kernels.split import split_attention, split_weigh
from headprobe.compression.kernels.varlen import flash2_attention, flash4_attention, torch_varlen_attention
from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.compression.ragged_store import RaggedStore
from headprobe.errors import OptionError, shown
from headprobe.home import user_cache

# How fast kernels were seen to be, by `python -m benchmarks.gpu`:
#
# {"<device name as CUDA gives it>": {"<kernel>": <share of copy bandwidth while reading uneven segments>, ...}, ...}
#
# What this machine's user measured lies in the user's cache folder and goes before what comes with the package.

SHIPPED_FILE = Path(__file__).with_name("measured.json")


def measured_file() -> Path:
    """Where a user's own measurements lie."""
    return user_cache() / "measured.json"


def measured_shares(device_name: str | None) -> dict[str, float]:
    """Share of copy bandwidth by kernel name, empty where nothing was measured on such a device.

    A file of the user's that cannot be read counts as none: it decides only on the order of kernels.
    """
    for path in (measured_file(), SHIPPED_FILE):
        found = _shares(path, device_name)
        if found:
            return found
    return {}


def _shares(path: Path, device_name: str | None) -> dict[str, float]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    given = known.get(device_name) if isinstance(known, dict) else None
    if not isinstance(given, dict):
        return {}
    return {str(name): float(share) for name, share in given.items() if isinstance(share, int | float)}


Attend = Callable[[torch.Tensor, RaggedStore, AttentionShape], torch.Tensor]
Weigh = Callable[[torch.Tensor, RaggedStore, AttentionShape], tuple[torch.Tensor, torch.Tensor]]

HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Kernel:
    """A way to compute ragged attention. `refuses(...)` says why it can't be used, or None where it can.

    `attend(query, store, shape)` gives the output `[B, H, T, d_v]`; `weigh`, for one query (T = 1), the output and the
    weights of all entries `[total]`, averaged over each group's heads, which policies need that evict while decoding.
    `source`: what must be there to import. `oldest`, `newest`: major compute capabilities of CUDA devices; with a
    `newest` the device must be known. `widths`: pairs of key and value width beyond `max_head_dim`, by the oldest major
    capability that takes them. `asked_for`: named by the user, so that no other one may take its place.
    """

    name: str
    attend: Attend
    weigh: Weigh | None = None
    source: Source | None = None
    softcap: bool = False
    sinks: bool = False
    bias: bool = False
    dtypes: tuple[str, ...] | None = HALF  # None: any
    max_head_dim: int | None = 256
    head_dim_step: int = 8
    quantized: bool = False  # reads entries that are held as int8 or int4
    one_width: bool = False  # keys and values must be equally wide
    widths: tuple[tuple[int, int, int], ...] = ()
    only_cuda: bool = True
    oldest: int | None = None
    newest: int | None = None
    asked_for: bool = False

    def refuses(self, needs: KernelNeeds) -> str | None:
        """Why this kernel cannot serve `needs`; None where it can. Imports it only where the device would take it."""
        if self.only_cuda and needs.device != "cuda":
            return f"runs on CUDA devices only, not on {needs.device}"
        missing = self._refuses_card(needs) or (None if self.source is None else self.source.fault())
        if missing is not None:
            return missing
        reasons = (
            (self.newest is not None and needs.capability is None, "needs to know the compute capability"),
            (self.dtypes is not None and needs.dtype not in self.dtypes, f"takes {self._takes}, not {needs.dtype}"),
            (needs.kv_cache_dtype != AUTO and not self.quantized, f"reads no {needs.kv_cache_dtype} entries"),
            (needs.softcap and not self.softcap, "cannot cap scores (softcap)"),
            (needs.sinks and not self.sinks, "does not support attention sinks"),
            (needs.bias and not self.bias, "does not support a bias (compensation entries)"),
            (needs.weights and self.weigh is None, "returns no attention weights, which eviction while decoding needs"),
        )
        return next((reason for holds, reason in reasons if holds), None) or self._refuses_widths(needs)

    def _refuses_card(self, needs: KernelNeeds) -> str | None:
        if needs.capability is None or (self.oldest is None and self.newest is None):
            return None
        if (self.oldest or 0) <= needs.capability[0] <= (self.newest or needs.capability[0]):
            return None
        taken = f"{self.oldest}.x to {self.newest}.x" if self.newest else f"{self.oldest}.0 and newer"
        return f"runs on compute capability {taken}, not {'.'.join(map(str, needs.capability))}"

    def _refuses_widths(self, needs: KernelNeeds) -> str | None:
        key, value = needs.head_dim, needs.head_dim if needs.value_dim is None else needs.value_dim
        if any((key, value) == (k, v) and (needs.capability or (0,))[0] >= card for k, v, card in self.widths):
            return None
        for width in (key, value):
            if self.max_head_dim is not None and width > self.max_head_dim:
                return f"head width {width} is above {self.max_head_dim}"
            if width % self.head_dim_step != 0:
                return f"head width {width} is not a multiple of {self.head_dim_step}"
        if self.one_width and key != value:
            return f"needs keys and values of the same width, not {key} and {value}"
        return None

    @property
    def _takes(self) -> str:
        return "half precision" if self.dtypes == HALF else ", ".join(self.dtypes or ())


@dataclass(frozen=True)
class KernelNeeds:
    """What a model and a policy ask of a kernel, and where.

    `head_dim`: width of the keys, `value_dim` of the values (None: as wide); `device_name` and `capability` as
    `torch.cuda.get_device_name` and `get_device_capability` give them, None for other devices.
    """

    device: str
    dtype: str
    head_dim: int
    softcap: bool = False
    sinks: bool = False
    bias: bool = False
    weights: bool = False
    device_name: str | None = None
    value_dim: int | None = None
    capability: tuple[int, int] | None = None
    kv_cache_dtype: str = AUTO

    @classmethod
    def of_store(cls, store: RaggedStore, shape: AttentionShape, *, weights: bool) -> KernelNeeds:
        """What a store asks for, by what it really holds."""
        key_width, value_width = store.widths
        return cls(
            device=store.device.type,
            dtype=str(store.dtype).removeprefix("torch."),
            head_dim=key_width,
            softcap=shape.softcap is not None,
            sinks=shape.sinks is not None,
            bias=store.bias is not None,
            weights=weights,
            device_name=device_name(store.device),
            value_dim=value_width,
            capability=capability(store.device),
            kv_cache_dtype=store.kv_cache_dtype,
        )


# In the order in which they are tried where none has been measured on the device: first the one that was the fastest of
# those that were measured on any. flash-attn 4 wants one sink for each query head of a call, but here a call has the
# heads of one group, and every KV head its own sinks. It takes wider heads on some cards; what is said of them differs
# between its releases, so only what all of them take is asked for.
KERNELS = (
    Kernel(
        "triton", split_attention, split_weigh, source=TRITON, softcap=True, sinks=True, bias=True,
        dtypes=(*HALF, "float32"), head_dim_step=1,
    ),
    Kernel(
        "flash4", flash4_attention, source=FLASH4, softcap=True, max_head_dim=128, widths=((192, 128, 10),), oldest=9,
        newest=11,
    ),
    Kernel("flash2", flash2_attention, source=FLASH2, softcap=True, one_width=True, oldest=8),
    Kernel("torch-varlen", torch_varlen_attention, one_width=True, oldest=8),
    Kernel(
        "torch", torch_attention, torch_weigh, softcap=True, sinks=True, bias=True, dtypes=None, max_head_dim=None,
        head_dim_step=1, only_cuda=False, quantized=True,
    ),
)  # fmt: skip
KERNEL_NAMES = ("auto", *(kernel.name for kernel in KERNELS))


def check_kernel_name(name: str) -> None:
    """Raise `OptionError` for a name that is not in `KERNEL_NAMES`."""
    if name not in KERNEL_NAMES:
        raise OptionError(f"unknown attention kernel {shown(name)}: known are {', '.join(KERNEL_NAMES)}")


def check_kernel_reads(name: str, kv_cache_dtype: str) -> None:
    """Raise `OptionError` for a kernel, asked for by name, that cannot read entries held in this number format."""
    kernel = next((kernel for kernel in KERNELS if kernel.name == name), None)
    if kernel is not None and kv_cache_dtype != AUTO and not kernel.quantized:
        able = ", ".join(kernel.name for kernel in KERNELS if kernel.quantized)
        raise OptionError(f"the attention kernel {name} reads no {kv_cache_dtype} entries: take auto or {able}")


def pick_kernel(name: str, needs: KernelNeeds) -> tuple[Kernel, str]:
    """The kernel called `name`, or for "auto" the first of `ranked_kernels` that can serve `needs`; and why.

    Raises `OptionError` for an unknown name, or a named kernel that cannot serve.
    """
    check_kernel_name(name)
    if name == "auto":
        return _first_that_serves(needs)
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    reason = kernel.refuses(needs)
    if reason is not None:
        raise OptionError(f"the attention kernel {name} cannot be used here: {reason}")
    return replace(kernel, asked_for=True), "asked for"


def fitting(kernel: Kernel, store: RaggedStore, shape: AttentionShape, *, weights: bool) -> Kernel:
    """`kernel` where it can serve what a store really holds, else the first that can.

    It was picked by the model's config, which may state other widths than its keys and values have. Raises
    `OptionError` for one that was asked for by name.
    """
    needs = KernelNeeds.of_store(store, shape, weights=weights)
    reason = kernel.refuses(needs)
    if reason is None:
        return kernel
    if kernel.asked_for:
        raise OptionError(f"the attention kernel {kernel.name} cannot be used here: {reason}")
    return _first_that_serves(needs)[0]


def ranked_kernels(device_name: str | None) -> tuple[Kernel, ...]:
    """All kernels, those measured on the device first, from fast to slow; the others as they stand in `KERNELS`."""
    shares = measured_shares(device_name)
    return tuple(sorted(KERNELS, key=lambda kernel: -shares.get(kernel.name, 0.0)))


def device_name(device: torch.device) -> str | None:
    """The name of a CUDA device; None for others."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a CUDA device, as (9, 0); None for others."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def _first_that_serves(needs: KernelNeeds) -> tuple[Kernel, str]:
    refused: list[str] = []
    for kernel in ranked_kernels(needs.device_name):
        reason = kernel.refuses(needs)
        if reason is None:
            return kernel, "; ".join([*refused, *_why_this_order(kernel, needs)]) or "the first choice"
        refused.append(f"{kernel.name} {reason}")
    raise AssertionError("the torch kernel supports everything")


def _why_this_order(kernel: Kernel, needs: KernelNeeds) -> list[str]:
    """What is known of the kernel's speed; nothing on devices where there is one kernel alone."""
    if needs.device != "cuda":
        return []
    share = measured_shares(needs.device_name).get(kernel.name)
    if share is None:
        return [f"{kernel.name} is next; its speed has not been measured on {needs.device_name or 'this device'}"]
    return [f"{kernel.name} reads at {share:.0%} of copy bandwidth, measured on {needs.device_name}"]

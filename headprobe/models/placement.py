"""Where a model's weights go and how they are held there: one device, several, several processes; quantized or not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TorchAoConfig
from transformers.distributed.configuration_utils import DistributedConfig

from headprobe.errors import ModelError, OptionError, shown
from headprobe.geometry import ModelGeometry
from headprobe.models.config import whole as one_line


@dataclass(frozen=True, eq=False)
class HeadSpread:
    """The `rank`-th (from 0) of `size` parts of a model's heads; `group`: the processes that have them."""

    rank: int
    size: int
    group: Any

    def own(self, heads: int) -> slice:
        """Which of the `heads` heads of a layer are this process's."""
        each = heads // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gathered(self, part: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The parts of all processes in the order of their heads, joined along `dim`; the same on all of them."""
        mine = part.contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self.group)
        return torch.cat(parts, dim)

    def total(self, number: int, device: torch.device) -> int:
        """The sum of the numbers of all processes."""
        return int(self.gathered(torch.tensor([number], dtype=torch.int64, device=device)).sum())


def head_spread(model: Any) -> HeadSpread | None:
    """How the heads of `model` are spread over processes; None where all of them are here."""
    for parameter in model.parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and mesh.size() > 1:
            return HeadSpread(mesh.get_local_rank(), mesh.size(), mesh.get_group())
    return None


def check_spread(geometry: ModelGeometry, size: int) -> None:
    """Raise `ModelError` for a model whose heads can't be dealt out evenly to `size` processes."""
    for heads, kind in ((geometry.num_key_value_heads, "KV"), (geometry.num_attention_heads, "query")):
        if heads % size:
            raise ModelError(f"{heads} {kind} heads cannot be spread evenly over {size} processes")


DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
QUANTIZATIONS = ("int8",)
ACCELERATE = "which the extra brings: pip install 'headprobe[spread]'"


@dataclass(frozen=True)
class Placement:
    """How a model is to be loaded, beyond its device and dtype.

    `tensor_parallel`: its heads are spread over the processes that torchrun started; `device_map`: its layers over the
    devices that accelerate finds ("auto"), or by a table of modules and devices; `quantization`: its linear layers'
    weights are quantized while they are loaded, "int8" by torchao. `empty`: no weight is read, the model lies on the
    device "meta" and can only be planned with. Raises `OptionError` for what does not exist, does
    not go together, or lacks a package.
    """

    tensor_parallel: bool = False
    device_map: str | Mapping[str, Any] | None = None
    quantization: str | None = None
    empty: bool = False

    def __post_init__(self) -> None:
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise OptionError(f"quantization is {shown(self.quantization)}, need one of {', '.join(QUANTIZATIONS)}")
        if isinstance(self.device_map, str) and self.device_map not in DEVICE_MAPS:
            raise OptionError(f"device_map is {shown(self.device_map)}, need one of {', '.join(DEVICE_MAPS)}")
        if self.tensor_parallel and self.device_map is not None:
            raise OptionError(
                "tensor_parallel spreads heads over processes, device_map layers over one process's devices: give one"
            )
        if self.tensor_parallel and self.quantization is not None:
            raise OptionError(f"quantization {self.quantization} and tensor_parallel do not go together")
        if (self.tensor_parallel or self.device_map is not None) and find_spec("accelerate") is None:
            what = "tensor_parallel" if self.tensor_parallel else "device_map"
            raise OptionError(f"{what} needs the package accelerate, {ACCELERATE}")
        if self.quantization is not None and find_spec("torchao") is None:
            raise OptionError(
                f"quantization {self.quantization} needs the package torchao, which the extra brings: "
                "pip install 'headprobe[torchao]'"
            )

    @property
    def is_placed(self) -> bool:
        """Whether loading itself puts the weights where they belong."""
        return self.tensor_parallel or self.device_map is not None

    def check(self, geometry: ModelGeometry, device: torch.device, config: Any, folder: Path) -> None:
        """Raise `OptionError` or `ModelError` for what can't be, before any weight is read."""
        own = quantization_of(config)
        if own is not None and self.quantization is not None:
            raise OptionError(
                f"{folder}: its weights are quantized already, by {own['quant_method']}: leave out quantization "
                f"{self.quantization}"
            )
        if self.tensor_parallel:
            check_spread(geometry, processes())
            # A build of torch for CUDA names cuda also where there is no device; transformers takes the CPU there.
            found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            if found is not None and device.type != found.type:
                raise OptionError(f"tensor_parallel takes the {found.type} devices of this machine, not {device}")

    def options(self, device: torch.device) -> dict[str, Any]:
        """Keywords for transformers' `from_pretrained`."""
        given: dict[str, Any] = {}
        if self.tensor_parallel:
            given["distributed_config"] = DistributedConfig(tp_plan="auto", tp_size=processes())
        if self.device_map is not None:
            given["device_map"] = self.device_map if isinstance(self.device_map, str) else dict(self.device_map)
        if self.quantization is not None:
            given["quantization_config"] = _torchao_int8()
            given.setdefault("device_map", str(device))
        return given


def processes() -> int:
    """How many processes torchrun started. Raises `OptionError` where it started none, or only this one."""
    number = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if number < 2:
        raise OptionError(
            "tensor_parallel needs several processes: torchrun --nproc-per-node 2 -m headprobe ... --tensor-parallel"
        )
    return number


def _torchao_int8() -> Any:
    quantization = import_module("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def quantization_of(config: Any) -> dict[str, Any] | None:
    """What a transformers config says of its weights' quantization, as plain JSON values with `quant_method`; None for
    plain ones."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    found = given if isinstance(given, dict) else given.to_dict()
    method = found.get("quant_method", "an unknown method")
    plain = {name: value for name, value in found.items() if isinstance(value, str | int | float | bool)}
    kind = found.get("quant_type")
    if kind is not None and not isinstance(kind, str):
        plain["quant_type"] = _kind_of(kind)
    return plain | {"quant_method": str(getattr(method, "value", method))}


def bits_of(quantization: Mapping[str, Any] | None) -> int | None:
    """Bits per weight by a record of `quantization_of`, or by a name of `QUANTIZATIONS`; None for plain weights."""
    if quantization is None:
        return None
    stated = quantization.get("bits")
    return stated if isinstance(stated, int) else 4 if quantization.get("load_in_4bit") else 8


def _kind_of(kind: Any) -> str:
    """The name of torchao's way to quantize, as its config or the JSON of it has it."""
    while isinstance(kind, Mapping) and kind:
        kind = kind.get("_type") or next(iter(kind.values()))
    return kind if isinstance(kind, str) else type(kind).__name__


def quantized_error(folder: Path, config: Any, device: torch.device, error: Exception) -> ModelError | None:
    """The error for weights that are quantized by their files and can't be loaded so; None for plain weights."""
    own = quantization_of(config)
    if own is None:
        return None
    what = f"its weights are quantized by {own['quant_method']} and cannot be loaded on {device}"
    return ModelError(f"{folder}: {what}: {one_line(error)}")

"""Heads of one model on several processes: which are this one's, and how what each says of its own comes together.

Under tensor parallelism (transformers' `tp_plan`) every process computes the same tokens, and of each layer the heads
of its own: the first process the first ones, and so on. All of them must go through the same passes in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from headprobe.errors import ModelError
from headprobe.geometry import ModelGeometry


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

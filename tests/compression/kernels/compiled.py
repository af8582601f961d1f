"""Every Triton program compiled for a GPU as the launches themselves ask for it, down to machine code; needs no GPU.

`python -m tests.compression.kernels.compiled few|corners|all [CARD]` prints a JSON list. What is compiled is what would
be launched: kernels are called on CPU tensors, and each launch becomes a compilation with the types, alignments,
constants and options that Triton reads off its arguments. Here it takes none of the liberties that its interpreter does
(numbers that are no power of two, types that change in a loop, too much shared memory).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from headprobe.compression.fused.launches import project, rotate_and_write
from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels import columns, split
from headprobe.compression.kernels.columns import fused_column_sums
from headprobe.compression.kernels.split import split_attention, split_weigh
from headprobe.compression.ragged_store import RaggedStore, Segment

single, half, brain = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Card:
    """A kind of GPU: compute capability, ptxas' name for it, and bytes of shared memory that one program may take."""

    capability: int
    name: str
    shared: int


CARDS = {
    "h100": Card(90, "sm_90a", 227 << 10),
    "a100": Card(80, "sm_80", 163 << 10),
    "rtx4090": Card(89, "sm_89", 99 << 10),
}


@dataclass(frozen=True)
class NoDriver:
    """What Triton asks of a driver before it launches anything, on a machine that has none."""

    card: Card

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.card.capability, 32)


@dataclass(frozen=True)
class Launch:
    """What a launch would have run: bytes of shared memory, registers of a thread, bytes that were spilled."""

    program: str
    variant: str
    warps: int
    shared: int
    registers: int
    spilled: int


@contextmanager
def compiling(card: Card, into: list[tuple[str, Any]]) -> Iterator[None]:
    """Inside the block every launch is compiled only; its program's name and what was made go to `into`."""
    plain = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        assert all(0 < size < 2**31 for size in grid[:1])
        assert all(0 < size < 2**16 for size in grid[1:])
        made = plain(self, *args, grid=grid, warmup=True, **options)
        into.append((self.__name__, made))
        return made

    driver.set_active(NoDriver(card))
    JITFunction.run = run
    columns.shared_bytes = split.shared_bytes = lambda device: card.shared
    try:
        yield
    finally:
        JITFunction.run = plain


def about(program: str, variant: str, made: Any, card: Card, folder: Path) -> Launch:
    """A compiled program: its shared memory, and what ptxas says of the rest."""
    file = folder / "program.ptx"
    file.write_text(made.asm["ptx"])
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    command = [ptxas, "-v", "--gpu-name", card.name, file, "-o", file.with_suffix(".cubin")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    words = said.replace(",", "").split()
    registers, spilled = int(words[words.index("registers") - 1]), int(words[words.index("spill") - 2])
    return Launch(program, variant, made.metadata.num_warps, made.metadata.shared, registers, spilled)


# -- what is launched -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """A call of the split kernel: `total` entries of room, `group` query heads a KV head, `count` new tokens."""

    dtype: torch.dtype = brain
    dim: int = 128
    value_dim: int = 0
    group: int = 4
    count: int = 1
    total: int = 2048
    softcap: bool = False
    sinks: bool = False
    bias: bool = False
    weighed: bool = False

    def call(self) -> None:
        """One segment with three entries; nothing is computed."""
        keys = torch.zeros(3, self.dim, dtype=self.dtype)
        values = torch.zeros(3, self.value_dim or self.dim, dtype=self.dtype)
        bias = torch.zeros(3) if self.bias else None
        store = RaggedStore([Segment(keys, values, bias)], 1, [self.total], 1)
        query = torch.zeros(1, self.group, self.count, self.dim, dtype=self.dtype)
        sinks = torch.zeros(self.group, dtype=self.dtype) if self.sinks else None
        shape = AttentionShape(0.1, 30.0 if self.softcap else None, sinks)
        split_weigh(query, store, shape) if self.weighed else split_attention(query, store, shape)


@dataclass(frozen=True)
class Columns:
    """A call of the column sums: `heads` query heads over two KV heads, `queries` of `keys` positions."""

    dtype: torch.dtype = brain
    dim: int = 128
    heads: int = 8
    queries: int = 512
    keys: int = 8192
    softcap: bool = False
    sinks: bool = False

    def call(self) -> None:
        """Queries as a model gives them, a view of `[T, H, d]`; keys as a reader holds them."""
        query = torch.zeros(self.queries, self.heads, self.dim, dtype=self.dtype).transpose(0, 1)
        key = torch.zeros(2, self.keys, self.dim, dtype=self.dtype)
        sinks = torch.zeros(self.heads, dtype=self.dtype) if self.sinks else None
        fused_column_sums(query, key, 0.1, 30.0 if self.softcap else None, sinks)


@dataclass(frozen=True)
class Fused:
    """The launches of a fused layer for `rows` sequences, of inputs of this `width`; `odd`: with biases, with norms of
    queries and keys, and of sizes that fit no block."""

    rows: int = 1
    width: int = 4096
    dim: int = 128
    odd: bool = False

    def call(self) -> None:
        """A layer's three projections and the rotary embeddings, of two query heads over one KV head."""

        def zeros(*size: int) -> torch.Tensor:
            return torch.zeros(*size, dtype=brain)

        x, gain = zeros(self.rows, self.width), zeros(self.width)
        heads = [
            (zeros(count * self.dim, self.width), zeros(count * self.dim) if self.odd else None) for count in (2, 1, 1)
        ]
        projected = project(x, heads, norm=(gain, 1e-5))
        last = torch.zeros(self.rows, dtype=torch.int64)
        rotary, gains = (zeros(1, 1, self.dim),) * 2, (zeros(self.dim), zeros(self.dim), 1e-6)
        rotate_and_write(
            projected, rotary, zeros(9, self.dim), zeros(9, self.dim), last, gains=gains if self.odd else None
        )
        size = 77 if self.odd else 512
        project(x, [(zeros(size, self.width), None)] * 2, norm=(gain, 1e-5), gated=True)
        project(x, [(zeros(size, self.width), None)], added=zeros(self.rows, size))


Call = Split | Columns | Fused


def few() -> list[Call]:
    """What most models launch, with everything at once."""
    special = {"softcap": True, "sinks": True}
    return [Split(bias=True, weighed=True, **special), Columns(**special), Fused(), Fused(16)]


def corners() -> list[Call]:
    """Each number format and width, with nothing special and with everything at once."""
    found: list[Call] = [Fused(rows, width, odd=True) for rows in (1, 2, 16) for width in (896, 4096, 5120)]
    for dtype, dim in ((brain, 64), (brain, 128), (half, 256), (single, 64), (single, 128)):
        found += [Split(dtype, dim), Columns(dtype, dim)]
    everything = {"softcap": True, "sinks": True}
    found += [
        Split(brain, 128, group=7, weighed=True, bias=True, **everything),
        Split(single, 96, group=3, count=5, bias=True, **everything),
        Split(brain, 192, value_dim=128, group=8, count=16),
        Columns(brain, 256, heads=14, **everything),
        Columns(single, 96, heads=6, **everything),
        Split(single, 80, group=1, weighed=True),
        Split(single, 256, group=8, count=16),
        Columns(single, 192, heads=14, **everything),
        Split(group=8, total=16, count=20000),  # a long later turn on a small cache
    ]
    return found


def every() -> list[Call]:
    """Every combination that models and policies ask for."""
    kinds = list(product((brain, half, single), (64, 96, 128, 256)))
    specials: list[dict[str, bool]] = [{}, {"softcap": True}, {"sinks": True}, {"softcap": True, "sinks": True}]
    found: list[Call] = []
    for (dtype, dim), special in product(kinds, specials):
        found.append(Columns(dtype, dim, **special))
        found += [Split(dtype, dim, bias=bias, weighed=weighed, **special) for bias in (0, 1) for weighed in (0, 1)]
    for dtype, dim in kinds:
        found += [Columns(dtype, dim, heads=2 * group) for group in (1, 3, 7, 8)]
        found += [Split(dtype, dim, group=group, weighed=True) for group in (1, 3, 7, 8, 24)]
        found += [Split(dtype, dim, count=count) for count in (4, 16, 64)]
        found += [Split(dtype, dim, total=total, weighed=True) for total in (1 << 17, 1 << 20, (1 << 20) + 1)]
    found += [Split(dtype, 192, value_dim=128) for dtype in (brain, half, single)]
    found += [Split(dtype, dim) for dtype in (brain, single) for dim in (16, 32, 72, 80, 112, 160)]
    found += [Columns(dtype, dim) for dtype in (brain, single) for dim in (16, 32, 72, 80, 112, 160, 192)]
    return list(dict.fromkeys(found))


def compiled(calls: list[Call], card: Card) -> list[Launch]:
    """What all calls would launch, each program once."""
    found: dict[Any, Launch] = {}
    with tempfile.TemporaryDirectory() as folder:
        for call in calls:
            made: list[tuple[str, Any]] = []
            with compiling(card, made):
                call.call()
            assert made
            for program, kernel in made:
                if kernel.hash not in found:
                    found[kernel.hash] = about(program, str(call), kernel, card, Path(folder))
    return list(found.values())


if __name__ == "__main__":
    calls = {"few": few, "corners": corners, "all": every}[sys.argv[1]]()
    kind = CARDS[sys.argv[2] if len(sys.argv) > 2 else "h100"]
    json.dump([asdict(launch) for launch in compiled(calls, kind)], sys.stdout)

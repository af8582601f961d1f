"""Every usable kernel against a plain reference in float64, on fresh random inputs with rubbish around them.

Slack behind the entries in use holds large numbers, which a kernel that reads too far would show (then NaN, recorded
apart: a kernel may multiply NaN by a weight of 0); memory that outputs are likely to get is filled with NaN before.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from headprobe.compression.importance import AttentionShape, column_sums
from headprobe.compression.kernels.choice import Kernel
from headprobe.compression.ragged_store import RaggedStore, Segment

# The largest absolute error of an output, values being standard normal: rounding of products, weights and output.
BOUNDS = {torch.float32: 5e-5, torch.bfloat16: 3e-2}
WEIGHT_BOUND = 2e-2  # of a weight that is summed over the rows of a group's heads, in half precision
SECONDS = 90.0  # after which no case is begun: each has kernels to compile
COLUMN_BOUND = 1e-3  # relative, of the attention that an entry got from all queries
LENGTHS = (1, 3, 63, 64, 65, 127, 128, 129, 255, 257, 1000, 17, 5, 2311, 2, 40)


@dataclass(frozen=True)
class Case:
    """One store and one query: head width, query heads a KV head, queries, and what else the model asks for."""

    dtype: torch.dtype
    width: int
    group: int
    count: int = 1
    softcap: float | None = None
    sinks: bool = False
    bias: bool = False

    @property
    def wants(self) -> dict[str, bool]:
        return {"softcap": self.softcap is not None, "sinks": self.sinks, "bias": self.bias}


def cases(dtypes: tuple[torch.dtype, ...]) -> list[Case]:
    """Every width and group in every type, each with one or several queries; extras one at a time and together."""
    plain = ((64, 1, 1), (80, 2, 3), (96, 8, 1), (128, 4, 1), (128, 4, 3), (256, 2, 1), (256, 8, 3), (64, 8, 3))
    found = []
    for dtype in reversed(dtypes):
        found += [Case(dtype, *sizes) for sizes in plain]
        found += [
            Case(dtype, 128, 4, softcap=20.0),
            Case(dtype, 64, 8, sinks=True),
            Case(dtype, 128, 4, bias=True),
            Case(dtype, 96, 2, 3, softcap=5.0, sinks=True, bias=True),
        ]
    return found


def run(bench: Bench, note: Any) -> None:
    dtypes = (torch.float32, torch.bfloat16)
    seed = time.time_ns() % 2**31
    note("seed", seed)
    note("bounds", {str(dtype).removeprefix("torch."): bound for dtype, bound in BOUNDS.items()})
    todo = cases(dtypes) if bench.on_gpu else cases(dtypes)[3::4]
    found: dict[str, dict[str, Any]] = {}
    begin = time.monotonic()
    for number, case in enumerate(todo):
        for kernel in bench.kernels(bench.needs(case.width, case.dtype, **case.wants)):
            kept = found.setdefault(kernel.name, {"cases": 0, "wrong": [], "largest": {}, "reads_slack": []})
            try:
                _add(kept, case, check(bench, kernel, case, seed + number))
            except Exception as error:  # one kernel's fault must not hide the others
                kept["wrong"].append({"case": str(dataclasses.astuple(case)), "error": bench.fault(error)})
        if number % 6 == 5:
            note("kernels", found)
        if time.monotonic() - begin > SECONDS:
            note("left_out", f"{len(todo) - number - 1} of {len(todo)} cases, after {SECONDS:.0f} s")
            break
    note("kernels", found)
    sums = column_errors(bench, seed)
    note("column_sums", sums)
    wrong = {name: kept["wrong"] for name, kept in found.items() if kept["wrong"]}
    wrong |= {f"column sums, {name}": [error] for name, error in sums.items() if not error <= COLUMN_BOUND}
    if wrong:
        raise RuntimeError(f"beyond the error bounds: {wrong}")


def _add(kept: dict[str, Any], case: Case, result: dict[str, Any]) -> None:
    kind, words = str(case.dtype).removeprefix("torch."), str(dataclasses.astuple(case))
    kept["cases"] += 1
    error = result["error"]
    kept["largest"][kind] = max(kept["largest"].get(kind, 0.0), error if error == error else float("inf"))
    if not error <= BOUNDS[case.dtype] or result["weight_error"] > WEIGHT_BOUND:
        kept["wrong"].append({"case": words} | result)
    if result["reads_slack"]:
        kept["reads_slack"].append(words)


def check(bench: Bench, kernel: Kernel, case: Case, seed: int) -> dict[str, Any]:
    """Largest error of output and weights, and whether NaN in the slack comes through."""
    generator = torch.Generator(bench.device).manual_seed(seed)
    batch, groups = 2, len(LENGTHS) // 2
    lengths = [max(length, case.count) for length in LENGTHS]
    store = random_store(bench, case, lengths, batch, generator)
    query = random(bench, case.dtype, generator, batch, groups * case.group, case.count, case.width)
    sinks = random(bench, torch.float32, generator, groups * case.group) if case.sinks else None
    shape = AttentionShape(case.width**-0.5, case.softcap, sinks)
    expected, weights = reference(query, store, shape)
    poison_free_memory(bench, query)
    given = kernel.attend(query, store, shape)
    error = float((given.double() - expected).abs().max())
    weight_error = 0.0
    if kernel.weigh is not None and case.count == 1:
        used = store.layout.offset < store.length[store.layout.segment]
        by_kernel = kernel.weigh(query, store, shape)[1]
        weight_error = float((by_kernel.double() - weights)[used].abs().max())
    fill_slack(store, float("nan"))
    reads_slack = bool(kernel.attend(query, store, shape).isnan().any())
    return {"error": error, "weight_error": weight_error, "reads_slack": reads_slack}


def random(bench: Bench, dtype: torch.dtype, generator: torch.Generator, *size: int) -> torch.Tensor:
    return torch.randn(size, generator=generator, device=bench.device).to(dtype)


def random_store(bench: Bench, case: Case, lengths: list[int], batch: int, generator: torch.Generator) -> RaggedStore:
    segments = [
        Segment(
            random(bench, case.dtype, generator, length, case.width),
            random(bench, case.dtype, generator, length, case.width),
            random(bench, torch.float32, generator, length) if case.bias else None,
        )
        for length in lengths
    ]
    room = np.arange(len(lengths)) * 37 % 70  # of the segments' slack: 0 to 69 entries
    store = RaggedStore(segments, batch, np.array(lengths) + room, 8)
    fill_slack(store, 1e4)
    return store


def fill_slack(store: RaggedStore, number: float) -> None:
    """Rubbish in all entries that are not in use."""
    unused = store.layout.offset >= store.length[store.layout.segment]
    for table in (store.keys, store.values):
        table.masked_fill_(unused[:, None], number)


def poison_free_memory(bench: Bench, query: torch.Tensor) -> None:
    """Fill memory of many sizes with NaN and let it go: outputs made by `empty` are likely to begin as NaN."""
    sizes = [query.nbytes, *(1 << power for power in range(9, 25))]
    for block in [torch.full((size // 4 + 1,), float("nan"), device=bench.device) for size in sizes]:
        del block


def reference(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `[B, H, T, d]` in float64, one segment at a time, and the weights of the last query `[total]`."""
    batch, heads, count, _ = query.shape
    groups, size = store.num_kv_heads, heads // store.num_kv_heads
    out = torch.zeros(batch, heads, count, store.values.shape[-1], dtype=torch.float64, device=query.device)
    given = torch.zeros(store.keys.shape[0], dtype=torch.float64, device=query.device)
    for index, (start, length) in enumerate(zip(store.starts.tolist(), store.lengths.tolist(), strict=True)):
        sequence, group = divmod(index, groups)
        used, own = slice(start, start + length), slice(group * size, (group + 1) * size)
        scores = query[sequence, own].double() @ store.keys[used].double().T * shape.scaling
        if shape.softcap is not None:
            scores = torch.tanh(scores / shape.softcap) * shape.softcap
        if store.bias is not None:
            scores = scores + store.bias[used].double()
        unseen = torch.ones(count, length, device=query.device).triu(length - count + 1).bool()
        scores = scores.masked_fill(unseen, float("-inf"))
        if shape.sinks is not None:
            extra = shape.sinks[own].double()[:, None, None].expand(-1, count, 1)
            weights = torch.cat([scores, extra], -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        out[sequence, own] = weights @ store.values[used].double()
        given[used] = weights[:, -1].mean(0)
    return out, given


def column_errors(bench: Bench, seed: int) -> dict[str, float]:
    """Largest relative error of the attention summed over queries (h2o), by type."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator(bench.device).manual_seed(seed)
        query = random(bench, dtype, generator, 8, 333, 128)
        key = random(bench, dtype, generator, 2, 777, 128)
        scores = query.double() @ key.double().repeat_interleave(4, 0).transpose(1, 2) * 0.1
        unseen = torch.ones(333, 777, device=bench.device).triu(777 - 333 + 1).bool()
        expected = scores.masked_fill(unseen, float("-inf")).softmax(-1).view(2, 4, 333, 777).sum(2).sum(1) / 4
        given = column_sums(query, key, AttentionShape(0.1)).double()
        found[str(dtype).removeprefix("torch.")] = float(((given - expected).abs() / expected.clamp_min(1e-3)).max())
    return found

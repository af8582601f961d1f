"""The split kernel against plain loops: `python -m tests.compression.kernels.split_cases` prints errors over bounds.

Run by `test_split`, in Triton's interpreter. Inputs are new at each run; uninitialised memory and slack are NaN.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import numpy as np
import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels import split, tables
from headprobe.compression.ragged_store import RaggedStore, Segment
from tests.compression.kernels.stores import plain, plain_weights, poison

# Largest error allowed, as a part of the largest value: weights and outputs are each rounded once to the store's type.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
WEIGHTS_BOUND = 1e-5  # weights stay in float32; scores of half-precision products are exact to float32


@dataclass(frozen=True)
class Case:
    """`lengths` of the segments, of `batch` sequences; `group` query heads a KV head; `count` new tokens."""

    lengths: tuple[int, ...]
    batch: int = 1
    group: int = 2
    count: int = 1
    dim: int = 64
    value_dim: int = 0
    dtype: torch.dtype = torch.float32
    softcap: float | None = None
    sinks: bool = False
    bias: bool = False
    weighed: bool = False
    splits_wanted: int = tables.SPLITS_WANTED
    partial_elements: int = split.PARTIAL_ELEMENTS


half, brain = torch.float16, torch.bfloat16
CASES = {
    "odd lengths": Case((1, 63, 64, 65)),
    "odd lengths in bfloat16": Case((1, 63, 64, 65), dtype=brain),
    "very uneven": Case((400, 1, 7, 2), batch=2, group=4, dim=128, dtype=brain),
    "several tiles to a split": Case((300, 5, 100), group=3, splits_wanted=3),
    "one split and many": Case((64, 65, 1, 700, 128, 129, 20, 300), batch=2, group=4, dim=128, dtype=brain),
    "many splits of one row": Case((1200, 2), group=1, dim=128),
    "many splits of 16 rows": Case((500, 2), group=16, dim=32, sinks=True, weighed=True),
    "blocks of rows and many splits": Case((400, 41, 64), group=3, count=23, dim=32, sinks=True),
    "blocks of rows and many splits in bfloat16": Case((300, 50), group=5, count=26, dim=128, bias=True, dtype=brain),
    "an empty segment and sinks": Case((70, 0, 9), group=3, sinks=True),
    "three new tokens": Case((3, 63, 66, 130), batch=2, count=3),
    "three new tokens in bfloat16, 24 rows": Case((3, 64), group=8, count=3, dim=96, dtype=brain),
    "more rows than a program takes": Case((41, 70), count=40),
    "queries in blocks": Case((3, 70), count=3, partial_elements=1),
    "one query head, width 80": Case((70, 9), group=1, dim=80),
    "width 96 in float16": Case((70, 9), group=3, dim=96, dtype=half),
    "width 256": Case((70, 9), group=1, dim=256),
    "width 256 in bfloat16": Case((70, 9), group=8, dim=256, dtype=brain),
    "values of another width": Case((70, 9), dim=32, value_dim=16),
    "keys of 192, values of 128 in bfloat16": Case((70, 9), group=4, dim=192, value_dim=128, dtype=brain),
    "softcap": Case((70, 9), softcap=1.5),
    "sinks": Case((70, 9, 1, 3), batch=2, sinks=True),
    "bias": Case((70, 9), count=3, bias=True),
    "all in bfloat16": Case((130, 9), group=4, count=3, softcap=2.0, sinks=True, bias=True, dtype=brain),
    "weights": Case((1, 64, 150, 3), batch=2, group=4, weighed=True),
    "weights with softcap, sinks and bias": Case((65, 2), group=1, softcap=2.0, sinks=True, bias=True, weighed=True),
    "weights in bfloat16": Case((65, 2), group=8, dim=128, dtype=brain, weighed=True),
}


def error(case: Case, device: str) -> float:
    """The largest error of a case, as a part of what is allowed; infinite where another call gives anything else."""
    store = _store(case)
    query = torch.randn(case.batch, store.num_kv_heads * case.group, case.count, case.dim).to(case.dtype)
    sinks = torch.randn(query.shape[1]) + 1 if case.sinks else None
    shape = AttentionShape(0.2, case.softcap, sinks)
    wanted = [plain(query, store, shape)]
    allowed = [BOUNDS[case.dtype] * float(store.values.float().nan_to_num(0.0).abs().max())]
    if case.weighed:
        wanted, allowed = [*wanted, plain_weights(query, store, shape)], [*allowed, WEIGHTS_BOUND]
    there = _on(store, device)
    given_shape = AttentionShape(0.2, case.softcap, None if sinks is None else sinks.to(device))
    given, again = (_results(query.to(device), there, given_shape, weighed=case.weighed) for _ in range(2))
    if not all(map(torch.equal, given, again)):
        return float("inf")
    return max(_largest(*pair) / bound for *pair, bound in zip(given, wanted, allowed, strict=True))


def _results(query: torch.Tensor, store: RaggedStore, shape: AttentionShape, *, weighed: bool) -> list[torch.Tensor]:
    if weighed:
        return list(split.split_weigh(query, store, shape))
    return [split.split_attention(query, store, shape)]


def _largest(given: torch.Tensor, wanted: torch.Tensor) -> float:
    assert given.shape == wanted.shape
    return float((given.cpu().float() - wanted).abs().nan_to_num(float("inf")).max())


def _store(case: Case) -> RaggedStore:
    tables.SPLITS_WANTED, split.PARTIAL_ELEMENTS = case.splits_wanted, case.partial_elements
    segments = [
        Segment(
            torch.randn(length, case.dim).to(case.dtype),
            torch.randn(length, case.value_dim or case.dim).to(case.dtype),
            torch.randn(length) if case.bias else None,
        )
        for length in case.lengths
    ]  # fmt: skip
    store = RaggedStore(segments, case.batch, [length + 3 for length in case.lengths], 3)
    poison(store, float("nan"))
    return store


def _on(store: RaggedStore, device: str) -> RaggedStore:
    for name in ("keys", "values", "bias", "start", "length"):
        tensor = getattr(store, name)
        setattr(store, name, None if tensor is None else tensor.to(device))
    store.lengths = np.zeros_like(store.lengths)  # in a captured step the host's count is not what the device has
    return store


def errors(device: str) -> dict[str, float]:
    """Errors of all cases, uninitialised memory filled with NaN."""
    torch.use_deterministic_algorithms(True)
    assert bool(torch.ones(1).new_empty(99).isnan().all())
    return {name: error(case, device) for name, case in CASES.items()}


if __name__ == "__main__":
    from tests.compression.kernels.interpreter import mend_interpreter

    mend_interpreter()
    seed = torch.manual_seed(0).initial_seed()
    json.dump({"seed": seed, "errors": errors("cpu")}, sys.stdout)

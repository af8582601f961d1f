"""The projections of a fused layer in several sizes, beside cuBLAS's products of the same weights.

One pass goes over all layers' weights, as a decode step does. `Blocking.of` takes what was fastest here on an H200; on
another card this says what would be. `norm_first`: the norm by torch, then the projection in the sizes of one without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import linear, rms_norm

from benchmarks.gpu.bench import Bench
from headprobe.compression.fused.launches import Biased, Blocking, project
from headprobe.compression.kernels.source import TRITON

BY_NUMBER = ((4, 512, 4, 3), (4, 1024, 4, 3), (8, 512, 4, 3), (8, 512, 4, 4), (16, 256, 4, 4), (2, 1024, 4, 1))
BY_DOT = ((16, 256, 2, 4), (32, 128, 4, 5), (64, 64, 4, 4), (64, 64, 4, 5), (64, 128, 4, 3))
EPSILON = 1e-5
SHOWN = 4


def run(bench: Bench, note: Any) -> None:
    if not bench.on_gpu or TRITON.fault() is not None:
        note("skipped", TRITON.fault() or "Triton's programs run on a GPU alone")
        return
    for name, parts, normed, gated in (
        ("heads", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), True, False),
        ("output", ("self_attn.o_proj",), False, False),
        ("gate", ("mlp.gate_proj", "mlp.up_proj"), True, True),
        ("down", ("mlp.down_proj",), False, False),
    ):
        layers = [[(layer.get_submodule(part).weight, None) for part in parts] for layer in bench.model.model.layers]
        for rows in (1, bench.shape.batch):
            note(f"{name}_{rows}", timed(bench, layers, rows, normed=normed, gated=gated))
            bench.free()


def timed(bench: Bench, layers: Sequence[Sequence[Biased]], rows: int, *, normed: bool, gated: bool) -> dict[str, Any]:
    """Microseconds a layer of the fastest sizes, of cuBLAS, and of what `Blocking.of` takes."""
    width, sizes = layers[0][0][0].shape[1], [weight.shape[0] for weight, _ in layers[0]]
    x = torch.randn(rows, width, dtype=bench.dtype, device=bench.device)
    gain = torch.rand(width, dtype=bench.dtype, device=bench.device) + 0.5
    norm, added = (gain, EPSILON) if normed else None, None if normed else x.new_ones(rows, sizes[0])

    def us(work: Callable[[Sequence[Biased]], object]) -> float | str:
        try:
            replayed = bench.replayed(lambda: [work(layer) for layer in layers])
            return round(1e6 * bench.seconds(replayed, repeats=5) / len(layers), 2)
        except Exception as error:  # one size's fault must not cost the others
            return bench.fault(error)

    def ours(blocking: Blocking | None) -> Callable[[Sequence[Biased]], object]:
        return lambda layer: project(x, layer, norm=norm, gated=gated, added=added, blocking=blocking)

    tried = [Blocking(*given, by_dot=True) for given in BY_DOT]
    if rows == 1:
        tried += [Blocking(*given, by_dot=False) for given in BY_NUMBER]
    times = {f"{b.block},{b.step},{b.warps},{b.stages},{'dot' if b.by_dot else 'number'}": us(ours(b)) for b in tried}
    fastest = sorted((time, name) for name, time in times.items() if isinstance(time, float))[:SHOWN]
    found: dict[str, Any] = {
        "bytes": 2 * width * sum(sizes), "taken_us": us(ours(None)), "fastest_us": fastest,
        "faults": {name: time for name, time in times.items() if isinstance(time, str)},
        "cublas_us": us(lambda layer: [linear(x, weight) for weight, _ in layer]),
    }  # fmt: skip
    if normed:
        plain = Blocking.of(rows)
        found["norm_first_us"] = us(
            lambda layer: project(rms_norm(x, (width,), gain, EPSILON), layer, gated=gated, blocking=plain)
        )
    return found

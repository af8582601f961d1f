"""The picture of a bench: which points its lines go through, and that lines can be told apart."""

from __future__ import annotations

from typing import Any

import pytest

from headprobe.errors import OptionError
from headprobe.pictures.bench import bench_figure, key_of, latency_points, line_looks, peak_points
from headprobe.pictures.page import figure_bytes

WHERE = {"device": "a processor", "threads": 2, "headprobe": "0", "torch": "2", "transformers": "5"}


def cell(policy: str, length: int, peak: int | None, budget: int | None = None, **more: Any) -> dict[str, Any]:
    measured = {"prefill_s": 1.0, "new_tokens": [1, 9], "latency_s": [1.0, 3.0], "kernel": "torch", "error": None}
    return {"policy": policy, "budget": budget, "length": length, "batch": 1, "peak_bytes": peak} | measured | more


def record(cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": "tiny", "random_weights": True, "dtype": "torch.float32", "environment": WHERE, "repeats": 3,
        "batches": [1], "cells": cells,
    }  # fmt: skip


CELLS = [
    cell("full", 512, 2048), cell("full", 1024, 4096), cell("snapkv", 512, 1024, 16),
    cell("snapkv", 1024, None, 16, prefill_s=None, latency_s=None, error="no memory"),
]  # fmt: skip


def test_a_line_goes_through_what_was_measured_and_ends_there() -> None:
    full, snapkv = key_of(CELLS[0]), key_of(CELLS[2])
    assert peak_points(CELLS, full) == [(512, 2048), (1024, 4096)]
    assert peak_points(CELLS, snapkv) == [(512, 1024)]
    assert latency_points(CELLS, full, 1024) == [(1, 1.0), (9, 3.0)]
    assert latency_points(CELLS, snapkv, 1024) == []


def test_the_picture_has_a_panel_for_latency_and_one_for_memory() -> None:
    axes = [each for each in bench_figure(record(CELLS)).axes if each.get_xlabel()]
    assert [(each.get_xlabel(), each.get_ylabel()) for each in axes] == [
        ("tokens of the answer", "seconds, prefill included"), ("tokens of the prompt", "KiB"),
    ]  # fmt: skip
    assert [line.get_xydata().tolist() for line in axes[1].lines] == [[[512, 2], [1024, 4]], [[512, 1]]]
    assert figure_bytes(lambda: bench_figure(record(CELLS)), "png").startswith(b"\x89PNG")


def test_no_two_of_twenty_lines_look_alike() -> None:
    looks = line_looks([(f"policy {number}", 16, None) for number in range(20)])
    assert len({tuple(map(str, look.values())) for look in looks.values()}) == 20


def test_nothing_measured_is_no_picture() -> None:
    with pytest.raises(OptionError, match="0 lines"):
        bench_figure(record(CELLS[3:]))

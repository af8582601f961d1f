from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.head_scores import HeadScores, Method, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance
from headprobe.scores.score_file import write_score_file


def build_scores(
    table: Any, kv_heads: int | None = None, model: str = "toy/model", formula: str = "mass on the answer"
) -> HeadScores:
    """Scores whose mean is `table`: three passing trials that agree, and one that failed."""
    layers, heads = np.shape(table)
    geometry = ModelGeometry(layers, heads, kv_heads or heads, 16, ("full_attention",) * layers)
    trials = tuple(
        Trial(f"n{i}", "n", 512 << i, 50.0 * i % 101, i != 1, 1.0, "", 3, np.asarray(table, dtype=float))
        for i in range(4)
    )
    probes = {"needles": {"name": "reasoning"}, "haystack": {"name": "essays"}}
    provenance = Provenance(ModelIdentity(model), None, probes, {}, "2025-01-31T12:00:00Z")
    return HeadScores(geometry, Method("r2", formula, 1, {}), trials, provenance)


def build_sparse(layers: int, heads: int, kv_heads: int | None = None, seed: int = 0) -> HeadScores:
    """Scores as models have them: most heads near 0, a few high, two of the best side by side."""
    table = np.random.default_rng(seed).gamma(0.25, 0.05, (layers, heads))
    table[layers // 2, :2] = 0.9, 0.8
    return build_scores(np.minimum(table, 1.0), kv_heads)


@pytest.fixture
def make_scores() -> Callable[..., HeadScores]:
    return build_scores


@pytest.fixture
def make_sparse() -> Callable[..., HeadScores]:
    return build_sparse


@pytest.fixture
def native(tmp_path) -> Callable[..., AnyScores]:
    """A native file with this table, as it is read."""

    def read(table: Any, name: str = "native.json", **options: Any) -> AnyScores:
        return read_any(write_score_file(tmp_path / name, build_scores(table, **options)))

    return read


@pytest.fixture
def keyed(tmp_path) -> Callable[..., AnyScores]:
    """A file of the HeadKV family with these trials `[T, L, H]`, as it is read."""
    return lambda trials, name="keyed.json": read_any(write_keyed(tmp_path / name, trials))


def write_keyed(path: Path, trials: Any) -> Path:
    trials = np.asarray(trials, dtype=float)
    _, layers, heads = trials.shape
    rows = {f"{layer}-{head}": trials[:, layer, head].tolist() for layer in range(layers) for head in range(heads)}
    path.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    return path

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import close_session, constants

from headprobe.scores.score_file import score_file_bytes
from tests.hub_stand_in import TOKEN, Hub, serve
from tests.scores.conftest import build_scores

REPO = "lena/head-scores"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, which the hub client takes for the real one; we are logged in."""
    with serve(Hub()) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        close_session()
        yield served
        close_session()


@pytest.fixture
def score_bytes() -> bytes:
    """A native file of 2 x 4 heads, from 24 trials that differ a little."""
    return make_score_bytes()


def make_score_bytes(seed: int = 0) -> bytes:
    random = np.random.default_rng(seed)
    base = np.array([[0.0, 0.2, 0.4, 0.0], [0.9, 0.0, 0.05, 0.1]])
    tables = [np.clip(base + random.normal(0, 0.01, base.shape), 0, 1) for _ in range(24)]
    made = build_scores(tables, [True] * 24, kv_heads=2)
    trials = tuple(replace(trial, depth=trial.depth % 150) for trial in made.trials)
    return score_file_bytes(replace(made, trials=trials))


@pytest.fixture
def score_file(tmp_path: Path, score_bytes: bytes) -> Path:
    """The same as a file, `toy--r2.json`."""
    path = tmp_path / "toy--r2.json"
    path.write_bytes(score_bytes)
    return path

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from headprobe.geometry import ModelGeometry
from headprobe.pictures.report.report import report_html
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.head_scores import HeadScores, Method, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance
from headprobe.scores.score_file import write_score_file
from tests.browser import Browser, browser, find_browser

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&lt;\u2028`${1}`"


def score_file(
    path: Path, seed: int = 0, shape: tuple[int, int] = (4, 8), kv_heads: int = 4, name: str = "toy/model",
    method: str = "r2",
) -> Path:  # fmt: skip
    """A native file of 24 trials that differ, two of them failed, one length and depth never tried."""
    rng = np.random.default_rng(seed)
    table = rng.gamma(0.4, 0.15, shape)
    geometry = ModelGeometry(*shape, kv_heads, 16, ("full_attention",) * shape[0])
    trials = tuple(
        Trial(
            f"{i}", f"needle {i % 4}", 512 << (i % 3), 50.0 * (i % 2), i not in (5, 9), 1.0, f"answer {i}", 3,
            np.minimum(table * rng.gamma(4.0, 0.25, shape), 1.0),
        )
        for i in range(24)
        if (i % 3, i % 2) != (2, 1)
    )  # fmt: skip
    trials = (*trials, Trial("hostile", HOSTILE, 4096, 0.0, False, 0.0, HOSTILE, 3, np.zeros(shape)))
    provenance = Provenance(ModelIdentity(name), None, {"seed": 0}, {"note": HOSTILE}, "2025-01-31T12:00:00Z")
    scores = HeadScores(geometry, Method(method, f"mass {HOSTILE}", 1, {}), trials, provenance)
    return write_score_file(path, scores)


@pytest.fixture
def files(tmp_path) -> Callable[..., AnyScores]:
    """A native file by name and seed, as it is read."""
    return lambda path="a.json", **options: read_any(score_file(tmp_path / path, **options))


@pytest.fixture
def page(tmp_path) -> Callable[..., Path]:
    """A report about these files, as a file."""

    def write(*scores: AnyScores) -> Path:
        path = tmp_path / "report.html"
        path.write_bytes(report_html(scores))
        return path

    return write


@pytest.fixture(scope="session")
def chromium(tmp_path_factory) -> Iterator[Browser]:
    """A headless browser for all tests of the session."""
    if find_browser() is None:
        pytest.skip("needs a Chromium on the path, or HEADPROBE_BROWSER")
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found

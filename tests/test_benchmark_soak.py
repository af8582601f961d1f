"""The soak: long runs at constant memory, in short by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import FLAT, Series, soak_trials, soak_turns
from headprobe.models.loading import load_model


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo", device="cpu", dtype="float32")


def test_the_first_tenth_does_not_count() -> None:
    sizes = (50, 100, 100, 101, 100, 100, 100, 100, 100, 102, 100)
    series = Series(tuple(range(0, 1100, 100)), sizes, 1.0)
    assert series.late == sizes[1:]
    assert series.spread == pytest.approx(0.02)
    assert series.record()["is_flat"] == (series.spread <= FLAT)
    grown = Series((100, 200, 300), (100, 100, 103), 1.0)
    assert grown.record()["is_flat"] is False


@pytest.mark.parametrize(("trials", "every"), [(60, 10), pytest.param(10_000, 100, marks=pytest.mark.slow)])
def test_trials_take_no_more_memory_the_longer_they_run(tmp_path: Path, demo: Any, trials: int, every: int) -> None:
    series, passed = soak_trials(demo, trials, tmp_path, every)
    assert series.at[-1] == trials
    assert 0 < passed <= trials
    assert series.record()["is_flat"], series


def test_a_soak_that_was_stopped_goes_on(tmp_path: Path, demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class StoppedError(Exception):
        pass

    def stop(self: Any, *given: object) -> None:
        assert len(given) <= 2
        self._steps += 1
        if self._steps == 25:
            raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr("benchmarks.soak.Watched.step", stop)
        with pytest.raises(StoppedError):
            soak_trials(demo, 60, tmp_path, 10)
    series, _ = soak_trials(demo, 60, tmp_path, 10)
    assert series.at == (30, 40, 50, 60)


@pytest.mark.parametrize(("turns", "every"), [(12, 2), pytest.param(200, 1, marks=pytest.mark.slow)])
def test_turns_of_a_session_take_no_more_memory_the_more_there_are(demo: Any, turns: int, every: int) -> None:
    series, entries = soak_turns(demo, turns, every)
    assert series.record()["is_flat"], series
    assert entries == 64 * 6 * 4  # mean entries per KV head, layers, KV heads

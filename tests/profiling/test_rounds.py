"""Scoring until the best heads are stable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import OptionError
from headprobe.models.loading import load_model
from headprobe.profiling.journal import Journal
from headprobe.profiling.run import ScoreOptions, journal_path, prepare, run, score
from headprobe.profiling.scoring import round_totals, settled, spread_order

SHORT = {"lengths": (200, 256, 320), "depths": 10, "needles_per_cell": 2}  # 60 trials


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo")


def test_a_run_stops_once_the_best_heads_are_stable(tmp_path: Path, demo: Any) -> None:
    seen: list[str] = []
    options = ScoreOptions(**SHORT, until_stable=5)
    result = score(demo, options, output=tmp_path / "a.json", on_trial=lambda record: seen.append(record["trial"]))
    scores = result.scores["r2"]
    assert scores.num_trials == len(seen) < 60
    assert scores.num_trials in round_totals(60)
    assert settled(scores, 5).is_stable
    assert scores.provenance.probes["until_stable"] == {"top": 5, "agreement": 0.95}
    assert scores.provenance.probes["limit"] == scores.num_trials
    assert {trial.length for trial in scores.trials} == {200, 256, 320}
    assert not journal_path({"r2": tmp_path / "a.json"}).exists()


def test_a_run_that_does_not_settle_goes_through_the_whole_plan(tmp_path: Path, demo: Any) -> None:
    options = ScoreOptions(lengths=(200,), depths=8, needles_per_cell=1, until_stable=5)
    scores = score(demo, options, output=tmp_path / "a.json").scores["r2"]
    assert scores.num_trials == 8  # fewer than can tell
    assert "limit" not in scores.provenance.probes or scores.provenance.probes["limit"] is None


def test_every_trial_is_measured_once_and_told_once(tmp_path: Path, demo: Any) -> None:
    told: list[str] = []
    options = ScoreOptions(lengths=(200, 256), depths=10, needles_per_cell=2, until_stable=40)
    prepared = prepare(demo, options)
    paths = {"r2": tmp_path / "a.json"}
    result = run(
        demo, prepared, paths, on_trial=lambda r: told.append(r["trial"]), on_resume=lambda rs: told.append("x")
    )
    assert sorted(told) == sorted(trial.id for trial in result.scores["r2"].trials)


def test_a_stopped_run_resumes_to_the_same_file(tmp_path: Path, demo: Any) -> None:
    options = ScoreOptions(**SHORT, until_stable=5)
    whole = score(demo, options, output=tmp_path / "whole.json").scores["r2"]
    paths = {"r2": tmp_path / "part.json"}
    prepared, resumed = prepare(demo, options), []

    def interrupt(record: dict[str, Any]) -> None:
        resumed.append(record["trial"])
        if len(resumed) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(demo, prepared, paths, on_trial=interrupt)
    again: list[int] = []
    result = run(demo, prepared, paths, resume=True, on_resume=lambda records: again.append(len(records)))
    assert again == [7]
    assert result.scores["r2"].trials == whole.trials
    ids = [json.loads((tmp_path / f"{name}.json").read_bytes())["id"] for name in ("whole", "part")]
    assert ids[0] == ids[1]


def test_a_journal_of_a_run_that_stops_early_belongs_to_that_rule(tmp_path: Path, demo: Any) -> None:
    plain, early = (prepare(demo, ScoreOptions(**SHORT, until_stable=k)).description(demo) for k in (None, 5))
    assert "until_stable" not in plain
    assert early == {**plain, "until_stable": 5}
    with Journal.start(tmp_path / "a.journal", early) as journal:
        assert journal.records == {}


@pytest.mark.parametrize("top", [0, 48])
def test_a_number_of_heads_that_cannot_be_settled_is_refused(tmp_path: Path, demo: Any, top: int) -> None:
    message = f"until_stable is {top}, need 1 to 47 of the model's 48 heads"
    with pytest.raises(OptionError, match=message):
        prepare(demo, ScoreOptions(**SHORT, until_stable=top))


def test_every_beginning_of_the_order_is_spread_over_the_plan() -> None:
    order = spread_order(100)
    assert sorted(order) == list(range(100))
    for size in round_totals(100):
        counts = [sum(i // 20 == length for i in order[:size]) for length in range(5)]
        assert max(counts) - min(counts) <= 3


def test_the_command_says_after_how_many_trials_it_stopped(cli: Any, tmp_path: Path) -> None:
    grid = ["--lengths", "200,256,320", "--depths", 10]
    done = cli("score", *grid, "--until-stable", 5, "-o", tmp_path / "a.json", "--json")
    assert done.code == 0
    number = json.loads(done.out)["num_trials"]
    assert f"headprobe: r2 after {number} of 60 trials: the top 5 are stable" in done.err

"""One file has one interval for a head, whichever command prints it: needles are drawn, 2,000 times, by seed 0."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headprobe.commands.score_output import print_scores
from headprobe.commands.scores.stability import stability_command
from headprobe.pictures.report.record import file_record, short_numbers
from headprobe.scores.any_scores import read_any
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.hub.parcel import score_card
from headprobe.scores.score_file import write_score_file
from headprobe.scores.uncertainty import CLUSTERING, CONFIDENCE, NUM_RESAMPLES, SEED, estimate
from headprobe.scores.validation import validate_file


@pytest.fixture
def scores(make_scores) -> HeadScores:
    """40 trials of 13 needles in two lengths, of which needles decide most and three failed."""
    rng = np.random.default_rng(8)
    by_needle = 0.2 * rng.random((13, 3, 5))
    tables = [
        np.linspace(0.6, 0.1, 15).reshape(3, 5) + by_needle[i % 13] + 0.02 * rng.random((3, 5)) for i in range(40)
    ]
    made = make_scores(tables, [i not in (4, 19, 33) for i in range(40)])
    rows = [replace(trial, needle=f"n{i % 13}", depth=2.5 * i) for i, trial in enumerate(made.trials)]
    return replace(made, trials=tuple(rows))


@pytest.fixture
def path(scores, tmp_path) -> Path:
    return write_score_file(tmp_path / "toy.json", scores)


def wanted(scores: HeadScores, layer: int, head: int) -> tuple[float, float]:
    """By plain loops over needles."""
    passing = [trial for trial in scores.trials if trial.passed]
    needles = list(dict.fromkeys(trial.needle for trial in passing))
    times = np.random.default_rng(0).multinomial(len(needles), [1 / len(needles)] * len(needles), size=2000).tolist()
    means = []
    for row in times:
        drawn = [(row[needles.index(trial.needle)], trial.scores[layer, head]) for trial in passing]
        means.append(sum(n * value for n, value in drawn) / sum(n for n, _ in drawn))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def test_all_commands_print_one_interval(cli, path, scores, capsys) -> None:
    heads = [(layer, head) for layer, head, _ in scores.top(10)]
    shown = json.loads(cli("scores", "show", path, "--json").out)["top_heads"]
    stable = json.loads(cli("scores", "stability", path, "--json", "--show", 10).out)["top_heads"]
    ranked = json.loads(cli("heatmap", path, "--kind", "ranks", "--top", 10, "--json").out)["heads"]
    told = [(h["layer"], h["head"]) for h in shown]
    assert told == [(h["layer"], h["head"]) for h in stable] == [(h["layer"], h["head"]) for h in ranked] == heads
    ends = [(h["score_low"], h["score_high"]) for h in stable]
    assert ends == [(h["score_low"], h["score_high"]) for h in ranked]
    assert ends == [(h["low"], h["high"]) for h in shown]
    assert ends[0] == pytest.approx(wanted(scores, *heads[0]), abs=1e-12)
    in_words = [f"{low:.3f} to {high:.3f}" for low, high in ends]
    capsys.readouterr()
    print_scores([(scores, path)], as_json=False)
    table = capsys.readouterr().out
    card = score_card(scores, "toy.json", None, "lena/scores")
    text = cli("scores", "stability", path).out + cli("heatmap", path, "--kind", "ranks", "--overwrite").out
    for words in in_words:
        assert words in table
        assert words in card
        assert text.count(words) >= 2
    page = file_record(read_any(path), "toy.json", validate_file(path))["intervals"]
    assert [(page["low"][5 * la + h], page["high"][5 * la + h]) for la, h in heads] == [
        tuple(short_numbers(np.array(pair))) for pair in ends
    ]


def test_an_evaluation_measures_in_the_same_way(scores) -> None:
    """The score of one head as if it were the metric of a prompt."""
    passing = [trial for trial in scores.trials if trial.passed]
    found = estimate([float(t.scores[1, 2]) for t in passing], [t.needle for t in passing])
    assert (found.low, found.high) == pytest.approx(wanted(scores, 1, 2), abs=1e-12)


def test_the_defaults_of_the_options_are_those_of_the_module() -> None:
    options = inspect.signature(stability_command).parameters
    assert options["clusters"].default == CLUSTERING == "needle"
    assert (options["resamples"].default, options["seed"].default) == (NUM_RESAMPLES, SEED) == (2000, 0)
    assert CONFIDENCE == 0.95

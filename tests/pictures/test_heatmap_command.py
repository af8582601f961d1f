from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import headprobe
from headprobe.commands.heatmap import heatmap_command
from headprobe.errors import FileFormatError, OptionError
from headprobe.scores.score_file import write_score_file
from tests.pictures.conftest import write_keyed

app = typer.Typer()
app.command()(heatmap_command)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def scores(make_scores):
    return make_scores([[0.5, 0.25, 0.0, 0.0], [0.0, 0.125, 0.75, 0.0]], kv_heads=2)


def test_the_picture_goes_beside_the_score_file(run, scores, tmp_path):
    write_score_file(tmp_path / "mine" / "model--r2.json", scores)
    done = run("mine/model--r2.json")
    assert done.exit_code == 0
    assert (tmp_path / "mine" / "model--r2.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.startswith("toy/model\nr2: mass on the answer\n3 of 4 trials passed (75 %)")
    assert done.stdout.endswith("\npicture: mine/model--r2.png\n")


def test_without_an_argument_the_newest_file_is_taken(run, scores, tmp_path):
    for name, time in (("old", 10), ("new", 20), ("older", 5)):
        os.utime(write_score_file(tmp_path / "scores" / f"{name}.json", scores), (time, time))
    assert run().exit_code == 0
    assert [file.name for file in (tmp_path / "scores").glob("*.png")] == ["new.png"]


def test_json_prints_path_and_top_heads(run, scores, tmp_path):
    write_score_file(tmp_path / "s.json", scores)
    done = run("s.json", "-o", "p.svg", "--top", "2", "--json")
    assert json.loads(done.stdout) == {
        "path": "p.svg",
        "scores": "s.json",
        "kv_heads": False,
        "top_heads": [{"layer": 1, "head": 2, "score": 0.75}, {"layer": 0, "head": 0, "score": 0.5}],
    }
    assert (tmp_path / "p.svg").exists()


def test_kv_heads_are_joined_by_their_mean(run, scores, tmp_path):
    write_score_file(tmp_path / "s.json", scores)
    printed = json.loads(run("s.json", "--kv-heads", "--top", "1", "--json").stdout)
    assert printed["kv_heads"] is True
    assert printed["top_heads"] == [{"layer": 0, "head": 0, "score": 0.375}]


def test_no_score_file_is_an_error(run):
    assert isinstance(run().exception, FileFormatError)


@pytest.mark.parametrize("arguments", [("-o", "p.gif"), ("--top", "-1")])
def test_bad_options_are_errors_and_draw_nothing(run, scores, tmp_path, arguments):
    write_score_file(tmp_path / "s.json", scores)
    assert isinstance(run("s.json", *arguments).exception, OptionError)
    assert [file.name for file in tmp_path.iterdir()] == ["s.json"]


def test_a_top_of_0_marks_nothing(run, scores, tmp_path):
    write_score_file(tmp_path / "s.json", scores)
    done = run("s.json", "--top", "0", "-o", "p.svg")
    assert done.exit_code == 0
    assert "top:" not in done.stdout
    assert json.loads(run("s.json", "--top", "0", "--json").stdout)["top_heads"] == []


def test_against_draws_the_difference(run, make_scores, tmp_path):
    write_score_file(tmp_path / "a.json", make_scores([[0.5, 0.25]]))
    write_score_file(tmp_path / "b.json", make_scores([[0.25, 0.75]]))
    done = run("a.json", "--against", "b.json", "--top", "1", "--json")
    assert json.loads(done.stdout) == {
        "path": "a--against.png",
        "scores": "a.json",
        "against": "b.json",
        "kv_heads": False,
        "unit": "mean score",
        "moved": [{"layer": 0, "head": 1, "first": 0.25, "second": 0.75, "difference": -0.5}],
    }
    assert "moved: 0-1 -0.500, 0-0 +0.250\n" in run("a.json", "--against", "b.json", "--overwrite").stdout


def test_against_goes_with_the_heatmap_only(run, scores, tmp_path):
    write_score_file(tmp_path / "s.json", scores)
    error = run("s.json", "--against", "s.json", "--kind", "layers").exception
    assert isinstance(error, OptionError)
    assert str(error) == "--against draws a heatmap of the difference, not 'layers'"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("distribution", "2 heads of 8 hold half of the total score\n"),
        ("layers", "layer  share  best head\n    0  46.2%  0-0 0.500"),
        ("coverage", "tokens    0   49   50  100\n"),
        ("ranks", "   1  1-2      0.750   0.750 to 0.750    1 to 1\n"),
        ("budgets", "128 tokens per KV head on average, beta 1.2, window 8\n"),
    ],
)
def test_other_kinds_go_beside_the_score_file_and_say_what_they_show(run, scores, tmp_path, kind, told):
    write_score_file(tmp_path / "s.json", scores)
    done = run("s.json", "--kind", kind)
    assert told in done.stdout
    assert done.stdout.endswith(f"\npicture: s--{kind}.png\n")
    assert (tmp_path / f"s--{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(run("s.json", "--kind", kind, "--json", "--overwrite").stdout)["kind"] == kind


def test_foreign_files_are_drawn_too(run, tmp_path):
    write_keyed(tmp_path / "Meta-Llama-3-8B-Instruct_heads.json", np.eye(32)[None])
    done = run("Meta-Llama-3-8B-Instruct_heads.json", "--kind", "budgets", "--json")
    assert np.shape(json.loads(done.stdout)["budgets"]) == (32, 8)


def test_loading_the_command_loads_nothing_heavy():
    code = "import sys, headprobe.commands.heatmap; print({'matplotlib', 'torch'} & set(sys.modules))"
    folder = Path(headprobe.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("kind", ["pie", "/", "../..", "/dev/null", "x" * 300])
def test_a_kind_that_is_none_is_refused_whatever_it_looks_like(run, scores, kind):
    error = run("s.json", "--kind", kind).exception
    assert isinstance(error, OptionError)
    assert str(error).endswith("; there are heatmap, distribution, layers, coverage, ranks, budgets")
    assert len(str(error)) < 200

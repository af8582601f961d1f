from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import headprobe
from headprobe.commands.heatmap import heatmap_command
from headprobe.errors import FileFormatError, OptionError
from headprobe.scores.score_file import write_score_file

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


def test_loading_the_command_loads_nothing_heavy():
    code = "import sys, headprobe.commands.heatmap; print({'matplotlib', 'numpy', 'torch'} & set(sys.modules))"
    folder = Path(headprobe.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stdout == "set()\n"

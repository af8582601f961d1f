"""The command in a score file is one that a shell takes, and it gives the same run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from headprobe.commands.score import recorded_command, without_folders
from tests.conftest import CliResult

RunCli = Callable[..., CliResult]
app = typer.Typer()


@app.callback()
def _root() -> None:
    pass


@app.command("score")
def _score(
    context: typer.Context,
    model: Annotated[str, typer.Option()] = "demo",
    lengths: Annotated[str | None, typer.Option()] = None,
    output: Annotated[str | None, typer.Option("-o", "--output")] = None,
    chat: Annotated[bool, typer.Option("--chat-template/--no-chat-template")] = True,
    trials: Annotated[bool, typer.Option("--trials/--no-trials")] = True,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    several: Annotated[list[str] | None, typer.Option("--several")] = None,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    values = {name: value for name, value in context.params.items() if name != "context"}
    print(json.dumps([recorded_command(context), values]))


def recorded(*arguments: str) -> tuple[str, dict[str, Any]]:
    done = CliRunner().invoke(app, ["score", *arguments])
    assert done.exit_code == 0, done.output
    command, values = json.loads(done.stdout)
    return command, values


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "headprobe score"),
        (["--no-chat-template"], "headprobe score --no-chat-template"),
        (["--chat-template", "--no-trials", "--json"], "headprobe score --chat-template --no-trials --json"),
        (["--several", "a", "--several", "b c"], "headprobe score --several a --several 'b c'"),
        (["--seed", "-1"], "headprobe score --seed=-1"),
        (["--lengths", "256,1k"], "headprobe score --lengths 256,1k"),
        (["--model", 'it\'s "odd"; $(rm)'], """headprobe score --model 'it'"'"'s "odd"; $(rm)'"""),
        (["-o", "a b.json"], "headprobe score --output 'a b.json'"),
        (["--lengths", ""], "headprobe score --lengths ''"),
    ],
)
def test_what_is_recorded_gives_the_same_options_again(arguments: list[str], wanted: str) -> None:
    command, values = recorded(*arguments)
    assert command == wanted
    assert recorded(*shlex.split(command)[2:]) == (command, values)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("output", "/home/ada/x.json", "x.json"),
        ("output", "scores/x.json", "x.json"),
        ("output", "results/", "results/"),
        ("output", "there", "there/"),
        ("model", "org/name", "org/name"),
        ("model", "./models/mine", "mine"),
        ("model", "C:\\models\\mine", "mine"),
        ("haystack", "there", "there"),
        ("haystack", "there/..", "HERE"),
        ("haystack", ".", "HERE"),
        ("lengths", "256", "256"),
    ],
)
def test_folders_of_this_machine_are_left_out(tmp_path: Path, name: str, value: str, wanted: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "256").mkdir()
    assert without_folders(name, value) == wanted.replace("HERE", tmp_path.name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-chat-template", "--no-trials", "--needles-per-cell", "1", "--depths", "2", "-o", "a b.json"],
        ["--method", "r2,value", "--depths", "1", "--seed=-1", "--limit", "1", "-o", "made"],
    ],
)
def test_the_recorded_command_gives_the_same_file(cli: RunCli, tmp_path: Path, arguments: list[str]) -> None:
    def ids() -> dict[str, str]:
        return {path.name: json.loads(path.read_text())["id"] for path in tmp_path.rglob("*.json")}

    assert cli("score", "--lengths", "256", *arguments).code == 0
    first = ids()
    command = json.loads(next(tmp_path.rglob("*.json")).read_text())["environment"]["command"]
    for path in tmp_path.rglob("*.json"):
        path.unlink()
    assert cli(*shlex.split(command)[1:]).code == 0
    assert ids() == first

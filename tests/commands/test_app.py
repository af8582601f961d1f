"""The table of commands. None takes an empty value for a value: an unset variable must not change what is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import headprobe
from headprobe.cli import COMMANDS, EVALUATION, SCORES, app
from headprobe.commands.app import Command, Group, Table
from headprobe.errors import OptionError, refuse_empty
from headprobe.evaluation.needle_grid import GridOptions
from headprobe.profiling.job import ScoreOptions
from headprobe.profiling.preflight import output_paths
from tests.conftest import ROOT, CliResult


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def takers() -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Every option and argument that takes a value: its command, how it is given empty, what the error calls it."""
    for path, command in commands(typer.main.get_command(app)):
        before: tuple[str, ...] = ()
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                yield path, (*before, ""), f"argument {parameter.metavar or parameter.name.upper()}"
                before = (*before, "given")
            elif not parameter.is_flag:
                yield from ((path, (option, ""), max(parameter.opts, key=len)) for option in parameter.opts)


CASES = list(takers())


def test_all_commands_were_looked_at() -> None:
    looked_at = {path for path, _, _ in CASES}
    assert {("score",), ("compress",), ("norms",), ("eval", "needles"), ("scores", "push"), ("haystacks",)} <= looked_at
    assert len(CASES) > 100


def test_an_empty_value_is_refused_by_name_in_all_commands(cli: Callable[..., CliResult], tmp_path: Path) -> None:
    for path, given, name in CASES:
        done = cli(*path, *given)
        assert (done.code, done.out) == (2, ""), (path, given)
        assert done.err == f"headprobe: error: {name} is empty: give it a value, or leave it out\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [("--haystack=",), ("--haystack", "  "), ("-o", "\t"), ("--seed", "")])
def test_blanks_are_no_value_either(cli: Callable[..., CliResult], given: tuple[str, ...]) -> None:
    done = cli("score", *given)
    assert done.code == 2
    assert "is empty: give it a value" in done.err


def test_an_empty_name_among_others_is_refused(cli: Callable[..., CliResult]) -> None:
    assert "argument HAYSTACKS is empty" in cli("haystacks", "essays", "").err
    assert "--scores is empty" in cli("eval", "needles", "--scores", "a.json", "--scores", "").err


@pytest.mark.parametrize("empty", ["", " "])
def test_python_calls_refuse_empty_names_too(empty: str) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("haystack", lambda: ScoreOptions(haystack=empty)),
        ("needles", lambda: ScoreOptions(needles=empty)),
        ("haystack", lambda: GridOptions(haystack=empty)),
        ("needles", lambda: GridOptions(needles=empty)),
        ("haystack", lambda: headprobe.load_haystack(empty)),
        ("needles", lambda: headprobe.load_needles(empty)),
        ("output", lambda: output_paths("demo", ["r2"], empty)),
    ]
    for name, call in calls:
        with pytest.raises(OptionError, match=f"{name} is empty"):
            call()


def test_what_is_no_text_is_not_empty() -> None:
    given = {"a": None, "b": 0, "c": False, "d": Path(), "e": ()}
    assert refuse_empty(given) is None
    with pytest.raises(OptionError, match="e is empty"):
        refuse_empty({**given, "e": ""})


def lines(table: Table, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    for name, line in table.items():
        if isinstance(line, Group):
            yield from lines(line.table, (*path, name))
        else:
            yield (*path, name), line


LINES = dict(lines(COMMANDS))


@pytest.mark.parametrize("path", LINES, ids=" ".join)
def test_the_table_says_what_the_command_says_of_itself(path: tuple[str, ...]) -> None:
    module, _, function = LINES[path].place.partition(":")
    docstring = getattr(import_module(module), function).__doc__
    assert LINES[path].help == docstring.partition("\n")[0].strip()


def test_every_command_of_the_package_is_in_the_table() -> None:
    places = {line.place for line in LINES.values()}
    folder = ROOT / "headprobe" / "commands"
    written = {
        f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}:{path.stem}_command"
        for path in folder.rglob("*.py")
        if f"\ndef {path.stem}_command(" in path.read_text(encoding="utf-8")
    }
    assert written == places


@pytest.mark.parametrize(("group", "names"), [((), COMMANDS), (("scores",), SCORES), (("eval",), EVALUATION)])
def test_a_list_of_commands_shows_the_whole_table(
    cli: Callable[..., CliResult], monkeypatch: pytest.MonkeyPatch, group: tuple[str, ...], names: Table
) -> None:
    monkeypatch.setattr("headprobe.commands.app.import_module", None)  # nothing is loaded for it
    shown = " ".join(cli(*group, "--help").out.replace("│", " ").split())
    for name, line in names.items():
        assert f"{name} {line.help}" in shown


def test_a_misspelt_command_is_answered_with_the_nearest(cli: Callable[..., CliResult]) -> None:
    assert cli("scores", "shwo").err == "headprobe: error: No such command 'shwo'. Did you mean 'show'?\n"

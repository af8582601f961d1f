"""Numbers and texts that no command can use are refused by one mechanism, whatever the command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import pytest
import typer

from headprobe.cli import app
from headprobe.commands.option_values import check_number
from headprobe.errors import OptionError
from tests.conftest import CliResult

RunCli = Callable[..., CliResult]
ARGUMENTS = {
    "headprobe scores show": ["a.json"], "headprobe scores validate": ["a.json"], "headprobe scores push": ["a.json"],
    "headprobe scores stability": ["a.json"], "headprobe scores compare": ["a.json", "b.json"],
    "headprobe scores merge": ["a.json", "b.json", "-o", "c.json"], "headprobe report": ["a.json"],
    "headprobe scores convert": ["a.json", "b.json", "--to", "duo"],
}  # fmt: skip


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", {})
    for name, each in below.items():
        yield from commands(each, f"{path} {name}")
    if not below:
        yield path, command


def numeric_options(kind: type) -> list[tuple[str, str]]:
    """Every option of every command whose value is of `kind` int or float, from the commands' own annotations."""
    found = []
    for path, command in commands(typer.main.get_command(app), "headprobe"):
        hints = get_type_hints(inspect.unwrap(command.callback))
        wanted = [each for each in command.params if hints.get(each.name) in (kind, kind | None)]
        found += [(path, max(each.opts, key=len)) for each in wanted]
    return found


@pytest.mark.parametrize(("path", "option"), numeric_options(int))
@pytest.mark.parametrize("value", ["99999999999999999999", "-99999999999999999999"])
def test_an_integer_that_no_file_can_hold_is_refused_with_the_limits(
    cli: RunCli, tmp_path: Any, path: str, option: str, value: str
) -> None:
    done = cli(*path.split()[1:], *ARGUMENTS.get(path, []), f"{option}={value}")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    limit = 2**53 if option == "--seed" else 2**40
    ours = f"headprobe: error: {option} is {value}, need {-limit} to {limit}\n"
    assert done.err == ours or f"Invalid value for '{option}': " in done.err  # one has a least value of its own
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("path", "option"), numeric_options(float))
@pytest.mark.parametrize(("value", "told"), [("nan", "nan"), ("inf", "inf"), ("-inf", "-inf"), ("1e400", "inf")])
def test_a_number_that_is_not_finite_is_refused(cli: RunCli, path: str, option: str, value: str, told: str) -> None:
    done = cli(*path.split()[1:], *ARGUMENTS.get(path, []), f"{option}={value}")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"headprobe: error: {option} is {told}, need a finite number\n"


def test_there_are_options_to_check() -> None:
    assert ("headprobe score", "--seed") in numeric_options(int)
    assert ("headprobe eval needles", "--minutes") in numeric_options(float)
    assert len(numeric_options(int)) > 30


def test_numbers_at_the_limit_and_texts_go_through() -> None:
    for value in (2**40, -(2**40), 0.5, "x", None, True, [1, "x"]):
        check_number("--limit", value)
    with pytest.raises(OptionError, match=r"--limit is 10000000000000000000\.\.\. \(101 digits\), need"):
        check_number("--limit", [1, 10**100])


@pytest.mark.parametrize("arguments", [("score", "-o", "a\udcffb.json"), ("scores", "show", "\udcff"), ("h\0",)])
def test_an_argument_that_is_no_text_is_refused(cli: RunCli, tmp_path: Any, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("headprobe: error: the argument ")
    assert list(tmp_path.iterdir()) == []

"""Numbers and texts that no command can use are refused by one mechanism, whatever the command."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import pytest
import typer

from headprobe.cli import app
from headprobe.commands.app import check_number
from headprobe.errors import OptionError
from headprobe.models.catalog import bundled_model_folder
from tests.conftest import CliResult

RunCli = Callable[..., CliResult]
ARGUMENTS = {
    "headprobe scores show": ["a.json"], "headprobe scores validate": ["a.json"], "headprobe scores push": ["a.json"],
    "headprobe scores stability": ["a.json"], "headprobe scores compare": ["a.json", "b.json"],
    "headprobe scores merge": ["a.json", "b.json", "-o", "c.json"], "headprobe report": ["a.json"],
    "headprobe scores convert": ["a.json", "b.json", "--to", "duo"], "headprobe eval TASK": ["ruler"],
    "headprobe eval harness": ["--tasks", "gates"],
    "headprobe tune": ["--task", "ruler"],
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


@pytest.mark.parametrize(("path", "option"), numeric_options(int) + numeric_options(float))
def test_a_number_in_other_digits_than_programs_write_is_refused(cli: RunCli, path: str, option: str) -> None:
    done = cli(*path.split()[1:], *ARGUMENTS.get(path, []), f"{option}=1_0")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"headprobe: error: {option} is '1_0', need a number in plain digits, such as 10" in done.err or (
        f"Invalid value for '{option}': " in done.err  # one has a least value of its own
    )


@pytest.mark.parametrize("digits", ["１２", "٣", "²"])
def test_digits_of_other_scripts_are_refused(cli: RunCli, digits: str) -> None:
    done = cli("score", "--dry-run", "--limit", digits)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "--limit" in done.err


MODEL = ("--model", "nobody/no-such-model")  # what is refused before it is looked for


@pytest.mark.parametrize("command", [("compress",), ("eval", "needles"), ("eval", "needles", "--dry-run")])
@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--attention", "flash9", "unknown attention kernel 'flash9': known are auto, "),
        ("--gqa", "sum", "query heads are joined by 'mean' or 'max', not 'sum'"),
        ("--prefill-chunk", "0", "a prefill chunk of 0 tokens is too small, need at least 1"),
    ],
)
def test_options_are_checked_before_the_model_is_looked_for(
    cli: RunCli, command: tuple[str, ...], option: str, value: str, told: str
) -> None:
    done = cli(*command, *MODEL, option, value)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"headprobe: error: {told}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("compress", "--budget", "0"), "a budget of 0 entries per KV head is too small, need at least 1"),
        (("compress", "--ratio", "2"), "a ratio of 2.0 is out of range, need more than 0 and at most 1"),
        (("compress", "--max-new-tokens", "0"), "0 new tokens are too few, need at least 1"),
        (("compress", "--length", "1k,2k"), "--length takes one length, got '1k,2k'"),
        (("norms", "--length", "1k,2k"), "--length takes one length, got '1k,2k'"),
        (("eval", "needles", "--policies", ","), "unknown policy ''"),
        (("eval", "needles", "--policies", "full,,snapkv"), "unknown policy ''"),
        (("compress", "--compare", "full,"), "unknown policy ''"),
    ],
)
def test_what_a_run_cannot_do_is_told_before_the_model_is_looked_for(
    cli: RunCli, arguments: tuple[str, ...], told: str
) -> None:
    done = cli(*arguments, *MODEL)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"headprobe: error: {told}")


def test_scores_that_are_not_there_are_told_before_the_model_is_looked_for(cli: RunCli) -> None:
    done = cli("compress", *MODEL, "--scores", "none.json")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("headprobe: error: none.json: ")


PLAIN = "the output - would be a file of that name, and not stdout: name another (--json prints)"


@pytest.mark.parametrize(
    "command",
    [
        "score --lengths 256 -o -", "score --lengths 256 --log-json -", "score --lengths 256 --dump-prompts -",
        "score --lengths 256 -o -/", "eval needles --lengths 256 -o -", "eval ruler:niah_single_1 --lengths 256 -o -",
        "scores convert demo.json - --to duo", "scores convert demo.json - --to headkv", "knockout demo.json -o -",
        "referee --length 256 -o -", "bench --lengths 256 -o -", "tune --task needles:retrieval --lengths 256 -o -",
    ],
)  # fmt: skip
def test_a_dash_is_no_place_for_results(cli: RunCli, tmp_path: Any, command: str) -> None:
    shutil.copy(bundled_model_folder() / "scores" / "demo--r2.json", tmp_path / "demo.json")
    done = cli(*command.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == f"headprobe: error: {PLAIN}"
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]

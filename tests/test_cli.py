from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headprobe import __version__, errors
from headprobe.cli import main
from tests.conftest import ROOT, CliResult
from tests.fork_server import ForkServer

RunCli = Callable[..., CliResult]


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-m", "headprobe", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def failing_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def seconds_of_help(*group: str) -> float:
    """Of CPU: how long it takes on the clock depends on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run_process(*group, "--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_version_is_printed_on_stdout(cli: RunCli) -> None:
    result = cli("--version")
    assert (result.code, result.out, result.err) == (0, f"headprobe {__version__}\n", "")


def test_help_names_every_command(cli: RunCli) -> None:
    result = cli("--help")
    assert result.code == 0
    for command in ("score", "heatmap", "models", "needles", "haystacks", "doctor"):
        assert re.search(rf"\b{command}\b", result.out)


@pytest.mark.parametrize("group", [(), ("scores",), ("eval",)])
def test_help_takes_less_than_half_a_second(group: tuple[str, ...]) -> None:
    assert min(seconds_of_help(*group) for _ in range(3)) < 0.5


def test_an_unknown_command_ends_with_2(cli: RunCli) -> None:
    result = cli("wobble")
    assert result.code == 2
    assert "No such command 'wobble'" in result.err
    assert result.out == ""


def test_an_unknown_option_ends_with_2(cli: RunCli) -> None:
    result = cli("models", "--wobble")
    assert result.code == 2
    assert "No such option" in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.HeadprobeError("x"), 1),
        (errors.OptionError("x"), 2),
        (errors.FileFormatError("x"), 3),
        (errors.ModelError("x"), 4),
        (errors.PlanError("x"), 5),
        (errors.NoPassingTrialError("x"), 6),
        (errors.NonFiniteError("x"), 7),
        (errors.DeviceMemoryError("x"), 8),
        (errors.ResumeError("x"), 9),
        (errors.OutputExistsError("x"), 10),
    ],
)
def test_an_expected_error_is_one_line_with_its_own_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, cli: RunCli
) -> None:
    monkeypatch.setattr("headprobe.cli.app", failing_with(error))
    assert cli() == CliResult(code, "", "headprobe: error: x\n")


def test_an_error_of_many_lines_is_told_in_one(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    monkeypatch.setattr("headprobe.cli.app", failing_with(errors.PlanError("too\n  long")))
    assert cli().err == "headprobe: error: too long\n"


def test_a_file_error_begins_with_its_place(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    error = errors.FileFormatError("no answer", Path("needles.jsonl"), 3)
    monkeypatch.setattr("headprobe.cli.app", failing_with(error))
    assert cli().err == "headprobe: error: needles.jsonl:3: no answer\n"


def test_a_bug_ends_with_70_and_names_the_variable_for_the_traceback(
    monkeypatch: pytest.MonkeyPatch, cli: RunCli
) -> None:
    monkeypatch.delenv("HEADPROBE_DEBUG", raising=False)
    monkeypatch.setattr("headprobe.cli.app", failing_with(ZeroDivisionError("oops")))
    message = "headprobe: internal error: ZeroDivisionError: oops (set HEADPROBE_DEBUG=1 for the traceback)\n"
    assert cli() == CliResult(70, "", message)


def test_debug_shows_the_traceback_and_keeps_the_code(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    monkeypatch.setenv("HEADPROBE_DEBUG", "1")
    monkeypatch.setattr("headprobe.cli.app", failing_with(errors.ModelError("no such model")))
    result = cli()
    assert result.code == 4
    assert result.err.startswith("Traceback (most recent call last):")
    assert result.err.endswith("\nheadprobe: error: no such model\n")


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    monkeypatch.setattr("headprobe.cli.app", failing_with(KeyboardInterrupt()))
    assert cli().code == 130


def test_an_interrupt_inside_a_command_ends_with_130(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    monkeypatch.setattr("headprobe.commands.models.model_record", failing_with(KeyboardInterrupt()))
    assert cli("models").code == 130


@pytest.mark.parametrize(("ending", "code"), [(SystemExit(), 0), (SystemExit(3), 3), (SystemExit("gone"), 1)])
def test_an_exit_inside_a_command_keeps_its_code(
    ending: SystemExit, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headprobe.cli.app", failing_with(ending))
    assert main([]) == code


def test_an_unknown_model_is_an_error_without_traceback(server: ForkServer) -> None:
    done = server.fork("score", "--model", "./nowhere", "--dry-run")
    assert done.wait() == 4
    assert done.out == ""
    assert done.err.startswith("headprobe: error: model './nowhere': no such alias and no such folder; point at")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("place", ["headprobe.cli.app", "headprobe.commands.models.model_record"])
def test_an_interrupt_is_said_in_one_line(place: str, monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    monkeypatch.setattr(place, failing_with(KeyboardInterrupt()))
    assert cli("models") == CliResult(130, "", "headprobe: interrupted\n")


@pytest.mark.parametrize("make", [errors.FileFormatError, errors.OptionError, ValueError, OSError])
def test_a_long_error_is_cut_in_the_middle(make: type[Exception], monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    monkeypatch.setattr("headprobe.cli.app", failing_with(make("begin" + "x" * 100_000 + "end")))
    line = cli().err.removesuffix(" (set HEADPROBE_DEBUG=1 for the traceback)\n").rstrip("\n")
    assert len(line) == len("headprobe: ") + 500
    assert "begin" in line
    assert line.endswith("end")
    assert " ... " in line


def test_an_error_steers_no_terminal(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    error = errors.FileFormatError("the key '\x1b[31mred\x07\u202e\udcff' is odd", "a\x1b]0;b.json", 3)
    monkeypatch.setattr("headprobe.cli.app", failing_with(error))
    assert cli().err == (
        "headprobe: error: a\\x1b]0;b.json:3: the key '\\x1b[31mred\\x07\\u202e\\udcff' is odd\n"
    )  # fmt: skip

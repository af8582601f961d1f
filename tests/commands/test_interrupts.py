"""Ctrl-C ends every command with one line and code 130, SIGTERM with 143, whenever they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headprobe.commands.interrupts import InterruptedRunError, Orderly
from tests.conftest import ROOT, CliResult, heed_interrupts
from tests.fork_server import ForkServer, Program

LINE = "headprobe: interrupted\n"
HOW_TO_GO_ON = ": finished trials are kept, the same command with --resume continues\n"
ENDINGS = {signal.SIGINT: (130, "headprobe: interrupted"), signal.SIGTERM: (143, "headprobe: terminated")}
STARTS = {
    "module": Program(),
    "script": Program(code="import sys; from headprobe.__main__ import run; sys.exit(run())"),
}
# The handler says when it is there: before, Python itself is starting, and nobody but Python can answer.
READY = """
import os, sys
from headprobe.commands import interrupts
before = interrupts.heed_interrupts
def heed():
    found = before()
    os.write(1, b"ready")
    return found
interrupts.heed_interrupts = heed
from headprobe.__main__ import run
sys.exit(run())
"""


def start(command: list[str], *arguments: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [*command, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_interrupts
    )


def ending(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, err = process.communicate(timeout=120)
    return process.returncode, err.decode()


@pytest.mark.parametrize(
    ("number", "seconds"),
    [(signal.SIGINT, after) for after in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6)]
    + [(signal.SIGTERM, after) for after in (0.0, 0.1, 0.8)],
)
def test_a_signal_while_modules_are_loaded_is_one_line(tmp_path: Path, number: signal.Signals, seconds: float) -> None:
    process = start([sys.executable, "-c", READY], "score", "--needles-per-cell", "20", "-o", "x.json")
    assert process.stdout is not None
    assert process.stdout.read(5) == b"ready"
    time.sleep(seconds)
    process.send_signal(number)
    code, line = ENDINGS[number]
    assert ending(process) in [(code, f"{line}\n"), (code, line + HOW_TO_GO_ON)]
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(("way", "number"), [(way, signal.SIGINT) for way in STARTS] + [("module", signal.SIGTERM)])
def test_a_run_that_a_signal_ends_says_how_to_go_on(
    tmp_path: Path, server: ForkServer, way: str, number: signal.Signals
) -> None:
    given = ("score", "--lengths", "512", "--needles-per-cell", "20", "-o", "x.json")
    process = server.fork(*given, program=STARTS[way])
    journal = tmp_path / "x.journal"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        time.sleep(0.005)
    process.send_signal(number)
    code, line = ENDINGS[number]
    assert (process.wait(), process.err) == (code, line + HOW_TO_GO_ON)
    assert journal.read_bytes().count(b"\n") > 2


def test_an_ignored_interrupt_stays_ignored() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", READY, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    assert ending(process) == (0, "")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("made of it by a library"), None])
def test_an_interrupt_is_heeded_whatever_becomes_of_it(error: BaseException | None) -> None:
    orderly = Orderly("go on")

    def work() -> None:
        with orderly:
            try:
                orderly._raise(signal.SIGINT, None)
            except KeyboardInterrupt:
                if error is not None:
                    raise error from None

    with pytest.raises(InterruptedRunError, match="^go on$") as raised:
        work()
    assert raised.value.code == 130


def test_a_schedulers_signal_keeps_its_own_code() -> None:
    orderly = Orderly()

    def work() -> None:
        with orderly:
            orderly._raise(signal.SIGTERM, None)

    with pytest.raises(InterruptedRunError) as raised:
        work()
    assert raised.value.code == 143


def test_an_error_without_an_interrupt_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="^mine$"), Orderly("go on"):
        raise ValueError("mine")


def test_inside_another_program_its_own_handler_stays(
    cli: Callable[..., CliResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    found = []

    def look(*_: object) -> None:
        found.append(signal.getsignal(signal.SIGINT))
        raise KeyboardInterrupt

    monkeypatch.setattr("headprobe.commands.models.model_record", look)
    assert cli("models") == CliResult(130, "", LINE)
    assert found == [before] == [signal.getsignal(signal.SIGINT)]

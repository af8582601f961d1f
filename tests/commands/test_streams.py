"""Standard streams that are closed, full, or read by nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headprobe.commands.output import print_table
from tests.conftest import ROOT

CLOSED = "headprobe: error: standard output is closed: send it to /dev/null to throw it away\n"
FULL = "headprobe: error: cannot write to standard output: No space left on device\n"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `$hp` is headprobe."""
    hp = f"{sys.executable} -m headprobe"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "hp": hp, **environment}
    return subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["models", "needles --show reasoning", "--version", "score --lengths 256"])
def test_a_closed_standard_output_is_refused_at_once(tmp_path: Path, command: str) -> None:
    done = shell(f"$hp {command} >&-")
    assert (done.returncode, done.stdout, done.stderr) == (11, "", CLOSED)
    assert list(tmp_path.iterdir()) == []


def test_an_error_never_goes_to_standard_output() -> None:
    done = shell("$hp scores show nope.json 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_with_both_closed_nothing_is_said_and_the_code_tells() -> None:
    assert shell("$hp models >&- 2>&-").returncode == 11


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    done = shell("$hp score --lengths 256 --depths 1 --dry-run --dump-prompts p.jsonl <&- 2>&-")
    assert done.returncode == 0
    assert "headprobe" not in (tmp_path / "p.jsonl").read_text()


def test_a_closed_standard_input_is_an_empty_prompt() -> None:
    done = shell("$hp compress --prompt - <&-")
    assert (done.returncode, done.stderr) == (3, "headprobe: error: stdin: the prompt is empty\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["models --json", "needles --show reasoning", "--version", "--help"])
def test_a_full_standard_output_is_said(command: str, unbuffered: str) -> None:
    done = shell(f"$hp {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (11, FULL)


def test_a_full_standard_error_changes_nothing() -> None:
    assert shell("$hp scores show nope.json 2> /dev/full").returncode == 3


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["models --json", "needles --show reasoning", "--help", "haystacks"])
def test_a_reader_that_goes_away_ends_it_silently(command: str, unbuffered: str) -> None:
    done = shell(f"$hp {command} | true; echo ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED=unbuffered)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_what_the_encoding_lacks_is_printed_as_an_escape() -> None:
    done = shell("touch 'é.json'; $hp scores validate 'é.json'", PYTHONIOENCODING="ascii")
    assert done.returncode == 3
    assert "\\xe9.json" in done.stdout
    assert done.stderr == ""


def test_a_table_in_a_pipe_has_a_line_for_each_row_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that reads it looks for whole phrases."""
    rows = [("a", "b" * 150 + " is being written: left"), ("c" * 150, "d")]
    print_table(("short", "long"), rows)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].split() == ["short", "long"]
    assert [" ".join(line.split()) for line in lines[1:]] == [" ".join(row) for row in rows]

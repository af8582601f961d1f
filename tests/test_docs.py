"""The examples of the docs: calls that the command line takes, Python that runs, files that are read."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from headprobe.cli import USAGE_ERROR, app
from headprobe.evaluation.known_scores import Recommended
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name if page.parent == ROOT else f"docs/{page.name}" for page in PAGES]


def calls(page: Path) -> list[list[str]]:
    """The arguments of every `$ headprobe ...` in a page, of a pipeline the part that is headprobe's."""
    lines = re.findall(r"^\$ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    parts = [part for line in lines for part in re.split(r"[|;](?=\s)", line) if "headprobe " in part]
    words = [shlex.split(part, comments=True) for part in parts]
    return [given[given.index("headprobe") + 1 :] for given in words if "headprobe" in given]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def check_call(arguments: list[str]) -> None:
    """Parse the call without running it."""
    command = typer.main.get_command(app)
    name = "headprobe"
    while arguments and hasattr(command, "commands"):
        otherwise = getattr(command, "otherwise", None)
        if otherwise is not None and arguments[0] not in command.commands and not arguments[0].startswith("-"):
            arguments = [otherwise, *arguments]
        name, *arguments = arguments
        assert name in command.commands, f"no command is called {name}"
        command = command.commands[name]
    command.make_context(name, list(arguments))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_call_in_the_docs_is_one_that_can_be_typed(page: Path) -> None:
    for arguments in calls(page):
        try:
            check_call(arguments)
        except USAGE_ERROR as error:
            pytest.fail(f"headprobe {' '.join(arguments)}: {error.format_message()}")


def test_a_call_with_an_unknown_option_or_command_would_be_found() -> None:
    assert sum(len(calls(page)) for page in PAGES) > 100
    with pytest.raises(USAGE_ERROR, match="--budgett"):
        check_call(["compress", "--budgett", "3"])
    with pytest.raises(AssertionError, match="no command is called scoer"):
        check_call(["scoer"])


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_python_example_names_what_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headprobe"):
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "headprobe":
                assert hasattr(importlib.import_module("headprobe"), node.attr), node.attr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["python.md", "compress.md", "extending.md"])
def test_python_examples_run_one_after_another(name: str, tmp_path: Path) -> None:
    code = "\n".join(blocks(ROOT / "docs" / name, "python"))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_files_that_docs_offer_for_compression_are_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "compress.md").read_text(encoding="utf-8")
    offered = re.findall(r"`(\{\"(?:window|pool)\".*?\})`", text)
    assert len(offered) == 2
    for example in offered:
        (tmp_path / "compression.json").write_text(example)
        assert Recommended.of(str(tmp_path)) != Recommended()

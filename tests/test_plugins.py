"""The package of docs/extending.md, installed as pip would leave it, and used from the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, CliResult

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
GROUPS = ("estimators", "selectors", "allocators", "formats", "tasks", "metrics")


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Call = tuple[str, ...]
RunCli = Callable[..., CliResult]
DRIVER = """
import contextlib, io, json, sys
from headprobe.cli import main
ended = []
for call in json.load(sys.stdin):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(call)
    ended.append([code, *(stream.buffer.getvalue().decode() for stream in (out, err))])
json.dump(ended, sys.stdout)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def install(folder: Path, module: str, points: dict[str, dict[str, str]]) -> None:
    """A package of one module, with entry points by group."""
    about = folder / "their_parts-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "their_parts.py").write_text(module)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-parts\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in points.items()]
    (about / "entry_points.txt").write_text("\n".join(lines))


def ends_of(calls: Iterable[Call], folder: Path, *packages: Path) -> dict[Call, Ended]:
    """How each call of the command line ends, one after another, in a process of its own that sees `packages`."""
    listed = list(calls)
    path = os.pathsep.join(map(str, (ROOT, *packages)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
    command = [sys.executable, "-c", DRIVER]
    done = subprocess.run(
        command, cwd=folder, env=environment, input=json.dumps(listed), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {call: Ended(*ended) for call, ended in zip(listed, json.loads(done.stdout), strict=True)}


SCORE = ("score", "--method", "opening", *"--lengths 256 --depths 2 --needles-per-cell 2 -o opening.json".split())
COMPRESS = (
    *("compress", "--policy", "value-norm+middle", "--length", "512", "--budget", "32", "--max-new-tokens", "2"),
    "--json",
)
CONVERT = ("scores", "convert", "opening.json", "heads.csv", "--to", "rows")
SHOW = ("scores", "show", "heads.csv", "--json")
DOORS = ("eval", "doors:blue,doors:red", *"--policies snapkv --budgets 64 --limit 2 -o doors --json".split())
VALIDATE = ("scores", "validate", "broken.csv", "--json")
HELP = {
    "score": ["r2, retrieval, enhanced, contrast, value, mass, qr, logit", "induction, echo, opening"],
    "compress": ["window, accumulated, history, sink-recent, value-norm", "retrieval-full, middle", "headkv-r2"],
    "budgets": ["sink-recent, value-norm and uniform", "retrieval-full, middle"],
    "eval needles": ["sink-recent, value-norm and uniform", "retrieval-full, middle"],
    "eval TASK": ["infinitebench, jsonl, doors", "sink-recent, value-norm and uniform"],
    "scores convert": ["headprobe, headkv, duo, rows"],
    "scores validate": ["r2, retrieval, enhanced, value, contrast, mass, qr, logit", "induction, echo, opening"],
}
UNKNOWN: dict[Call, str] = {
    ("score", "--method", "r9"): "choose from r2, retrieval, enhanced, contrast, value, mass, .*echo, opening",
    ("budgets", "opening.json", "--policy", "a+b"): "sink-recent, value-norm and uniform, .*retrieval-full, middle",
    ("scores", "convert", "opening.json", "out", "--to", "r9"): "need one of headprobe, headkv, duo, rows",
    ("scores", "validate", "opening.json", "--method", "r9"): "value, contrast, mass, .*echo, opening",
    ("eval", "r9"): "unknown task 'r9': known are .*jsonl, doors",
    ("eval", "doors:green"): "doors has no set 'green': there are red, blue",
    ("scores", "show", "text.txt"): r"locos \(JSON envelope\), rows \(csv by layer and head\)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the docs in `site`, and files that it cannot read."""
    made = tmp_path_factory.mktemp("theirs")
    (points,) = blocks("toml")
    module = "\n".join(block for block in blocks("python") if block.startswith("# their_parts.py\n"))
    install(made / "site", module, tomllib.loads(points)["project"]["entry-points"])
    (made / "broken.csv").write_text("layer,head,score\n0,0,1\n0,7,1\n")
    (made / "text.txt").write_text("hello")
    return made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> dict[Call, Ended]:
    """How commands end beside the package of the docs."""
    helps = [(*command.split(), "--help") for command in HELP]
    return ends_of([SCORE, COMPRESS, CONVERT, SHOW, VALIDATE, DOORS, *helps, *UNKNOWN], folder, folder / "site")


def test_the_docs_show_one_part_of_each_kind() -> None:
    (points,) = blocks("toml")
    groups = tomllib.loads(points)["project"]["entry-points"]
    assert [group.removeprefix("headprobe.") for group in groups] == list(GROUPS)


def test_a_method_of_another_package_scores_heads(theirs: dict[Call, Ended], folder: Path) -> None:
    assert theirs[SCORE].code == 0, theirs[SCORE].err
    made = json.loads((folder / "opening.json").read_bytes())
    assert made["method"]["name"] == "opening"
    assert made["method"]["parameters"]["scores"] == {"least": 0.0, "most": 1.0, "kind": "mass"}
    assert 0.0 < np.max(made["scores"]["mean"]) <= 1.0


def test_its_file_is_shown_and_checked_without_the_package(
    theirs: dict[Call, Ended], folder: Path, cli: RunCli
) -> None:
    record = json.loads(cli("scores", "show", folder / "opening.json", "--json").out)
    assert (record["method"], record["bound"], record["num_layers"]) == ("opening", 1.0, 6)
    (report,) = json.loads(cli("scores", "validate", folder / "opening.json", "--json").out)
    assert {"above-bound", "impossible-values"} <= set(report["passed"])
    assert cli("score", "--method", "opening").code == 2


def test_a_selector_and_an_allocator_of_another_package_compress(theirs: dict[Call, Ended]) -> None:
    done = theirs[COMPRESS]
    assert done.code == 0, done.err
    record = json.loads(done.out)
    layers = [sum(layer) for layer in record["lengths"]]
    assert record["policy"] == "value-norm+middle"
    assert sum(layers) == 32 * sum(len(layer) for layer in record["lengths"])
    assert layers == layers[::-1]
    assert layers[0] < layers[1] < layers[2]


def test_a_format_of_another_package_is_written_and_read(theirs: dict[Call, Ended], folder: Path) -> None:
    assert (theirs[CONVERT].code, theirs[CONVERT].err) == (0, "lost: trials, model and method\n")
    record = json.loads(theirs[SHOW].out)
    wanted = json.loads((folder / "opening.json").read_bytes())["scores"]["mean"]
    best = record["top_heads"][0]
    assert (record["format"], record["num_layers"], record["num_heads"]) == ("rows", *np.shape(wanted))
    assert best["score"] == np.max(wanted) == wanted[best["layer"]][best["head"]]


def test_a_task_and_a_metric_of_another_package_are_run(theirs: dict[Call, Ended], folder: Path) -> None:
    assert theirs[DOORS].code == 0, theirs[DOORS].err
    record = json.loads(theirs[DOORS].out)
    assert record["metrics"] == {"doors:blue": "first-word", "doors:red": "first-word"}
    assert (record["is_complete"], record["num_prompts"], record["num_rows"]) == (True, 4, 8)
    rows = [json.loads(line) for line in (folder / "doors" / "rows.jsonl").read_bytes().splitlines()[1:]]
    assert [row["prompt"] for row in rows[::2]] == ["doors:blue/1", "doors:red/1", "doors:blue/2", "doors:red/2"]
    assert all(row["kv_entries"] == 64 * 6 * 4 for row in rows[1::2])


def test_a_file_that_breaks_a_format_of_another_package_is_a_finding(theirs: dict[Call, Ended]) -> None:
    (report,) = json.loads(theirs[VALIDATE].out)
    assert [finding["check"] for finding in report["findings"]] == ["bad-row"]


@pytest.mark.parametrize("command", HELP)
def test_help_lists_the_names_of_other_packages(theirs: dict[Call, Ended], command: str) -> None:
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", theirs[*command.split(), "--help"].out).split())
    assert [name for name in HELP[command] if name not in shown] == []


@pytest.mark.parametrize("call", UNKNOWN)
def test_messages_about_unknown_names_list_those_of_other_packages(theirs: dict[Call, Ended], call: Call) -> None:
    assert theirs[call].code in (2, 3)
    assert re.search(UNKNOWN[call], theirs[call].err)


BROKEN = """
class Nothing:
    name = "half"
class Doors:
    name, about, source, sets = "doors", "", "", ()
    def load(self, asked):
        from headprobe.evaluation.task import TaskSet
        return [TaskSet("doors:all", "no-such-metric", 4, lambda loaded: [])]
DOORS = Doors()
def fail(source):
    raise ZeroDivisionError("of theirs")
from headprobe.scores.formats.format import Format
WRECK = Format("wreck", "a wreck", "a wreck", lambda source: source.data.startswith(b"wreck"), fail)
"""


REFUSED: dict[Call, tuple[int, str]] = {
    ("score", "--method", "half"): (2, "the method 'half' of their-parts lacks formula, version, facts, gate"),
    ("score", "--method", "gone"): (2, "the method 'gone' of their-parts cannot be loaded from their_parts:GONE"),
    ("scores", "show", "wreck.bin"): (3, "the format wreck cannot read it: ZeroDivisionError: of theirs"),
    ("scores", "show", "other.bin"): (3, "no known .*the format 'absent' of their-parts cannot be loaded from no_"),
    ("scores", "convert", "heads.json", "o", "--to", "r2"): (2, "the format 'r2' of .* calls itself 'wreck'"),
    ("scores", "convert", "heads.json", "o", "--to", "wreck"): (2, "--to is 'wreck', need one of headprobe, headkv"),
}
REFUSED |= {
    ("eval", "closet"): (2, "the task 'closet' of their-parts lacks about, source, sets, load"),
    ("eval", "doors"): (2, "unknown metric 'no-such-metric': known are exact_match, "),
}
GOOD = ("scores", "show", "heads.json", "--json")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[Call, Ended]:
    made = tmp_path_factory.mktemp("broken")
    points = {
        "headprobe.estimators": {"half": "their_parts:Nothing", "gone": "their_parts:GONE"},
        "headprobe.tasks": {"closet": "their_parts:Nothing", "doors": "their_parts:DOORS"},
        "headprobe.formats": {"wreck": "their_parts:WRECK", "absent": "no_such_module:PART", "r2": "their_parts:WRECK"},
    }
    install(made / "site", BROKEN, points)
    (made / "heads.json").write_text('{"0-0": [0.5], "0-1": [0.25]}')
    (made / "wreck.bin").write_bytes(b"wreck")
    (made / "other.bin").write_bytes(b"other")
    return ends_of([*REFUSED, GOOD], made, made / "site")


@pytest.mark.parametrize("call", REFUSED)
def test_a_broken_part_is_refused_in_one_line(broken: dict[Call, Ended], call: Call) -> None:
    code, told = REFUSED[call]
    assert (broken[call].code, broken[call].err.count("\n")) == (code, 1)
    assert re.search(told, broken[call].err)


def test_a_broken_part_does_not_stand_in_the_way_of_others(broken: dict[Call, Ended]) -> None:
    assert json.loads(broken[GOOD].out)["format"] == "headkv"

"""`headprobe eval TASK` from the outside, on a tiny model and files of its own."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headprobe.commands.evaluate.needles_output import points
from headprobe.commands.evaluate.run_output import TENTHS, notes, pivot, published_table
from headprobe.evaluation.task import TASKS
from headprobe.evaluation.task_summary import TaskSummary
from headprobe.scores.uncertainty import Estimate
from tests.conftest import CliResult
from tests.evaluation.task_parts import own_file, row, write_lines
from tests.fork_server import ForkServer, Program
from tests.tiny_models import build_tiny_model

Cli = Callable[..., CliResult]
SMALL = ["--policies", "snapkv", "--budgets", "16", "--device", "cpu", "--max-new-tokens", "4"]
TIMES = ("ttft_s", "s_per_token", "peak_bytes", "seconds")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model("llama", tmp_path_factory.mktemp("models"))


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows without what a clock or the allocator decides."""
    found = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


def test_a_run_leaves_rows_summary_table_and_picture(cli: Cli, llama: Path) -> None:
    own_file(Path("a.jsonl"), 3)
    write_lines(Path("data/longbench/qasper.jsonl"), {"context": "Ada sings.", "input": "Who?", "answers": ["Ada"]})
    given = ("eval", "jsonl:a.jsonl,longbench:qasper", "--data-dir", "data", "--model", llama, *SMALL, "--limit", "2")
    done = cli(*given, "-o", "out", "--json")
    assert done.code == 0, done.err
    assert {file.name for file in Path("out").iterdir()} == {"rows.jsonl", "summary.json", "table.md", "scores.png"}
    record = json.loads(done.out)
    assert (record["is_complete"], record["num_rows"], record["num_prompts"]) == (True, 6, 3)
    assert record["metrics"] == {"jsonl:a": "qa_f1", "longbench:qasper": "qa_f1"}
    assert json.loads(Path("out/summary.json").read_text()) == {k: v for k, v in record.items() if k != "path"}
    assert "headprobe: 3 of 3 prompts, 6 of 6 trials" in done.err
    assert cli(*given, "-o", "out").code == 10
    before = Path("out/rows.jsonl").read_bytes()
    resumed = cli(*given, "-o", "out", "--resume")
    assert resumed.code == 0, resumed.err
    assert Path("out/rows.jsonl").read_bytes() == before
    for shown in ("mean of 2 sets", "jsonl:a, qa_f1", "longbench:qasper, qa_f1", "wording of the prompts: headprobe's"):
        assert shown in resumed.out
    other = cli(*given, "-o", "out", "--resume", "--budgets", "17")
    assert (other.code, "budgets" in other.err) == (9, True)


def test_the_default_folder_is_named_by_tasks_and_model(cli: Cli, llama: Path) -> None:
    own_file(Path("a.jsonl"), 1)
    assert cli("eval", "jsonl:a.jsonl", "--model", llama, *SMALL).code == 0
    assert Path("evals", f"jsonl--{llama.name}", "rows.jsonl").is_file()


def test_a_dry_run_counts_and_writes_nothing(cli: Cli, llama: Path) -> None:
    own_file(Path("a.jsonl"), 3)
    done = cli("eval", "jsonl:a.jsonl", "--model", llama, *SMALL, "--budgets", "16,32", "--dry-run", "--json")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert (plan["prompts"], plan["trials"], plan["sets"]["jsonl:a"]["prompts"]) == (3, 9, 3)
    assert "jsonl:a" in cli("eval", "jsonl:a.jsonl", "--model", llama, *SMALL, "--dry-run").out
    assert [path.name for path in Path().iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["wobble"], 2, "unknown task 'wobble': known are needles, ruler, longbench, "),
        (["needels"], 2, "unknown task 'needels': known are needles, "),
        (["jsonl:gone.jsonl"], 3, "gone.jsonl: No such file or directory"),
        (["jsonl:broken.jsonl"], 3, "broken.jsonl:1: not JSON: "),
        (["jsonl:a.jsonl", "--budgets", "16,many"], 2, "budget 'many' is not a number of entries"),
        (["jsonl:a.jsonl", "--policies", "wobble"], 2, "unknown policy 'wobble'"),
        (["jsonl:a.jsonl", "--policies", "headkv-r2"], 2, "no head scores in scores/, which headkv-r2 needs"),
        (["jsonl:a.jsonl", "--minutes", "0"], 2, "--minutes is 0, need more than 0"),
        (["jsonl:a.jsonl", "--limit", "0"], 2, "--limit is 0, need at least 1"),
        (["jsonl:a.jsonl", "--cut", "top"], 2, "--cut is 'top', need one of middle, left, refuse"),
        (["jsonl:a.jsonl", "--lengths", "1k"], 2, "--lengths is for tasks whose prompts are made (needles, ruler)"),
        (["jsonl:a.jsonl", "--templates", "a.jsonl"], 3, "a.jsonl"),
        (["jsonl:a.jsonl", "--max-new-tokens", "0"], 2, "0 new tokens are too few"),
        (["jsonl:a.jsonl", "--baselines", "worst"], 2, "no baseline is called 'worst'"),
        (["longbench:qasper", "--data-dir", "gone"], 2, "--data-dir gone is no folder"),
    ],
)
def test_what_is_wrong_ends_in_one_line_before_the_model_is_loaded(
    cli: Cli, arguments: list[str], code: int, message: str
) -> None:
    own_file(Path("a.jsonl"), 2)
    write_lines(Path("broken.jsonl"), "{")
    done = cli("eval", *arguments[:1], "--model", "some/model-that-is-nowhere", *SMALL, *arguments[1:])
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not Path("evals").exists()


def test_needles_alone_stay_a_command_of_their_own(cli: Cli) -> None:
    assert "--needles-per-cell" in cli("eval", "needles", "--help").out
    assert "--data-dir" in cli("eval", "needles,ruler", "--help").out


def test_the_list_of_tasks_names_sets_metrics_and_sources(cli: Cli) -> None:
    record = json.loads(cli("eval", "tasks", "--json").out)
    assert [task["name"] for task in record["tasks"]] == list(TASKS)
    assert "repobench-p" in record["tasks"][2]["sets"]
    assert "qa_f1_zh" in record["metrics"]
    assert "arXiv 2308.14508" in cli("eval", "tasks").out


# -- nothing is lost ------------------------------------------------------------------------------------------------

HANGING = """
import sys, time
from headprobe.profiling.journal import Journal
add = Journal.add
def add_and_wait(journal, record):
    add(journal, record)
    if len(journal.records) == 3:
        for _ in range(6000):  # an interrupt just before one long sleep would wait for its end
            time.sleep(0.05)
Journal.add = add_and_wait
from headprobe.__main__ import run
sys.exit(run())
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_run_that_was_killed_or_interrupted_goes_on_where_it_stopped(
    cli: Cli, server: ForkServer, llama: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    own_file(Path("a.jsonl"), 4)
    given = ["eval", "jsonl:a.jsonl", "--model", str(llama), *SMALL]
    process = server.fork(*given, "-o", "cut", program=Program(code=HANGING))
    journal, deadline = tmp_path / "cut" / "rows.jsonl", time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 3:  # the plan stands first
            break
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.wait() == code
    told = "interrupted: finished trials are kept, the same command with --resume continues"
    assert code != 130 or told in process.err
    assert journal.read_bytes().count(b"\n") == 1 + 3
    assert cli(*given, "-o", "cut", "--resume").code == 0
    assert cli(*given, "-o", "whole").code == 0
    assert rows(journal) == rows(tmp_path / "whole" / "rows.jsonl")


def test_an_input_in_the_folder_is_not_written_over(cli: Cli) -> None:
    own_file(Path("out/rows.jsonl"), 1)
    done = cli("eval", "jsonl:out/rows.jsonl", "-o", "out", "--overwrite", *SMALL)
    assert done.code == 2
    assert "out/rows.jsonl are the same file: the input would be lost" in done.err


# -- tables ---------------------------------------------------------------------------------------------------------


def test_the_table_puts_policies_down_and_budgets_across() -> None:
    summary = TaskSummary((
        row("t:a/1", "full", None, 0.5), row("t:a/1", "snapkv", 16, 0.25), row("t:a/1", "snapkv", 32, None),
        row("t:b/1", "full", None, 1.0), row("t:b/1", "snapkv", 16, 1.0), row("t:b/1", "snapkv", 32, 0.5),
    ))  # fmt: skip
    record = {"metrics": {"t:a": "qa_f1", "t:b": "count"}}
    assert pivot(summary, record, "t:a") == (
        ("t:a, qa_f1", "16", "32"), [("full", "50.0", "50.0"), ("snapkv", "25.0 (-25.0)", None)],
    )  # fmt: skip
    assert pivot(summary, record, None) == (
        ("mean of 2 sets", "16", "32"), [("full", "75.0", "75.0"), ("snapkv", "62.5 (-12.5)", "50.0 (-50.0)")],
    )  # fmt: skip
    assert points(Estimate(-0.25, -0.5, -0.1, 9), TENTHS) == "-25.0*"
    assert points(Estimate()) == "?"


def test_published_figures_stand_beside_ours_with_what_they_hold() -> None:
    published = {
        "model": "m", "group": 4,
        "rows": [{"policy": "snapkv", "budget": 64, "num_prompts": 9, "score": 0.2501, "published": 0.2416},
                 {"policy": "h2o", "budget": 64, "num_prompts": 9, "score": 0.2, "published": None}],
    }  # fmt: skip
    columns, lines = published_table(published)
    assert columns == ("six sets", "budget", "prompts", "ours", "published")
    assert lines == [("snapkv", 64, 9, "25.01", "24.16"), ("h2o", 64, 9, "20.00", None)]
    (wording, held) = notes({"own_wording": None, "sets": ["longbench:qasper"], "published": published})
    assert "headprobe's own" in wording
    assert "4 times the entries of ours per KV head" in held

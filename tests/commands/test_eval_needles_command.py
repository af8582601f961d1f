"""`headprobe eval needles` from the outside, on a tiny model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headprobe.commands.evaluate.needles_output import cell_row, pivot, points
from headprobe.evaluation.needle_summary import GridSummary
from headprobe.scores.uncertainty import Estimate
from tests.conftest import CliResult
from tests.evaluation.grid_rows import row, small_grid
from tests.fork_server import ForkServer, Program
from tests.tiny_models import build_tiny_model

Cli = Callable[..., CliResult]
SMALL = ["--policies", "snapkv", "--budgets", "16", "--lengths", "420", "--depths", "2", "--device", "cpu"]
TIMES = ("ttft_s", "s_per_token", "peak_bytes")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model("llama", tmp_path_factory.mktemp("models"))


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows without what a clock or the allocator decides."""
    found = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


def test_a_run_leaves_rows_summary_table_and_pictures(cli: Cli, llama: Path, tmp_path: Path) -> None:
    done = cli("eval", "needles", "--model", llama, *SMALL, "-o", "out", "--json")
    assert done.code == 0, done.err
    assert {file.name for file in Path("out").iterdir()} == {
        "trials.jsonl", "summary.json", "table.md", "grid.png", "recall.png",
    }  # fmt: skip
    record = json.loads(done.out)
    assert (record["is_complete"], record["num_rows"], record["planned_rows"]) == (True, 4, 4)
    assert json.loads(Path("out/summary.json").read_text()) == {k: v for k, v in record.items() if k != "path"}
    assert "headprobe: 2 of 2 prompts, 4 of 4 trials" in done.err
    assert Path("out/table.md").read_text().count("| snapkv |") == 3

    again = cli("eval", "needles", "--model", llama, *SMALL, "-o", "out")
    assert (again.code, again.err) == (
        10, "headprobe: error: out/trials.jsonl holds a run: continue with --resume or start over with --overwrite\n",
    )  # fmt: skip
    before = Path("out/trials.jsonl").read_bytes()
    resumed = cli("eval", "needles", "--model", llama, *SMALL, "-o", "out", "--resume")
    assert resumed.code == 0, resumed.err
    assert Path("out/trials.jsonl").read_bytes() == before
    assert "snapkv" in resumed.out
    changed = cli("eval", "needles", "--model", llama, *SMALL, "-o", "out", "--resume", "--seed", "1")
    assert changed.code == 9
    assert "plan.seed: 0 -> 1" in changed.err


def test_policies_decoded_together_give_the_same_rows_and_no_time_per_token(cli: Cli, llama: Path) -> None:
    args = ["eval", "needles", "--model", llama, *SMALL, "--policies", "snapkv,h2o,pyramidkv", "--budgets", "16,40"]
    alone = cli(*args, "-o", "alone")
    together = cli(*args, "-o", "together", "--together")
    assert (alone.code, together.code) == (0, 0), together.err
    assert rows(Path("together/trials.jsonl")) != []
    by_trial = {row["trial"]: row for row in rows(Path("together/trials.jsonl"))}
    assert by_trial == {row["trial"]: row for row in rows(Path("alone/trials.jsonl"))}
    summary = json.loads(Path("together/summary.json").read_text())
    times = {cell["policy"]: cell["s_per_token"] for cell in summary["cells"]}
    assert times["h2o"] is times["pyramidkv"] is None
    resumed = cli(*args, "-o", "together", "--resume")  # how trials are decoded is no part of the plan
    assert resumed.code == 0, resumed.err


def test_a_dry_run_counts_and_writes_nothing(cli: Cli, llama: Path) -> None:
    done = cli("eval", "needles", "--model", llama, *SMALL, "--budgets", "16,32", "--dry-run", "--json")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert (plan["prompts"], plan["trials_per_prompt"], plan["trials"]) == (2, 3, 6)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budgets", "16,many"], "budget 'many' is not a number of entries (write 16 or 16,32)"),
        (["--policies", "wobble"], "unknown policy 'wobble': known are full, "),
        (["--minutes", "0"], "--minutes is 0, need more than 0"),
        (["--baselines", "worst"], "no baseline is called 'worst'; there are random, shuffled"),
        (["--policies", "headkv-r2"], "in scores/, which headkv-r2 needs: `headprobe score --model"),
    ],
)
def test_wrong_options_end_in_one_line(cli: Cli, llama: Path, arguments: list[str], message: str) -> None:
    done = cli("eval", "needles", "--model", llama, *SMALL, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


# Whoever kills it may come late on a busy machine: it waits for that.
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


def test_a_killed_run_goes_on_where_it_stopped(cli: Cli, server: ForkServer, llama: Path, tmp_path: Path) -> None:
    given = ["eval", "needles", "--model", str(llama), *SMALL, "--depths", "6"]
    process = server.fork(*given, "-o", "killed", program=Program(code=HANGING))
    journal, deadline = tmp_path / "killed" / "trials.jsonl", time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 3:  # the plan stands first
            break
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert journal.read_bytes().count(b"\n") == 1 + 3
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert cli(*given, "-o", "killed", "--resume").code == 0
    assert cli(*given, "-o", "whole").code == 0
    assert rows(journal) == rows(tmp_path / "whole" / "trials.jsonl")


def test_the_table_puts_policies_down_and_budgets_across() -> None:
    columns, lines = pivot(GridSummary(small_grid()))
    assert columns == ("exact, %", "16", "64")
    assert lines == [
        ("full", "100", "100"),
        ("snapkv", "0 (-100*)", "100 (+0)"),
        ("headkv-r2", "100 (+0)", None),
        ("headkv-r2 (random)", "0 (-100*)", None),
        ("headkv-r2 (shuffled)", "50 (-50)", None),
    ]


def test_f1_has_a_table_of_its_own() -> None:
    columns, lines = pivot(
        GridSummary((row("p", "full", None, True), row("p", "h2o", 8, False, answer_f1=0.25))), "answer_f1"
    )
    assert (columns, lines) == (("F1, %", "8"), [("full", "100"), ("h2o", "25 (-75)")])


def test_the_long_table_leaves_empty_what_was_not_measured() -> None:
    cells = {(cell.key.name, cell.key.budget): cell for cell in GridSummary(small_grid()).cells_by_length[6:]}
    assert cell_row(cells["snapkv", 64]) == (
        "snapkv", 64, 0, None, None, "?", None, None, None, None, None, None, None,
    )  # fmt: skip
    assert cell_row(cells["snapkv", 16])[:4] == ("snapkv", 16, 1, "0")
    assert cell_row(cells["snapkv", 16])[9:] == ("100 bytes", "120 bytes", "2.00 s", "500 ms")


def test_a_star_marks_a_difference_whose_interval_leaves_out_0() -> None:
    assert points(Estimate(-0.25, -0.5, -0.1, 9)) == "-25*"
    assert points(Estimate(-0.25, -0.5, 0.0, 9)) == "-25"
    assert points(Estimate(0.1, None, None, 1)) == "+10"
    assert points(Estimate()) == "?"


# -- nothing is lost ------------------------------------------------------------------------------------------------


def test_somebody_elses_file_with_the_name_of_the_rows_stays(cli: Cli, llama: Path) -> None:
    Path("out").mkdir()
    Path("out/trials.jsonl").write_text("my notes")
    for given in ([], ["--overwrite"], ["--resume"]):
        done = cli("eval", "needles", "--model", "./nowhere", *SMALL, "-o", "out", *given)
        assert done.code in (3, 10)
        assert Path("out/trials.jsonl").read_text() == "my notes"


def test_a_damaged_row_is_an_error_and_a_cut_one_runs_again(cli: Cli, llama: Path) -> None:
    given = ("eval", "needles", "--model", llama, *SMALL, "-o", "out")
    assert cli(*given).code == 0
    path = Path("out/trials.jsonl")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = {key: value for key, value in json.loads(lines[2]).items() if key != "kv_bytes"}
    path.write_bytes(b"".join([*lines[:2], json.dumps(damaged).encode() + b"\n", *lines[3:]]))
    done = cli(*given, "--resume")
    assert done.code == 3
    assert "out/trials.jsonl:3: damaged trial" in done.err
    assert "the field 'kv_bytes' is missing; remove the line and it runs again" in done.err
    path.write_bytes(whole[:-40])
    done = cli(*given, "--resume")
    assert done.code == 0
    assert "note: the last line of out/trials.jsonl was cut short; it is dropped, and its trial runs again" in done.err
    assert len(rows(path)) == len(lines) - 1


@pytest.mark.parametrize("place", ["file/out", "x" * 256])
def test_a_folder_that_cannot_be_made_is_told_before_the_model_is_loaded(cli: Cli, place: str) -> None:
    Path("file").write_text("")
    done = cli("eval", "needles", "--model", "./nowhere", *SMALL, "-o", place)
    assert (done.code, done.err.count("\n")) == (11, 1)
    assert place in done.err


def test_an_input_in_the_folder_is_not_written_over(cli: Cli) -> None:
    Path("out").mkdir()
    Path("out/summary.json").write_text("{}")
    done = cli("eval", "needles", *SMALL, "-o", "out", "--overwrite", "--scores", "out/summary.json")
    assert done.code == 2
    assert "out/summary.json are the same file: the input would be lost" in done.err

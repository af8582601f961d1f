"""`headprobe bench` from the outside, on the tiny shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headprobe.commands.bench_output import cell_row, spread, table
from tests.conftest import ROOT, CliResult

Cli = Callable[..., CliResult]
SMALL = [
    "--shape", "tiny", "--device", "cpu", "--policies", "headkv-r2", "--budgets", "16", "--lengths", "40",
    "--new-tokens", "1,2", "--repeats", "1",
]  # fmt: skip


def test_a_run_leaves_runs_json_table_and_picture_and_goes_on_where_it_stopped(cli: Cli) -> None:
    done = cli("bench", *SMALL, "-o", "out", "--json", "--log-json", "log.jsonl")
    assert done.code == 0, done.err
    assert {file.name for file in Path("out").iterdir()} == {"runs.jsonl", "bench.json", "table.md", "bench.png"}
    record = json.loads(done.out)
    assert (record["is_complete"], record["runs"], record["planned_runs"]) == (True, 3, 3)
    assert record["random_weights"] is True
    assert record["stages"]["total"] > 0
    assert [cell["policy"] for cell in record["cells"]] == ["transformers", "full", "headkv-r2"]
    assert record["cells"][2]["over_full"]["kv_bytes"] < 1
    assert {"torch", "transformers", "device", "threads"} <= set(record["environment"])
    assert "headkv-r2 runs on random head scores (seed 0)" in done.err

    events = [json.loads(line) for line in Path("log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in events if line["event"] != "write"] == ["begin", "plan", *["trial"] * 3, "end"]
    assert (events[1]["work"], events[1]["trials"], events[1]["done"]) == ("bench", 3, 0)

    again = cli("bench", *SMALL, "-o", "out")
    assert (again.code, again.err.count("\n")) == (10, 1)
    lines = Path("out/runs.jsonl").read_text().splitlines(keepends=True)
    Path("out/runs.jsonl").write_text("".join(lines[:2]))
    resumed = cli("bench", *SMALL, "-o", "out", "--resume")
    assert resumed.code == 0, resumed.err
    assert "3 runs, 1 of them done" in resumed.err
    assert Path("out/runs.jsonl").read_text().splitlines(keepends=True)[:2] == lines[:2]
    assert "median of 1 run;" in resumed.out
    changed = cli("bench", *SMALL, "-o", "out", "--resume", "--seed", "1")
    assert (changed.code, changed.err.splitlines()[-1].count("differs in")) == (9, 1)


def test_damaged_lines_at_the_end_are_counted_and_measured_again(cli: Cli) -> None:
    assert cli("bench", *SMALL, "-o", "out").code == 0
    lines = Path("out/runs.jsonl").read_text().splitlines(keepends=True)
    Path("out/runs.jsonl").write_text("".join(lines[:2]) + "\0\0\n{}\n")
    resumed = cli("bench", *SMALL, "-o", "out", "--resume")
    assert resumed.code == 0, resumed.err
    assert "the last 2 lines of out/runs.jsonl are damaged" in resumed.err
    assert len(Path("out/runs.jsonl").read_text().splitlines()) == len(lines)


def test_a_dry_run_counts_the_cells_and_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    given = "--lengths 40,48 --batch 1,2,4 --budgets 16,32 --policies snapkv,h2o --repeats 3".split()
    done = cli("bench", "--shape", "llama3-8b", *given, "--dry-run", "--json")
    plan = json.loads(done.out)
    assert (plan["cells"], plan["runs"], plan["warm_ups"]) == (36, 108, 36)  # (2 + 2 x 2) x 2 x 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["--shape", "nope"], 2, "unknown shape 'nope': known are llama3-8b"),
        (["--shape", "tiny", "--model", "demo"], 2, "one of the two is measured"),
        (["--shape", ""], 2, "--shape is empty"),
        (["--budgets", "x"], 2, "--budgets 'x' is not a whole number"),
        (["--batch", "1,,2"], 2, "--batch '' is not a whole number"),
        (["--new-tokens", "²"], 2, "--new-tokens '²' is not a whole number"),
        (["--lengths", "1q"], 2, "length '1q' is not a number of tokens"),
        (
            ["--shape", "tiny", "--policies", "snapkv", "--budgets", "4"],
            2,
            "a budget of 4 entries per KV head is below",
        ),
        (
            ["--model", "demo", "--policies", "snapkv", "--budgets", "1"],
            2,
            "a budget of 1 entries per KV head is below",
        ),
        (["--policies", "nope"], 2, "unknown policy 'nope'"),
        (["--policies", "full", "--beta", "1.1"], 2, "none of full has a beta"),
        (["--shape", "tiny", "--device", "cuda:99"], 2, "device 'cuda:99' is not there"),
        (["--shape", "tiny", "--dtype", "int8"], 2, "dtype 'int8' is unknown"),
        (["--gqa", "median"], 2, "median"),
        (["--seed", "-1"], 2, "seed"),
        (["--scores", "missing.json"], 3, "missing.json"),
        (["--model", "./missing"], 4, "no such folder"),
    ],
)
def test_bad_input_is_one_line_before_any_model_is_loaded(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, given: list[str], code: int, message: str
) -> None:
    def loads(*args: object, **options: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("headprobe.commands.bench.load_model", loads)
    monkeypatch.setattr("headprobe.evaluation.costs.shapes.ModelShape.model", loads)
    done = cli("bench", *given)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done.err
    assert message in done.err
    assert list(Path().iterdir()) == []


def test_an_output_over_a_score_file_is_refused(cli: Cli) -> None:
    scores = (ROOT / "headprobe/models/bundled/scores/demo--r2.json").read_bytes()
    Path("out").mkdir()
    Path("out/bench.json").write_bytes(scores)
    done = cli("bench", *SMALL, "-o", "out", "--overwrite", "--scores", "out/bench.json")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "the input would be lost" in done.err
    assert Path("out/bench.json").read_bytes() == scores


UNMEASURED = {
    "policy": "snapkv", "budget": 16, "length": 40, "batch": 1, "kernel": None, "repeats": 0, "prefill_s": None,
    "prefill_range_s": None, "new_tokens": [1, 2], "latency_s": None, "s_per_token": None, "peak_bytes": None,
    "kv_bytes": None, "over_full": None, "compression_s": None, "compression_range_s": None,
    "over_floor": None, "error": "no memory",
}  # fmt: skip


def test_what_was_not_measured_is_empty_in_the_table() -> None:
    row = cell_row(UNMEASURED)
    assert [cell for cell in row if cell is not None] == ["snapkv", "16", "40", "1", "2"]


def test_the_floor_has_a_column_only_where_it_is_known_and_the_batch_where_it_differs() -> None:
    known = UNMEASURED | {"over_floor": 1.25}
    plain, _ = table({"cells": [UNMEASURED], "batches": [1]})
    full, rows = table({"cells": [known], "batches": [1, 8]})
    assert ("x floor" in plain, "batch" in plain) == (False, False)
    assert ("x floor" in full, "batch" in full, rows[0][full.index("x floor")]) == (True, True, "1.25")


def test_the_spread_is_the_slowest_repeat_over_the_fastest() -> None:
    assert (spread([2.0, 3.0]), spread(None)) == ("1.50", None)

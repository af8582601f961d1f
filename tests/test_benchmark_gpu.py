"""The GPU benchmark on a CPU: that every part runs, and that nothing which was not measured looks as if it had been."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("benchmarks", reason="benchmarks are not part of the source archive")

from benchmarks.gpu import supervisor
from benchmarks.gpu.__main__ import PARTS, Part, main, run
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.filled import filled_cache, full_plan, uneven_plan, used_bytes
from benchmarks.gpu.parts import real
from benchmarks.gpu.record import Record
from benchmarks.gpu.shapes import LLAMA3_8B, TINY
from benchmarks.gpu.targets import TARGETS
from headprobe.compression.kernels import choice
from tests.conftest import ROOT


def tiny_bench(folder: Path, seconds: float = 1000.0) -> Bench:
    record = Record(folder, "cpu", "tiny", counts=False)
    return Bench(torch.device("cpu"), TINY, record, seconds)


def test_all_parts_run_on_a_cpu_and_no_target_counts_as_measured(tmp_path: Path) -> None:
    main(["--device", "cpu", "--shape", "tiny", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert list(found["parts"]) == [part.name for part in PARTS if part.name != "real"]  # no real model was named
    assert {(part["status"], part.get("error")) for part in found["parts"].values()} == {("done", None)}
    assert not found["is_measurement"]
    assert [row["met"] for row in found["targets"]] == [None] * len(TARGETS)
    unknown = {row["name"] for row in found["targets"] if row["value"] is None}
    assert unknown <= {"left_over_full", "peak_over_parts"}
    table = (tmp_path / "gpu-cpu.md").read_text()
    assert "says nothing about a GPU" in table
    assert "| yes |" not in table


def test_the_part_with_a_real_model_needs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cpu", "--shape", "tiny", "--out", str(tmp_path), "--only", "real"])
    assert "the part real needs a model: name one with --real-model" in capsys.readouterr().err


def test_a_part_that_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Bench, note: object) -> None:
        raise ValueError("no luck\nat all")

    monkeypatch.setattr("benchmarks.gpu.parts.bandwidth.run", broken)
    bench = tiny_bench(tmp_path)
    run(bench, (Part("bandwidth", 1), Part("environment", 1), Part("kernels", 1)))
    parts = json.loads((tmp_path / "gpu-cpu.json").read_text())["parts"]
    assert (parts["bandwidth"]["status"], parts["bandwidth"]["error"]) == ("failed", "ValueError: no luck")
    assert parts["environment"]["status"] == "done"
    assert "copy bandwidth has not been measured" in parts["kernels"]["error"]


def test_a_kernel_that_does_not_run_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*args: object) -> torch.Tensor:
        raise AssertionError("head_dim must be\nanother")

    broken = dataclasses.replace(choice.KERNELS[-1], name="broken", attend=raises, weigh=None)
    monkeypatch.setattr("benchmarks.gpu.bench.KERNELS", (broken, choice.KERNELS[-1]))
    monkeypatch.setattr(Bench, "fast_kernels", Bench.kernels)
    run(tiny_bench(tmp_path), (Part("bandwidth", 1), Part("numerics", 1), Part("kernels", 1), Part("decode_short", 1)))
    parts = json.loads((tmp_path / "gpu-cpu.json").read_text())["parts"]
    fault = "AssertionError: head_dim must be another"
    assert parts["numerics"]["status"] == "failed"
    found = parts["numerics"]["results"]["kernels"]
    assert {row["error"] for row in found["broken"]["wrong"]} == {fault}
    assert (found["torch"]["wrong"], found["torch"]["cases"] > 0) == ([], True)
    assert (parts["kernels"]["status"], parts["decode_short"]["status"]) == ("done", "done")
    assert parts["kernels"]["results"]["shares"]["broken"] == 0.0
    assert parts["kernels"]["results"]["shares"]["torch"] > 0.0


def test_a_later_run_can_add_its_parts_to_those_of_an_earlier_one(tmp_path: Path) -> None:
    def ran(*more: str) -> dict[str, Any]:
        main(["--device", "cpu", "--shape", "tiny", "--out", str(tmp_path), *more])
        return json.loads((tmp_path / "gpu-cpu.json").read_text())["parts"]  # type: ignore[no-any-return]

    first = ran("--only", "environment")
    both = ran("--only", "kernels", "--add")
    assert list(both) == ["environment", "bandwidth", "kernels"]
    assert both["environment"] == first["environment"]
    assert list(ran("--only", "kernels")) == ["bandwidth", "kernels"]


CHILD = """
import json, os, pathlib, sys, time
folder, names = pathlib.Path(sys.argv[1]), sys.argv[sys.argv.index("--only") + 1].split(",")
for name in names:
    print("begins", name, flush=True)
    if name in ("hangs", "slow"):
        time.sleep({"hangs": 60, "slow": 2}[name])
    if name == "dies":
        os._exit(9)
    file = folder / "gpu-cpu.json"
    found = json.loads(file.read_text())
    found["parts"][name] = {"results": {}, "status": "done"}
    file.write_text(json.dumps(found))
"""


def test_a_part_that_hangs_or_takes_its_process_with_it_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "START_S", 1.0)
    record = Record(tmp_path, "cpu", "tiny", counts=False)
    record.write()
    parts = [Part(name, 0.1) for name in ("bandwidth", "hangs", "kernels", "dies", "memory")]
    supervisor.supervise(parts, [sys.executable, "-c", CHILD, str(tmp_path)], record, 60.0)
    found = json.loads((tmp_path / "gpu-cpu.json").read_text())["parts"]
    assert {name: part["status"] for name, part in found.items()} == {
        "bandwidth": "done", "hangs": "failed", "kernels": "done", "dies": "failed", "memory": "done"
    }  # fmt: skip
    assert found["hangs"]["error"] == "ended after its limit of 1 s"
    assert found["dies"]["error"] == "its process ended with 9"


@pytest.mark.parametrize(("limited", "status"), [(True, "failed"), (False, "done")])
def test_limits_are_for_a_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: bool, status: str
) -> None:
    monkeypatch.setattr(supervisor, "START_S", 0.5)
    record = Record(tmp_path, "cpu", "llama3-8b", counts=False)
    record.write()
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    supervisor.supervise([Part("slow", 0.1)], command, record, 60.0, limited=limited)
    assert json.loads((tmp_path / "gpu-cpu.json").read_text())["parts"]["slow"]["status"] == status


def test_what_does_not_fit_into_the_time_is_skipped_and_says_so(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path, seconds=5.0)
    bench.shape = LLAMA3_8B
    run(bench, (Part("scoring", 100), Part("environment", 1)))
    parts = json.loads((tmp_path / "gpu-cpu.json").read_text())["parts"]
    assert parts["scoring"]["status"] == "skipped"
    assert "needs about 100 s, 5 s are left" in parts["scoring"]["reason"]
    assert parts["environment"]["status"] == "done"


def test_targets_are_met_or_missed_only_where_the_run_counts(tmp_path: Path) -> None:
    record = Record(tmp_path, "cuda", "llama3-8b", counts=True)
    record.target("step_over_floor", 1.25)
    record.target("full_over_step_32k", 1.19)
    rows = {row["name"]: row for row in record.targets}
    assert (rows["step_over_floor"]["met"], rows["step_over_floor"]["limit"]) == (True, "at most 1.25")
    assert (rows["full_over_step_32k"]["met"], rows["full_over_step_32k"]["limit"]) == (False, "at least 1.2")
    assert rows["kernel_share"]["met"] is None
    assert (
        "| 7 | copy bandwidth that the ragged kernel reaches on uneven budgets | at least 0.7 | not measured | - |"
        in (record.table())
    )


def test_synthetic_budgets_are_as_uneven_as_real_ones() -> None:
    for budget, median, maximum in ((128, 22.0, 1786), (1024, 128.5, 15059)):
        capacities = uneven_plan(LLAMA3_8B, budget).capacities(LLAMA3_8B.short)
        assert capacities.mean() == budget
        assert (float(np.median(capacities)), int(capacities.max())) == (median, maximum)


def test_a_filled_cache_holds_what_its_plan_says(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path)
    kernel = bench.kernels()[0]
    plan = uneven_plan(TINY, TINY.budget)
    cache = filled_cache(bench, plan, kernel, TINY.short, 3, slack=8)
    assert cache.lengths.tolist() == [[row] * 3 for row in plan.capacities(TINY.short).tolist()]
    assert cache.tokens_seen == TINY.short
    assert used_bytes(cache) == 3 * TINY.kv_bytes(TINY.budget, 4)
    full = filled_cache(bench, full_plan(TINY), kernel, TINY.short, 1, slack=8)
    assert used_bytes(full) == TINY.kv_bytes(TINY.short, 4) == 2 * 2 * 2 * 16 * 4 * TINY.short


def test_unknown_parts_and_a_missing_gpu_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cpu", "--shape", "tiny", "--only", "everything"])
    assert "unknown part 'everything': known are environment, bandwidth" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            main([])
        assert "torch sees no CUDA device: take --device cpu --shape tiny" in capsys.readouterr().err


def test_the_tests_that_the_readme_runs_on_a_gpu_are_all_that_need_one() -> None:
    readme = (ROOT / "benchmarks/gpu/README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"-m pytest -q -m gpu(.*?)\n    python3", readme, re.DOTALL)
    named = re.findall(r"tests/\S+", command)
    assert all((ROOT / place).exists() for place in named)
    texts = {file: file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py")}
    marked = [file for file, text in texts.items() if re.search(r"pytest\.mark\.gpu\b", text)]
    assert len(marked) >= 6
    for file in marked:
        place = file.relative_to(ROOT).as_posix()
        assert any(place == one or place.startswith(f"{one}/") for one in named), place


def test_the_pages_say_what_was_measured() -> None:
    """Each target's value, and which were missed, as in the result that lies in the repository."""
    found = json.loads((ROOT / "benchmarks/results/gpu-cuda.json").read_text())["targets"]
    page = (ROOT / "benchmarks/README.md").read_text().partition("## What was measured")[2]
    values = {row["name"]: row["value"] for row in found if row["name"] != "score_128k_runs"}
    shown = {name: f"{value:.3f}" if value < 5 else f"{value:.1f}" for name, value in values.items()}
    assert {name: text for name, text in shown.items() if text not in page} == {}
    missed = [row["name"] for row in found if not row["met"]]
    assert page.count("**not met**") == len(missed) == 4
    readme = (ROOT / "README.md").read_text()
    assert "Four of fifteen goals are missed" in readme
    assert len(found) == 15
    table = readme.partition("## On a GPU")[2].partition("Four of fifteen")[0]
    bold = {float(value) for value in re.findall(r"\*\*([\d.]+)\*\*", table)}
    assert bold == {round(row["value"], 2) for row in found if not row["met"]}


def side(weights: str, score: float, **responses: str) -> dict[str, Any]:
    """A measured side of the part `real`, as far as the comparison reads it."""
    return {
        "weights_sha256": weights,
        "scores": {"r2": {"mean": [[score, 0.0]], "top": [[0, int(score > 0.3)], [1, 0]], "passed": 7}},
        "needles": {"responses": responses},
    }


def test_a_real_model_is_compared_with_the_cpus_result_of_its_weights_whatever_the_file_is_called(
    tmp_path: Path,
) -> None:
    (tmp_path / "real-a-cpu.json").write_text(json.dumps(side("other", 0.0)))
    (tmp_path / "real-b-cpu.json").write_text(json.dumps(side("same", 0.5, t0="a", t1="b", t3="c")))
    here = side("same", 0.25, t0="a", t1="c", t2="c")
    there = real.of_the_cpu(tmp_path, here["weights_sha256"])
    scores = {"largest_difference": 0.25, "same_of_best_10": 1, "passed": [7, 7]}
    assert real.compared_scores(here["scores"], there) == {"r2": scores}
    assert real.compared_answers(here["needles"]["responses"], there) == {"compared": 2, "same": 1}
    nothing = real.of_the_cpu(tmp_path, "none")
    assert real.compared_scores(here["scores"], nothing) == "no CPU result of these weights is there"
    assert real.compared_answers({}, nothing) == "no CPU result of these weights is there"

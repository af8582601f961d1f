"""A needle file that is changed under way: a run belongs to what it read at its beginning, or it does not go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import ResumeError
from headprobe.home import shipped_needle_sets
from headprobe.models.loading import load_model
from headprobe.profiling.job import ScoreOptions
from headprobe.profiling.run import score
from headprobe.profiling.shards import Shard
from tests.conftest import CliResult

RunCli = Callable[..., CliResult]
EVAL = ("eval", "needles", "--lengths", "160", "--depths", "2", "--policies", "full", "--needles", "needles.jsonl")


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo", device="cpu", dtype="float32")


def shorten(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[1:]), encoding="utf-8")


def own_needles(folder: Path) -> Path:
    return Path(shutil.copy(shipped_needle_sets()["reasoning"], folder / "needles.jsonl"))


def test_a_run_belongs_to_the_file_as_it_was_at_its_beginning(tmp_path: Path, demo: Any) -> None:
    path = own_needles(tmp_path)
    options = ScoreOptions(needles=str(path), lengths=(160,), depths=3, needles_per_cell=1)
    wanted = score(demo, options, output=tmp_path / "one.json").scores["r2"]
    found = score(demo, options, output=tmp_path / "two.json", on_trial=lambda _: path.write_text("gone")).scores["r2"]
    assert found.trials == wanted.trials
    assert found.provenance.probes["needles"] == wanted.provenance.probes["needles"]


def test_a_run_does_not_go_on_with_another_file(tmp_path: Path, demo: Any) -> None:
    path = own_needles(tmp_path)
    options = ScoreOptions(needles=str(path), lengths=(160,), depths=3, needles_per_cell=1)

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(demo, options, output=tmp_path / "a.json", on_trial=stop)
    held = (tmp_path / "a.journal").read_bytes()
    shorten(path)
    with pytest.raises(ResumeError, match="was written for another plan, which differs in plan.needles"):
        score(demo, options, output=tmp_path / "a.json", resume=True)
    assert (tmp_path / "a.journal").read_bytes() == held


def test_parts_of_different_files_are_not_collected(tmp_path: Path, demo: Any) -> None:
    path = own_needles(tmp_path)
    options: dict[str, Any] = {"needles": str(path), "lengths": (160,), "depths": 3, "needles_per_cell": 1}
    score(demo, ScoreOptions(**options, shard=Shard(1, 2)), output=tmp_path / "a.json")
    shorten(path)
    score(demo, ScoreOptions(**options, shard=Shard(2, 2)), output=tmp_path / "a.json")
    with pytest.raises(ResumeError, match="a.shard-1-of-2.journal was written for another plan"):
        score(demo, ScoreOptions(**options), output=tmp_path / "a.json", resume=True)
    assert len(list(tmp_path.glob("*.shard-*.journal"))) == 2


def test_an_evaluation_does_not_go_on_with_another_file(tmp_path: Path, cli: RunCli) -> None:
    path = own_needles(tmp_path)
    assert cli(*EVAL, "--budgets", "16", "-o", "e").code == 0
    before = (tmp_path / "e" / "trials.jsonl").read_bytes()
    shorten(path)
    done = cli(*EVAL, "--budgets", "16", "-o", "e", "--resume")
    assert done.code == 9
    assert "e/trials.jsonl was written for another plan, which differs in plan.needles" in done.err
    assert (tmp_path / "e" / "trials.jsonl").read_bytes() == before


def test_a_task_does_not_go_on_with_another_file(tmp_path: Path, cli: RunCli) -> None:
    rows = [{"context": "The key is green.", "question": f"{n}. Which color?", "answers": ["green"]} for n in range(3)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("eval", "jsonl:own.jsonl", "--policies", "full", "--max-new-tokens", "2", "-o", "t")
    first = cli(*given)
    assert first.code == 0, first.err
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    done = cli(*given, "--resume")
    assert done.code == 9
    assert "t/rows.jsonl was written for another plan, which differs in prompts_sha256" in done.err

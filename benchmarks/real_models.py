"""`python -m benchmarks.real_models`: what compressed caches keep on two real models, into `benchmarks/results/`.

Every step is a `headprobe` command, which is printed before it runs: needles under all policies with the published
window and pool, those of head scores with the largest query head of each group in place of the mean, a search
(`headprobe tune`) for window, pool and budget, all detectors before the referee, costs, and, with `--data DIR`, samples
of LongBench, RULER and BABILong. Head scores come from `gallery/`. Steps whose results are there are skipped, an
interrupted one continues. `--only needles` takes the steps whose name begins so.

The weights come from the hub, or from the packages named in `docs/models.md` where these are installed. On two cores
all of it takes some hours.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environment import RESULTS
from benchmarks.gallery import ALL_METHODS, GALLERY, score_file
from benchmarks.steps import Step, run_all

SCORES = ("r2", "retrieval", "enhanced", "induction", "echo")
BUDGETS = "32,64,128,256,512"
KEPT = (  # of a run's folder
    *("trials.jsonl", "rows.jsonl", "table.md", "recall.png", "grid.png", "scores.png", "policy.json"),
    *("referee.json", "referee.md", "referee.png", "bench.json"),
)


@dataclass(frozen=True)
class Sample:
    """A task: the `name` of its results, what `headprobe eval` takes, the most questions of each set, and the length of
    those that are made."""

    name: str
    task: str
    limit: int = 20
    made: str | None = None


@dataclass(frozen=True)
class Subject:
    """A model, and the grid of its needles: `lengths`, how many `depths`, needles in each cell of these. `far`: lengths
    at which a few policies are compared again, by ten needles each. `judged_on`: prompts before the referee, of which
    those that are answered count."""

    model: str
    lengths: str
    depths: int
    needles_per_cell: int
    tasks: tuple[Sample, ...]
    far: str | None = None
    judged_on: int = 10


SUBJECTS = (
    Subject(
        "qwen2.5-coder-0.5b", "1k,2k", 13, 2,
        (
            Sample("babilong", "babilong:1k/qa1+1k/qa2"),
            Sample("ruler", "ruler:4096/niah_multikey_3", 10),
            Sample("longbench", "longbench:multifieldqa_zh+passage_retrieval_zh", 8),
        ),
        judged_on=20,
    ),
    Subject(
        "smollm2-135m", "1k,2k", 13, 2,
        (
            Sample("ruler", "ruler:niah_single_1+niah_single_2+niah_multikey_1", 10, "1k"),
            Sample("ruler-far", "ruler:niah_single_1+niah_single_2+niah_multikey_1", 8, "4k,8k"),
            Sample("longbench", "longbench:multi_news", 6),
        ),
        far="4k,8k", judged_on=40,
    ),
)  # fmt: skip


def scores_of(model: str, methods: tuple[str, ...] = SCORES) -> tuple[Path, ...]:
    """The files of the gallery, by default those that policies take."""
    return tuple(score_file(GALLERY, model, method) for method in methods)


def steps(subject: Subject, work: Path, data: Path | None, dtype: str) -> Iterator[tuple[str, Step]]:
    """All that is to run for one model, each with a name."""
    files = scores_of(subject.model)
    given = tuple(part for path in files for part in ("--scores", str(path)))
    common = ("--model", subject.model, "--dtype", dtype, *given)
    grid = (
        "--lengths", subject.lengths, "--depths", str(subject.depths),
        "--needles", "retrieval", "--needles-per-cell", str(subject.needles_per_cell),
    )  # fmt: skip
    place = work / f"needles-{subject.model}"
    yield "needles", Step(
        (
            "eval", "needles", *common, *grid, "--policies", "all", "--budgets", BUDGETS, "--baselines", "random",
            "--window", "8", "--pool", "7", "--together", "-o", str(place), "--resume",
        ),
        (place / "summary.json",), files,
    )  # fmt: skip
    if subject.far is not None:
        place = work / f"needles-far-{subject.model}"
        yield "needles-far", Step(
            (
                "eval", "needles", *common, "--lengths", subject.far, "--depths", "10", "--needles", "retrieval",
                "--policies", "full,streaming-llm,snapkv,ada-snapkv,headkv-r,headkv-r2", "--budgets", "128,512",
                "--baselines", "random", "--window", "8", "--pool", "7", "--together", "-o", str(place), "--resume",
            ),
            (place / "summary.json",), files,
        )  # fmt: skip
    place = work / f"needles-gqa-max-{subject.model}"
    yield "needles-gqa-max", Step(
        (
            "eval", "needles", *common, *grid, "--policies", "headkv-r,headkv-r2", "--budgets", BUDGETS, "--baselines",
            "none", "--gqa", "max", "--window", "8", "--pool", "7", "--together", "-o", str(place), "--resume",
        ),
        (place / "summary.json",), files,
    )  # fmt: skip
    place = work / f"tune-{subject.model}"
    yield "tune", Step(
        (
            "tune", "--task", "needles:retrieval", *common, "--lengths", "1k", "--limit", "80", "--keep", "0.8",
            "--policies", "snapkv,headkv-r,headkv-r2", "--budgets", "128,256,512", "--windows", "2,8,16",
            "--pools", "1,7", "-o", str(place), "--resume",
        ),
        (place / "summary.json",), files,
    )  # fmt: skip
    every = scores_of(subject.model, ALL_METHODS)
    place = work / f"referee-{subject.model}"
    yield "referee", Step(
        (
            "referee", "--model", subject.model, "--dtype", dtype, "--length", "512", "--prompts",
            str(subject.judged_on), "--heads", "1,4,16", "--draws", "3", "--budgets", "128", "-o", str(place),
            "--resume", *(part for path in every for part in ("--scores", str(path))),
        ),
        (place / "referee.json",), every,
    )  # fmt: skip
    place = work / f"bench-{subject.model}"
    yield "bench", Step(
        (
            "bench", "--model", subject.model, "--policies", "full,snapkv,ada-snapkv,headkv-r2", "--budgets", "128",
            "--lengths", "1k,2k,4k", "--decode-at", "4k", "--new-tokens", "1,32", "--repeats", "3",
            "--scores", str(files[0]), "-o", str(place), "--resume",
        ),
        (place / "bench.json",), files[:1],
    )  # fmt: skip
    for sample in subject.tasks if data is not None else ():
        place = work / f"{sample.name}-{subject.model}"
        made = () if sample.made is None else ("--lengths", sample.made)
        yield sample.name, Step(
            (
                "eval", sample.task, *common, "--data-dir", str(data), "--limit", str(sample.limit), *made,
                "--budgets", "128,512", "--together", "--policies", "snapkv,pyramidkv,ada-snapkv,headkv-r,headkv-r2",
                "-o", str(place), "--resume",
            ),
            (place / "summary.json",), files,
        )  # fmt: skip


def keep(name: str, place: Path) -> None:
    """Copy what a finished run wrote: its rows, and what was made of them for readers."""
    target = RESULTS / f"{name}-cpu"
    for file in KEPT:
        if (place / file).exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(place / file, target / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [subject.model for subject in SUBJECTS]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--only", default="", help="steps whose name begins so")
    parser.add_argument("--data", type=Path, default=None, help="folder of LongBench, RULER and BABILong files")
    parser.add_argument("--dtype", default="auto", help="bfloat16 is faster where the processor has it")
    parser.add_argument("--work", type=Path, default=Path("evals"), help="folder of the runs")
    given = parser.parse_args()
    found = [
        step
        for subject in SUBJECTS
        if subject.model in given.models
        for name, step in steps(subject, given.work, given.data, given.dtype)
        if name.startswith(given.only)
    ]
    failed = run_all(found)
    for step in found:
        place = step.results[0].parent
        if step.is_done:
            keep(place.name, place)
    if failed:
        sys.exit(failed)


if __name__ == "__main__":
    main()

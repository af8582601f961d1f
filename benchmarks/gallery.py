"""`python -m benchmarks.gallery`: head scores of real models, with pictures, knockouts and tables, in `gallery/`.

Every step is a `headprobe` command, which is printed before it runs: scores by all methods, knockout of the best heads
(written into the score files), heatmaps, reports. Then the tables of `gallery/README.md` are made from the
files that are there. A step whose results are there is skipped, an interrupted one continues, so that the command can
be given again. `--tables` makes the tables alone, `--models smollm2-135m` that model alone.

The weights come from the hub, or from the packages named in `docs/models.md` where these are installed. The three
models take many hours of two cores.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import ceil
from pathlib import Path

from benchmarks.steps import Step, run_all
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.causal import causal_results
from headprobe.scores.comparison import compare
from headprobe.scores.stability import stability
from headprobe.scores.summary import summarize
from headprobe.scores.uncertainty import ClusteredTrials

GALLERY = Path(__file__).parent.parent / "gallery"
REASONING, RETRIEVAL = "reasoning", "retrieval"
# Needles beyond those that are shipped, where the best heads change with the needles that are drawn.
MORE_REASONING, MORE_RETRIEVAL = (str(GALLERY / f"more-{kind}.jsonl") for kind in (REASONING, RETRIEVAL))
METHODS = {  # by the kind of needles; in the order of tables
    REASONING: ("r2", "contrast", "value"),
    RETRIEVAL: ("retrieval", "enhanced", "mass", "qr", "reconstruction", "induction", "echo", "logit"),
}
ALL_METHODS = tuple(method for methods in METHODS.values() for method in methods)
KNOCKED_OUT = ("retrieval", "r2")  # one method per kind of needles
DEPTHS = 10  # of knockout's prompts
STABLE_TOP, SHARED_TOP, SHOWN = 10, 20, 5
HEAD = (
    "| method | passed | best heads | half of all scores | stable of the best 10 | knockout |",
    "|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Run:
    """Methods that are scored on the same prompts: set of needles; needles per length and depth, as many as it takes
    that trials pass at every depth and the best heads are stable; lengths in tokens (of texts without needles, too)."""

    methods: tuple[str, ...]
    needles: str
    needles_per_cell: int
    lengths: str = "512,1k,2k"


@dataclass(frozen=True)
class Exhibit:
    """A model of the gallery: its short name, and its runs, which have each method once. `knockout_prompts`: for each
    of `KNOCKED_OUT`; more where few are answered, since only those count."""

    model: str
    title: str
    runs: tuple[Run, ...]
    knockout_prompts: tuple[int, int]
    knockout_length: int = 512


ASK_NOTHING = ("reconstruction", "induction", "echo")
EXHIBITS = (
    Exhibit(
        "smollm2-135m",
        "SmolLM2-135M-Instruct",
        (
            Run(("r2",), REASONING, 12, "512,1k,2k,4k"),
            Run(("contrast", "value"), MORE_REASONING, 20, "512,1k,2k,4k"),
            Run(METHODS[RETRIEVAL], MORE_RETRIEVAL, 12, "512,1k,2k,4k"),
        ),
        knockout_prompts=(24, 60),
    ),
    Exhibit(
        "qwen2.5-coder-0.5b",
        "Qwen2.5-Coder-0.5B-Instruct",
        (
            Run(METHODS[REASONING], REASONING, 4),
            Run(("retrieval", "enhanced", "mass", "qr", *ASK_NOTHING), RETRIEVAL, 4),
            Run(("logit",), MORE_RETRIEVAL, 12),
        ),
        knockout_prompts=(24, 40),
    ),
    Exhibit(
        "gemma3-270m",
        "Gemma-3-270M (base)",
        (Run(METHODS[REASONING], REASONING, 16), Run(METHODS[RETRIEVAL], MORE_RETRIEVAL, 8)),
        knockout_prompts=(24, 80),
    ),
)


def score_file(folder: Path, model: str, method: str) -> Path:
    """Where the scores of a model by a method lie."""
    return folder / model / f"{model}--{method}.json"


def steps(folder: Path, work: Path, exhibit: Exhibit) -> Iterator[Step]:
    """All that is to run for one model, in order."""
    place = folder / exhibit.model
    for run in exhibit.runs:
        yield Step(
            (
                "score", "--model", exhibit.model, "--method", ",".join(run.methods), "--needles", run.needles,
                "--lengths", run.lengths, "--needles-per-cell", str(run.needles_per_cell),
                "-o", f"{place}/", "--resume",
            ),
            tuple(score_file(folder, exhibit.model, method) for method in run.methods),
        )  # fmt: skip
    for method, prompts in zip(KNOCKED_OUT, exhibit.knockout_prompts, strict=True):
        scores, output = score_file(folder, exhibit.model, method), work / f"knockout--{exhibit.model}--{method}"
        limit = ("--limit", str(prompts)) if prompts % DEPTHS else ()
        yield Step(
            (
                "knockout", str(scores), "--model", exhibit.model, "--lengths", str(exhibit.knockout_length),
                "--needles-per-cell", str(ceil(prompts / DEPTHS)), *limit, "-o", str(output),
                "--write", "--resume",
            ),
            needs=(scores,),
            found=partial(holds_knockout, scores),
        )  # fmt: skip
    files = [score_file(folder, exhibit.model, method) for method in ALL_METHODS]
    for scores in files:
        picture = scores.with_suffix(".png")
        yield Step(("heatmap", str(scores), "-o", str(picture)), (picture,), (scores,))
    for needles, methods in METHODS.items():
        own = tuple(score_file(folder, exhibit.model, method) for method in methods)
        page = place / f"report-{needles}.html"
        yield Step(("report", *map(str, own), "-o", str(page), "--title", exhibit.title), (page,), own)


def holds_knockout(scores: Path) -> bool:
    """Whether the score file says what switching its best heads off does."""
    return scores.exists() and bool(causal_results(read_any(scores).native))


# -- the tables -----------------------------------------------------------------------------------------------------


def files_of(folder: Path, exhibit: Exhibit) -> dict[str, AnyScores]:
    """The score files that are there, by method."""
    named = {method: score_file(folder, exhibit.model, method) for method in ALL_METHODS}
    return {method: read_any(path) for method, path in named.items() if path.exists()}


def score_rows(exhibit: Exhibit, files: dict[str, AnyScores]) -> Iterator[str]:
    """One row per method: passed trials, best heads, heads that have half of all scores, stability, knockout."""
    for method, scores in files.items():
        found = summarize(scores, SHOWN)
        best = ", ".join(f"{head.layer}-{head.head} {head.score:.2f}" for head in found.top_heads)
        again = "not known" if scores.trial_scores is None else stable_top(scores)
        half = f"{found.half_mass_heads} of {scores.mean.size}"
        passed = f"{found.num_passed}/{found.num_trials}"
        yield f"| `{method}` | {passed} | {best} | {half} | {again} | {effect(scores)} |"


def stable_top(scores: AnyScores) -> str:
    """How many of the best heads are stable, of those that score above 0."""
    found = stability(ClusteredTrials.of_any(scores), STABLE_TOP)
    return f"{found.stable_top} of {found.top}" if found.top else "none"


def effect(scores: AnyScores) -> str:
    """What the file says of switching the best heads off."""
    return "; ".join(str(result["verdict"]) for result in causal_results(scores.native)) or ""


def agreement_rows(files: dict[str, AnyScores]) -> Iterator[str]:
    """One row per pair of methods: Spearman over all heads, and how many of the best heads both have."""
    names = list(files)
    yield "| | " + " | ".join(f"`{name}`" for name in names[1:]) + " |"
    yield "|---|" + "---|" * (len(names) - 1)
    pairs = {pair: agreement(files[pair[0]], files[pair[1]]) for pair in combinations(names, 2)}
    for row, name in enumerate(names[:-1]):
        cells = [pairs[name, other] if place > row else "" for place, other in enumerate(names) if place]
        yield f"| `{name}` | " + " | ".join(cells) + " |"


def agreement(first: AnyScores, second: AnyScores) -> str:
    """Spearman, and the number of shared heads among the best."""
    found = compare(first, second, (SHARED_TOP,))
    shared = f"{found.overlaps[0].shared:.0f}" if found.overlaps else "-"
    return f"{'-' if found.spearman is None else f'{found.spearman:.2f}'} {shared}"


def tables(folder: Path, exhibits: Sequence[Exhibit]) -> dict[str, str]:
    """The tables by name, as Markdown."""
    made = {}
    for exhibit in exhibits:
        files = files_of(folder, exhibit)
        if not files:
            continue
        made[f"scores {exhibit.model}"] = "\n".join([*HEAD, *score_rows(exhibit, files)])
        made[f"agreement {exhibit.model}"] = "\n".join(agreement_rows(files))
    return made


def fill(page: Path, made: dict[str, str]) -> list[str]:
    """Put tables between their marks in a page; the names of those that have no place there."""
    text, left_over = page.read_text(encoding="utf-8"), []
    for name, table in made.items():
        marks = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = marks.subn(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", text)  # type: ignore[misc]
        left_over += [] if count else [name]
    page.write_text(text, encoding="utf-8")
    return left_over


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[e.model for e in EXHIBITS], default=[e.model for e in EXHIBITS])
    parser.add_argument("--output", type=Path, default=GALLERY, help="folder of the gallery")
    parser.add_argument("--work", type=Path, default=Path("evals"), help="folder of knockout runs")
    parser.add_argument("--tables", action="store_true", help="make the tables alone")
    given = parser.parse_args()
    chosen = [] if given.tables else [e for e in EXHIBITS if e.model in given.models]
    failed = run_all(step for exhibit in chosen for step in steps(given.output, given.work, exhibit))
    left_over = fill(given.output / "README.md", tables(given.output, EXHIBITS))
    if left_over:
        print("no place in the page for:", ", ".join(left_over))
    if failed:
        sys.exit(failed)


if __name__ == "__main__":
    main()

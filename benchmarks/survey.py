"""`python -m benchmarks.survey`: every causal decoder of transformers, as a tiny random model, in four uses.

    python -m benchmarks.survey [--only gpt2,llama4] [--no-write]

For each family: are captured attention rows, r2 scores and logits those of the model's own eager attention; are the
greedy tokens of policy `full` those of `generate()`; are the shares of attention that `norms` gives the column sums of
eager attention; does hiding nothing change nothing, and hide decoding what a whole pass hides? Each is "ok", "refused:
why" (an error of headprobe's own), "wrong: what" or "internal error: what". The table goes into `docs/models.md`, the
results to `benchmarks/results/survey-<device>.json`. Exit code 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import environment, write_result
from benchmarks.survey_checks import CHECKS, Subject, verdict
from benchmarks.survey_models import SKIPPED, families, tiny_configs, tiny_model
from headprobe.errors import HeadprobeError
from headprobe.models.config import check_decoder, one_line, read_geometry

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MARKS = "<!-- survey: begin -->\n", "<!-- survey: end -->\n"


@dataclass(frozen=True)
class Row:
    """What came out for one family, a verdict for each use."""

    model_type: str
    model_class: str
    score: str
    compress: str
    norms: str
    knockout: str

    @property
    def is_bad(self) -> bool:
        """Whether anything is wrong, or ended in an error that is not headprobe's own."""
        return any(getattr(self, use).startswith(("wrong", "internal error")) for use in CHECKS)


def survey(only: Collection[str] = ()) -> Iterator[Row]:
    """The rows of all families, or of those whose model types are given; a row for each kind of layers of a family."""
    for kind, config_class, model_class in families(only):
        if kind in SKIPPED:
            yield Row(kind, model_class.__name__, *[f"skipped: {SKIPPED[kind]}"] * len(CHECKS))
            continue
        for name, config in tiny_configs(kind, config_class):
            with warnings.catch_warnings():  # of deprecations inside transformers
                warnings.simplefilter("ignore")
                row = survey_family(name, config, model_class)
            yield row


def survey_family(kind: str, config: Any, model_class: type) -> Row:
    """The row of one family."""
    try:
        check_decoder(config, Path(kind))
        read_geometry(config, Path(kind))
    except HeadprobeError as error:
        refusal = "refused: " + str(error).removeprefix(f"{kind}: ")
        return Row(kind, model_class.__name__, *[refusal] * len(CHECKS))
    try:
        subject = Subject.of(tiny_model(config, model_class))
    except Exception as error:
        return Row(kind, model_class.__name__, *[f"internal error: no tiny model: {one_line(error)}"] * len(CHECKS))
    return Row(kind, model_class.__name__, *(verdict(check, subject) for check in CHECKS.values()))


def table(rows: Sequence[Row], version: str) -> str:
    """The results as a Markdown table; reasons for a refusal stand below it, numbered, without the class's name."""
    reasons: list[str] = []

    def cell(row: Row, use: str) -> str:
        verdict, _, reason = getattr(row, use).partition(": ")
        if verdict not in ("refused", "skipped"):
            return getattr(row, use)
        reason = reason.replace(row.model_class, "the model")
        if reason not in reasons:
            reasons.append(reason)
        return f"{verdict} ({reasons.index(reason) + 1})"

    lines = [f"transformers {version}:", "", "| model type | class | " + " | ".join(CHECKS) + " |", "|---" * 6 + "|"]
    for row in rows:
        cells = [f"`{row.model_type}`", row.model_class, *(cell(row, use) for use in CHECKS)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Survey, print, write; 1 where anything is wrong."""
    import transformers

    parser = argparse.ArgumentParser(prog="python -m benchmarks.survey")
    parser.add_argument("--only", default="", help="model types, separated by commas")
    parser.add_argument("--no-write", action="store_true", help="leave docs and results as they are")
    options = parser.parse_args(arguments)
    only = {kind for kind in options.only.split(",") if kind}
    rows = []
    for row in survey(only):
        rows.append(row)
        print(f"{row.model_type:28}", *(f"{use}: {getattr(row, use)[:150]}" for use in CHECKS), sep=" | ", flush=True)
    if not (options.no_write or only):
        page = PAGE.read_text(encoding="utf-8")
        head, tail = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
        PAGE.write_text(head + MARKS[0] + table(rows, transformers.__version__) + MARKS[1] + tail, encoding="utf-8")
        result = {"environment": environment(), "families": [asdict(row) for row in rows]}
        print("written to", PAGE, "and", write_result("survey", result))
    bad = [row.model_type for row in rows if row.is_bad]
    print(f"{len(rows)} families, {len(bad)} of them wrong: {', '.join(bad) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""Where a knockout run is written: its records as they come, what is made of them, and the score file that asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headprobe.errors import OptionError, ResumeError
from headprobe.evaluation.knockout.study import KnockoutResult, KnockoutStudy
from headprobe.profiling.journal import Journal, check_run
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.causal import check_room, with_causal
from headprobe.scores.files import check_place
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.score_file import write_score_file

ROWS, SUMMARY, PICTURE = "trials.jsonl", "summary.json", "knockout.png"
DERIVED = (SUMMARY, PICTURE)


@dataclass(frozen=True)
class KnockoutFolder:
    """`trials.jsonl` is the run itself; all else is made from it, and made anew each time."""

    path: Path

    @classmethod
    def default(cls, scores: AnyScores, mode: str) -> KnockoutFolder:
        """`evals/knockout--<score file>--<mode>`."""
        return cls(Path("evals") / f"knockout--{scores.path.stem}--{mode}")

    def file(self, name: str) -> Path:
        """One of its files."""
        return self.path / name

    def check(self, *, resume: bool, overwrite: bool, inputs: Mapping[str, Path | str | None]) -> None:
        """Refuse what would fail, or lose a file, before the long work begins. Raises as `check_run`."""
        derived = [self.file(name) for name in DERIVED]
        check_run(self.file(ROWS), derived, resume=resume, overwrite=overwrite, inputs=inputs)

    def journal(self, study: KnockoutStudy, *, resume: bool, overwrite: bool) -> Journal:
        """The records so far, to be added to; `overwrite` alone forgets them. Raises as `Journal.resume`."""
        return Journal.open(
            self.file(ROWS), study.describe(), resume=resume, overwrite=overwrite, check=study.check()
        )  # fmt: skip


def check_writing(scores: AnyScores, mode: str, overwrite: bool) -> HeadScores:
    """The native scores, if a result of `mode` can be written into their file in the end.

    Raises `OptionError` for a file of another format, `OutputExistsError` where it has such a result and `overwrite` is
    false, `FileAccessError`.
    """
    if scores.native is None:
        raise OptionError(
            f"{scores.path} is of format {scores.format}, which cannot hold a result: leave out --write, or bring it "
            "into headprobe's form with `headprobe scores convert`"
        )
    check_room(scores.native, mode, overwrite)
    check_place(scores.path, overwrite=True)
    return scores.native


def write_result(scores: AnyScores, result: KnockoutResult, overwrite: bool) -> None:
    """Put the result into the file that `scores` were read from, in one step; all else in it stays.

    Raises as `check_writing`, and `ResumeError` where the file is no longer the one that was read.
    """
    native = check_writing(scores, result.study.bench.options.mode, overwrite)
    if read_any(scores.path).sha256 != scores.sha256:
        raise ResumeError(f"{scores.path} was changed while its heads were measured: nothing is written into it")
    write_score_file(scores.path, with_causal(native, result.causal(), overwrite), overwrite=True)


def told_place(study: KnockoutStudy) -> dict[str, Any]:
    """What a run works on, for its first line."""
    bench = study.bench
    return {
        "prompts": len(bench.prompts),
        "needles": len(set(bench.clusters(bench.prompts))),
        "sets": len(set(study.sets.values())),
        "batches": len(bench.batches(study.sets.values())),
    }

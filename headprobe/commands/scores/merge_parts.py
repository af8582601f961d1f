"""`headprobe scores merge` on the journals that the parts of a run left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headprobe.commands.output import tell
from headprobe.commands.score_output import print_scores
from headprobe.profiling.run import merge_parts


def merge_journals(journals: Sequence[Path], output: str, overwrite: bool, as_json: bool) -> None:
    """Write the score files of the run, and print what `score` would have printed."""
    result, paths = merge_parts(journals, output, overwrite=overwrite)
    for trial, reason in result.skipped.items():
        tell(f"skipped {trial}: {reason}")
    print_scores([(scores, paths[name]) for name, scores in result.scores.items()], as_json)

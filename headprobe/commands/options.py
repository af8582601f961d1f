"""Options that several commands share, each with one wording."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from headprobe.compression.kv_cache_dtypes import KV_CACHE_DTYPES
from headprobe.compression.policies import ALLOCATORS, POLICIES, SELECTORS
from headprobe.errors import OptionError

# -- model and machine ----------------------------------------------------------------------------------------------

ModelOption = Annotated[str, typer.Option(help="Alias (see `headprobe models`), folder, GGUF file or hub id.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]

TensorParallelOption = Annotated[
    bool, typer.Option("--tensor-parallel", help="Under torchrun: spread the model's heads over its processes.")
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(help="auto: spread the layers over all devices, by accelerate.", show_default=False),
]
QuantizationOption = Annotated[
    str | None, typer.Option(help="int8: quantize the weights while loading, by torchao.", show_default=False)
]

# -- probes ---------------------------------------------------------------------------------------------------------

HaystackOption = Annotated[str, typer.Option(help="Background text: a name, file or folder (txt, md, jsonl).")]
DepthsOption = Annotated[int, typer.Option(help="How many depths, spread evenly over 0 to 100 %.")]
NeedlesPerCellOption = Annotated[int, typer.Option(help="Needles tried at each length and depth.")]
ChatTemplateOption = Annotated[
    bool, typer.Option("--chat-template/--no-chat-template", help="Needle prompts use the model's chat template.")
]
OverwritePictureOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]

# -- long runs ------------------------------------------------------------------------------------------------------

LogJsonOption = Annotated[
    Path | None,
    typer.Option("--log-json", metavar="FILE", help="Add each event as a line of JSON to FILE.", show_default=False),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FILE",
        help="Write a trace of the first 3 trials (Chrome, Perfetto).",
        show_default=False,
    ),
]
ShardOption = Annotated[
    str | None, typer.Option(metavar="K/N", help="Run one of N parts; `merge`, or --resume without it, collects them.")
]

# -- compression ----------------------------------------------------------------------------------------------------

PAIRS = f"SELECTOR+ALLOCATOR of {', '.join(SELECTORS)} and {', '.join(ALLOCATORS)}"
PolicyOption = Annotated[str, typer.Option(help=f"{', '.join(POLICIES)}, or {PAIRS}.")]
GqaOption = Annotated[str, typer.Option(help="How query-head scores are combined for a KV head: mean, max.")]
AttentionOption = Annotated[str, typer.Option(help="Kernel: auto, triton, flash4, flash2, torch-varlen, torch.")]
LayerChunkOption = Annotated[
    int | None, typer.Option(help="Tokens that go through a layer at a time.", show_default=False)
]
KvCacheDtypeOption = Annotated[
    str,
    typer.Option(
        "--kv-cache-dtype",
        "--kv-dtype",
        help=f"How entries are held: {', '.join(KV_CACHE_DTYPES)}; several, separated by commas, to compare them.",
    ),
]
WindowOption = Annotated[int | None, typer.Option(help="Latest entries that every head keeps.", show_default=False)]
PoolOption = Annotated[int | None, typer.Option(help="Width of importance pooling.", show_default=False)]
BetaOption = Annotated[
    float | None, typer.Option(help="Closer to 1 gives head scores more weight.", show_default=False)
]
SinksOption = Annotated[int | None, typer.Option(help="First entries that every head keeps.", show_default=False)]
QueryAgnosticOption = Annotated[
    bool, typer.Option("--query-agnostic", help="Compress the context before the question is seen.")
]

# -- runs of an evaluation ------------------------------------------------------------------------------------------

PoliciesOption = Annotated[
    str, typer.Option(help=f"{', '.join(POLICIES)}, or {PAIRS}; separated by commas; all for every named one.")
]
BudgetsOption = Annotated[str, typer.Option(help="Mean entries per KV head, window included.")]
ScoreFilesOption = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Score file; can be repeated. Default: those in scores/.", show_default=False),
]
BaselinesOption = Annotated[
    str, typer.Option(help="Besides real scores: random, shuffled, both separated by a comma, or none.")
]
LimitOption = Annotated[
    int | None,
    typer.Option(help="First N questions of each set; sets that are made (ruler, needles) get N.", show_default=False),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where the tasks' files lie; else they come from the hub.", show_default=False),
]
MadeLengthsOption = Annotated[
    str | None,
    typer.Option(help="Of made prompts (ruler, needles), such as 2k,4k; default: the window.", show_default=False),
]
OverwriteRunOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")]
MinutesOption = Annotated[
    float | None,
    typer.Option(help="Start no new prompt after this many minutes; --resume continues.", show_default=False),
]
TogetherOption = Annotated[
    bool, typer.Option("--together", help="Decode a prompt's policies and budgets in batches; no time per token.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print how much there is to do, and stop.")]
SummaryJsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")]


def score_inputs(paths: Iterable[Path]) -> dict[str, Path | str | None]:
    """The files of `--scores`, by what they are called in a message."""
    return {f"--scores ({number})": path for number, path in enumerate(paths, 1)}


def check_minutes(minutes: float | None) -> None:
    """Raise `OptionError` for minutes in which nothing could run."""
    if minutes is not None and not minutes > 0:
        raise OptionError(f"--minutes is {minutes:g}, need more than 0")

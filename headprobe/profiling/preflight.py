"""Before a run: where it will write and whether it can, and what it will cost."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from headprobe.errors import OptionError, OutputExistsError, refuse_empty
from headprobe.home import in_home
from headprobe.models.catalog import short_name
from headprobe.models.devices import free_bytes
from headprobe.models.loading import LoadedModel
from headprobe.models.memory import MemoryNeed, Pass, memory_need
from headprobe.models.placement import bits_of, head_spread
from headprobe.probes.reading import AnyPrompt, Reading
from headprobe.profiling.journal import check_journal
from headprobe.profiling.prefix import prefix_order
from headprobe.profiling.profiler import READING_ROWS
from headprobe.profiling.shards import Shard, shard_journals
from headprobe.scores.files import LONGEST_NAME, check_place, refuse_one_place

# Where a scoring run writes, and whether it can: names of score files and journal, checked before the long work.


def output_paths(model_name: str, methods: Sequence[str], output: Path | str | None) -> dict[str, Path]:
    """The score file of each method: `output` is the file for one method and the folder for several.

    A name that ends in a slash, or a folder that exists, is a folder for one method too. Raises `OptionError` when a
    name that ends in `.json` is given for several methods.
    """
    names = {m: f"{short_name(model_name).replace('/', '--')}--{m}.json" for m in methods}
    if output is None:
        return {m: Path("scores") / name for m, name in names.items()}
    refuse_empty({"output": output})
    target = in_home(output)
    if len(methods) > 1 and target.suffix == ".json":
        raise OptionError(f"{len(methods)} methods cannot share the file {str(output)!r}: name a folder")
    if len(methods) > 1 or _is_folder(target) or str(output).endswith("/"):
        return {m: target / name for m, name in names.items()}
    return {methods[0]: target}


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that the system refuses: `check_outputs` says why
        return False


def journal_path(paths: dict[str, Path]) -> Path:
    """The journal of a run, beside its (first) score file; where that has too long a name, a part of it and a mark."""
    first = next(iter(paths.values()))
    ending = ("" if len(paths) == 1 else f"+{len(paths) - 1}") + ".journal"
    if len(os.fsencode(first.stem + ending)) <= LONGEST_NAME:
        return first.with_name(first.stem + ending)
    mark = hashlib.sha256(os.fsencode(first.stem)).hexdigest()[:8]
    room = LONGEST_NAME - len(ending) - len(mark) - 1
    kept = os.fsencode(first.stem)[:room].decode("utf-8", "ignore")
    return first.with_name(f"{kept}-{mark}{ending}")


def check_outputs(
    paths: dict[str, Path],
    *,
    resume: bool,
    overwrite: bool,
    prompts: Path | None = None,
    inputs: Mapping[str, str | None] | None = None,
    shard: Shard | None = None,
) -> None:
    """Refuse what would fail or lose a file in the end, before the long work begins.

    `prompts`: where the prompts go as well; `inputs`: files that the run reads, by what they are called in a message;
    `shard`: the run is one, which writes a journal and no scores.
    Raises `OptionError` for two files in one place, `OutputExistsError`, `FileAccessError`, `ResumeError`.
    """
    journal = journal_path(paths) if shard is None else shard.journal(journal_path(paths))
    if shard is not None:
        refuse_one_place({"the shard's journal": journal, "--dump-prompts": prompts}, inputs)
        check_journal(journal, resume=resume, overwrite=overwrite)
        if prompts is not None:
            check_place(prompts, overwrite=overwrite or resume)
        return
    outputs = {"the output" if len(paths) == 1 else f"the output of {m}": path for m, path in paths.items()}
    refuse_one_place(outputs | {"the run's journal": journal, "--dump-prompts": prompts}, inputs)
    shards = shard_journals(journal)
    if shards and not resume and not overwrite:
        raise OutputExistsError(
            f"{shards[0]} holds a shard's trials: collect them with --resume or start over with --overwrite"
        )
    going_on = (check_journal(journal, resume=resume, overwrite=overwrite) or bool(shards)) and resume
    if resume and not going_on and not overwrite:
        _refuse_complete(paths)
    for path in paths.values():
        check_place(path, overwrite=overwrite or going_on)
    if prompts is not None:
        check_place(prompts, overwrite=overwrite or resume)


def _refuse_complete(paths: dict[str, Path]) -> None:
    """Refuse to resume where score files are there and no journal is: what is missing is another run."""
    there = [path for path in paths.values() if os.path.lexists(path)]
    missing = ",".join(method for method, path in paths.items() if path not in there)
    if there and missing:
        raise OutputExistsError(
            f"{there[0]} exists and there is no journal to resume: score what is missing with --method {missing}"
        )
    if there:
        raise OutputExistsError(f"{there[0]} exists, that run is complete: nothing is left to resume")


# What a run will cost, before it starts.

TRIAL_TOKENS = 512


@dataclass(frozen=True)
class RunCost:
    """`tokens` of all prompts and answers; `tokens_to_compute` once prefixes are shared; `kv_bytes` of the longest
    prompt's cache; `seconds`, rough: it grows a short prompt's time linearly and leaves out the quadratic part; None
    for a model without weights. `memory`: what the longest prompt needs, `free_bytes`: what there is for all of it
    (None: the system does not say)."""

    tokens: int
    tokens_to_compute: int
    kv_bytes: int
    seconds: float | None
    memory: MemoryNeed
    free_bytes: int | None

    @property
    def fits(self) -> bool | None:
        """Whether it all fits; None where that is not known."""
        return None if self.free_bytes is None else self.memory.total <= self.free_bytes


def run_cost(loaded: LoadedModel, prompts: Sequence[AnyPrompt], prefill_chunk: int = 8192) -> RunCost:
    """The cost of measuring `prompts`, from one timed pass over the start of the longest."""
    lengths = [len(p.input_ids) + len(p.answer_ids) for p in prompts]
    _, shared = prefix_order(prompts)
    to_compute = sum(lengths) - sum(shared) + shared[0]
    longest = max(prompts, key=lambda p: len(p.input_ids))
    per_element = torch.finfo(loaded.model.dtype).bits // 8
    is_empty = loaded.model.device.type == "meta"
    need = needed(loaded, Pass(min(prefill_chunk, max(lengths)), max(lengths), max(map(_rows, prompts))))
    free = free_bytes(loaded.device)
    return RunCost(
        tokens=sum(lengths),
        tokens_to_compute=to_compute,
        kv_bytes=max(lengths) * loaded.geometry.kv_bytes_per_token(per_element),
        seconds=None if is_empty else to_compute * _seconds_per_token(loaded, longest.input_ids[:TRIAL_TOKENS]),
        memory=need,
        free_bytes=free if is_empty or free is None else free + need.weights,
    )


def needed(loaded: LoadedModel, largest: Pass) -> MemoryNeed:
    """What a pass through this model takes, on each of the processes that share its heads."""
    spread = head_spread(loaded.model)
    parts = 1 if spread is None else spread.size
    return memory_need(loaded.model.config, loaded.dtype, largest, bits=bits_of(loaded.quantization), parts=parts)


def _rows(prompt: AnyPrompt) -> int:
    """How many rows of a prompt's pass are looked at, at most."""
    if isinstance(prompt, Reading):
        return min(READING_ROWS, len(prompt.again_span))
    asked = len(prompt.input_ids) - prompt.question_span.start if prompt.null is not None else 0
    return len(prompt.answer_ids) + asked


def _seconds_per_token(loaded: LoadedModel, tokens: tuple[int, ...]) -> float:
    ids = torch.tensor([tokens], device=loaded.device)
    with torch.inference_mode():
        for _ in range(2):
            begin = time.perf_counter()
            logits = loaded.model(input_ids=ids, logits_to_keep=1).logits
            logits.sum().item()
    return (time.perf_counter() - begin) / len(tokens)

"""One plan on several machines: who runs which trials, and how their journals become one run again.

A shard runs its part of a plan and leaves a journal, no score file: what the file says follows from all trials. The
same command with `--resume` and without the shard takes the journals beside it over, runs what is missing, and writes
what one process would have written. Under `torchrun` every rank is a shard, and rank 0 collects.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
import torch.distributed as dist

from headprobe.errors import OptionError, shown
from headprobe.profiling.journal import Check, Journal, Record
from headprobe.profiling.journal_file import HeldError
from headprobe.scores.files import LONGEST_NAME

MOST_SHARDS = 100_000
_WRITTEN = re.compile(r"([0-9]{1,6})/([0-9]{1,6})", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """The `index`-th (from 1) of `count` parts of a plan."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= MOST_SHARDS:
            raise OptionError(f"shard {self} is none: need K/N with K from 1 to N, and N at most {MOST_SHARDS}")

    @classmethod
    def parse(cls, written: str) -> Shard:
        """A shard from `K/N`. Raises `OptionError`.

        >>> Shard.parse("3/16")
        Shard(index=3, count=16)
        """
        found = _WRITTEN.fullmatch(written)
        if found is None:
            raise OptionError(f"the shard is {shown(written)}, need K/N such as 3/16")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def dealt(self, costs: Sequence[float]) -> list[int]:
        """Which of the trials with these `costs` are this shard's, in rising order: the dearest first, each to whoever
        has least by then. All shards of one count deal alike.

        >>> [Shard(k, 2).dealt([1.0, 5.0, 3.0, 3.0]) for k in (1, 2)]
        [[0, 1], [2, 3]]
        """
        loads = [(0.0, shard) for shard in range(self.count)]
        mine = []
        for trial in sorted(range(len(costs)), key=lambda trial: (-costs[trial], trial)):
            load, shard = loads[0]
            heapq.heapreplace(loads, (load + costs[trial], shard))
            if shard == self.index - 1:
                mine.append(trial)
        return sorted(mine)

    def journal(self, whole: Path) -> Path:
        """The shard's journal, beside that of the `whole` run."""
        ending = f".shard-{self.index}-of-{self.count}{whole.suffix}"
        return whole.with_name(whole.stem[: LONGEST_NAME - len(ending)] + ending)


def shard_journals(whole: Path) -> list[Path]:
    """The journals of shards beside that of the `whole` run, by name."""
    pattern = re.compile(re.escape(whole.stem) + r"\.shard-[0-9]+-of-[0-9]+" + re.escape(whole.suffix))
    if not whole.parent.is_dir():
        return []
    return sorted(path for path in whole.parent.iterdir() if pattern.fullmatch(path.name))


def finished_elsewhere(
    paths: Sequence[Path], plan: Mapping[str, Any], check: Check, *, skip_held: bool = False
) -> dict[str, Record]:
    """The finished trials in the journals at `paths`, by id.

    Raises `ResumeError` for a journal of another plan and for one that is being written, unless `skip_held`;
    `FileFormatError` for a damaged one.
    """
    found: dict[str, Record] = {}
    for path in paths:
        try:
            with Journal.resume(path, plan, check) as journal:
                found |= {trial: record for trial, record in journal.records.items() if "skipped" not in record}
        except HeldError:
            if not skip_held:
                raise
    return found


@dataclass(frozen=True)
class Ranks:
    """The processes that `torchrun` started together: this one's `rank`, how many they are, and its place on its
    machine (`local_rank`)."""

    rank: int
    size: int
    local_rank: int

    @classmethod
    def of_environment(cls) -> Ranks | None:
        """What torchrun says of this process; None where it started none, or only this one."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return None
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(rank, size, local) if size > 1 else None

    @property
    def shard(self) -> Shard:
        """The part of a plan that is this rank's."""
        return Shard(self.rank + 1, self.size)

    def device(self, asked: str) -> str:
        """The device of this rank: a GPU of its own for `auto` and `cuda`."""
        if asked in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return asked

    @contextmanager
    def together(self, backend: str = "gloo") -> Iterator[None]:
        """Inside, the ranks can talk to each other (gloo, on CPUs)."""
        dist.init_process_group(backend)
        try:
            yield
        finally:
            dist.destroy_process_group()

    @contextmanager
    def sharing_heads(self) -> Iterator[None]:
        """Inside, the ranks can share the heads of one model, each on the device of its own (NCCL between GPUs)."""
        has_gpu = torch.cuda.is_available()
        if has_gpu:
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
        with self.together("cpu:gloo,cuda:nccl" if has_gpu else "gloo"):
            yield

    def refuse_device_map(self, device_map: object) -> None:
        """Raise `OptionError` where every rank would spread its layers over the same devices."""
        if device_map is not None:
            raise OptionError(
                f"device_map {device_map} spreads layers over all devices, and torchrun started {self.size} processes: "
                "start one, or take tensor_parallel"
            )

    def wait(self) -> None:
        """Until all ranks have come here."""
        dist.barrier()

    def from_first(self, records: Sequence[Record]) -> list[Record]:
        """The records that rank 0 has, on all of them. They travel as JSON."""
        mine = torch.frombuffer(bytearray(orjson.dumps(list(records))), dtype=torch.uint8)
        size = torch.tensor([len(mine)], dtype=torch.int64)
        dist.broadcast(size, 0)
        sent = mine if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(sent, 0)
        found: list[Record] = orjson.loads(sent.numpy().tobytes())
        return found

    def gathered(self, records: Sequence[Record]) -> list[Record] | None:
        """The records of all ranks in their order, on rank 0; None on the others. They travel as JSON."""
        mine = torch.frombuffer(bytearray(orjson.dumps(list(records))), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(mine)], dtype=torch.int64))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(mine)] = mine
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(padded, parts)
        if parts is None:
            return None
        texts = (part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True))
        return [record for text in texts for record in orjson.loads(text)]

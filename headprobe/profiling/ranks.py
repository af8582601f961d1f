"""The processes that torchrun started together: who is which, and how their trials travel to the first of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any

import orjson
import torch
import torch.distributed as dist

from headprobe.errors import LostRankError, OptionError, ResumeError
from headprobe.profiling.journal_file import Record
from headprobe.profiling.shards import Shard

PATIENCE = timedelta(days=30)  # ranks wait for the slowest; one that ends is noticed by its connection


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
        """Inside, the ranks can talk to each other (gloo, on CPUs). Raises `LostRankError` where one has gone."""
        with _heard():
            dist.init_process_group(backend, timeout=PATIENCE)
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
        with _heard():
            dist.barrier()

    def agree(self, plan: Mapping[str, Any]) -> None:
        """Raise `ResumeError`, on every rank, unless all of them have the same plan: a file may have changed."""
        mine = _sent(_digest(plan))
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        with _heard():
            dist.all_gather(theirs, mine)
        others = [rank for rank, found in enumerate(theirs) if not torch.equal(found, theirs[0])]
        if others:
            raise ResumeError(
                f"rank {others[0]} has another plan than rank 0: a file that the run reads was changed while the ranks "
                "began; nothing has run, start again"
            )

    def from_first(self, records: Sequence[Record]) -> list[Record]:
        """The records that rank 0 has, on all of them. They travel as JSON."""
        mine = _sent(orjson.dumps(list(records)))
        size = torch.tensor([len(mine)], dtype=torch.int64)
        with _heard():
            dist.broadcast(size, 0)
            sent = mine if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(sent, 0)
        found: list[Record] = orjson.loads(sent.numpy().tobytes())
        return found

    def gathered(self, records: Sequence[Record]) -> list[Record] | None:
        """The records of all ranks in their order, on rank 0; None on the others. They travel as JSON."""
        with _heard():
            return self._gathered(records)

    def _gathered(self, records: Sequence[Record]) -> list[Record] | None:
        mine = _sent(orjson.dumps(list(records)))
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


def asked_shard(written: str | None, ranks: Ranks | None) -> Shard | None:
    """The part that `--shard` or torchrun gives this process. Raises `OptionError` where both do."""
    if ranks is None:
        return None if written is None else Shard.parse(written)
    if written is not None:
        raise OptionError(f"--shard is {written}, but torchrun deals the trials out to its {ranks.size} processes")
    return ranks.shard


@contextmanager
def _heard() -> Iterator[None]:
    """What torch says of a lost connection, as our error."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise LostRankError(
            "another process of this run has ended: finished trials are kept, the same command with --resume continues "
            f"({reason:.120})"
        ) from None


def _sent(data: bytes) -> torch.Tensor:
    """Bytes as a tensor, which processes can send each other."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _digest(plan: Mapping[str, Any]) -> bytes:
    return sha256(orjson.dumps(dict(plan), option=orjson.OPT_SORT_KEYS)).digest()

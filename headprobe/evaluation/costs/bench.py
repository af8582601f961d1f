"""What a compressed cache costs: reading, each token, memory; every run reads its own prompt, and runs take turns."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from headprobe.compression.budgets import check_budget
from headprobe.compression.decoding import Decoder, run_step
from headprobe.compression.generation import join, memory_advice
from headprobe.compression.kernels.choice import pick_kernel
from headprobe.compression.policies import CompressionPlan
from headprobe.compression.ragged_cache import DEFAULT_SLACK, RaggedCache
from headprobe.compression.session import CompressionSession, check_serving, kernel_needs, on_ragged_caches
from headprobe.errors import DeviceMemoryError, OptionError
from headprobe.evaluation.costs.shapes import LONGEST
from headprobe.evaluation.costs.subject import Contender, Subject, environment
from headprobe.models.devices import PeakMemory, free_bytes
from headprobe.models.releases import with_cache
from headprobe.probes.plan import check_length, check_number

STOCK, FULL = "transformers", "full"
MOST, MOST_REPEATS = 100, 1000
Row = dict[str, Any]
Clock = Callable[[], float]


@dataclass(frozen=True)
class BenchOptions:
    """What is measured.

    `budgets`: mean entries per KV head; `lengths`: tokens of a prompt; `batches`: sequences that are decoded together;
    `new_tokens`: answers' lengths at which the time is noted, rising; `decode_at`: lengths of prompts whose answers go
    on to the last of them (None: all; the others stop at the first); `repeats` of every measurement. `attention` and
    `prefill_chunk` as in `compress`; `seed` of the prompts. Raises `OptionError` for what can't be measured.
    """

    budgets: tuple[int, ...]
    lengths: tuple[int, ...]
    batches: tuple[int, ...] = (1,)
    new_tokens: tuple[int, ...] = (1, 32)
    decode_at: tuple[int, ...] | None = None
    repeats: int = 5
    attention: str = "auto"
    prefill_chunk: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        lists = {"budgets": self.budgets, "lengths": self.lengths, "batches": self.batches, "answers": self.new_tokens}
        for noun, numbers in lists.items():
            check_number(len(numbers), noun, MOST)
            if len(set(numbers)) < len(numbers):
                raise OptionError(f"{noun} {', '.join(map(str, numbers))} hold a number twice")
        for budget in self.budgets:
            check_budget(budget)
        for length in self.lengths:
            check_length(length)
        for batch in self.batches:
            if batch < 1:
                raise OptionError(f"a batch of {batch} is too small, need at least 1 sequence")
        if min(self.new_tokens) < 1 or list(self.new_tokens) != sorted(self.new_tokens):
            raise OptionError(f"--new-tokens {', '.join(map(str, self.new_tokens))}: need rising numbers from 1 on")
        if not 1 <= self.repeats <= MOST_REPEATS:
            raise OptionError(f"--repeats is {self.repeats}, need 1 to {MOST_REPEATS}")
        for length in self.decode_at or ():
            if length not in self.lengths:
                raise OptionError(f"--decode-at {length} is none of the lengths {', '.join(map(str, self.lengths))}")
        check_serving(self.attention, "mean", self.prefill_chunk)
        check_length(self.most_tokens, LONGEST)

    def answers(self, length: int) -> tuple[int, ...]:
        """The answers' lengths behind a prompt of `length` tokens."""
        return self.new_tokens if self.decode_at is None or length in self.decode_at else self.new_tokens[:1]

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest prompt and answer together."""
        return max(length + self.answers(length)[-1] for length in self.lengths)

    def num_cells(self, policies: int) -> int:
        """How many cells `policies` beside the full cache give: the full one and transformers' own come on top."""
        return (2 + policies * len(self.budgets)) * len(self.lengths) * len(self.batches)


@dataclass(frozen=True)
class Cell:
    """One setting: `policy` is a policy's name or `STOCK`; `kernel` None for that."""

    policy: str
    budget: int | None
    length: int
    batch: int
    kernel: str | None
    new_tokens: tuple[int, ...]

    @property
    def id(self) -> str:
        """Unique in a bench."""
        return f"{self.policy}|{self.budget or '-'}|{self.length}|{self.batch}|{self.kernel or '-'}"

    def head(self, repeat: int) -> Row:
        """The fields of a row that are known before it runs."""
        return {
            "trial": f"{self.id}|{repeat}", "policy": self.policy, "budget": self.budget, "length": self.length,
            "batch": self.batch, "asked_kernel": self.kernel, "new_tokens": list(self.new_tokens), "repeat": repeat,
        }  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """What one run took.

    `prefill_s`: seconds until the first token was known; `latency_s`: until each of the cell's `new_tokens` were;
    `peak_bytes` beyond the weights (None: the system does not say); `kv_bytes`: storage of keys and values behind the
    prompt, `kept_bytes` of the entries in it; `kernel`: which attended; `graph_refusal`: why no step was captured.
    """

    prefill_s: float
    latency_s: tuple[float, ...]
    peak_bytes: int | None
    kv_bytes: int
    kept_bytes: int
    kernel: str
    graph_refusal: str | None = None

    def record(self) -> Row:
        """Its fields of a row."""
        return {**vars(self), "latency_s": list(self.latency_s), "error": None}


UNMEASURED: Row = {
    "prefill_s": None, "latency_s": None, "peak_bytes": None, "kv_bytes": None, "kept_bytes": None, "kernel": None,
    "graph_refusal": None,
}  # fmt: skip


@dataclass(eq=False)
class Bench:
    """Measures `subject` by `options`; `clock` counts seconds."""

    subject: Subject
    options: BenchOptions
    clock: Clock = time.perf_counter
    _contenders: dict[str, Contender] = field(init=False)

    def __post_init__(self) -> None:
        self._contenders = {contender.policy.name: contender for contender in self.subject.contenders}
        check_length(self.options.most_tokens, self.subject.window)
        for cell in self.cells():
            if cell.policy != STOCK:
                self.plan(cell)

    def groups(self) -> Iterator[tuple[Cell, ...]]:
        """Cells that are compared: one length and batch. The full cache runs on each kernel that a policy needs."""
        kernels = {name: self._kernel(contender) for name, contender in self._contenders.items()}
        asked = self.options.attention
        for length in self.options.lengths:
            answers = self.options.answers(length)
            for batch in self.options.batches:
                found = [
                    Cell(STOCK, None, length, batch, None, answers),
                    Cell(FULL, None, length, batch, asked, answers),
                ]
                found += [
                    Cell(FULL, None, length, batch, kernel, answers)
                    for kernel in dict.fromkeys(kernels.values()) if kernel != kernels[FULL]
                ]  # fmt: skip
                found += [
                    Cell(name, budget, length, batch, asked, answers)
                    for name in self._contenders if name != FULL for budget in self.options.budgets
                ]  # fmt: skip
                yield tuple(found)

    def cells(self) -> list[Cell]:
        """All cells."""
        return [cell for group in self.groups() for cell in group]

    def _kernel(self, contender: Contender) -> str:
        return pick_kernel(self.options.attention, kernel_needs(self.subject.model, contender.policy))[0].name

    def plan(self, cell: Cell) -> CompressionPlan:
        """The plan of a cell. Raises `OptionError` for a budget below what window and sinks take."""
        contender, groups = self._contenders[cell.policy], self.subject.geometry.num_key_value_heads
        return CompressionPlan(
            contender.policy, self.subject.compressed_layers, groups, budget=cell.budget, head_scores=contender.table
        )

    def describe(self) -> dict[str, Any]:
        """All that decides what is measured: a journal belongs to exactly this."""
        chosen = self._contenders.values()
        return {
            "evaluation": "bench", "model": self.subject.name, "dtype": str(self.subject.model.dtype),
            "environment": environment(self.subject.model.device),
            "policies": {each.policy.name: {"rule": repr(each.policy), "scores": each.source} for each in chosen},
            **{name: list(value) if isinstance(value, tuple) else value for name, value in vars(self.options).items()},
        }  # fmt: skip

    def remarks(self) -> list[str]:
        """What a reader has to know of the scores and budgets."""
        found = [each.remark for each in self._contenders.values() if each.remark is not None]
        found += [
            f"a budget of {budget} holds all of {length} tokens: nothing is evicted there"
            for length in self.options.lengths for budget in self.options.budgets if budget >= length
        ]  # fmt: skip
        return found

    # -- one run ----------------------------------------------------------------------------------------------------

    def measure(self, cell: Cell, new_tokens: tuple[int, ...] | None = None) -> Sample:
        """One run of a cell. Raises `DeviceMemoryError` where it does not fit, `NonFiniteError`."""
        self._free()
        self._check_room(cell)
        counts = cell.new_tokens if new_tokens is None else new_tokens
        run = self._stock if cell.policy == STOCK else self._compressed
        with memory_advice(self.subject.model, f"{cell.batch} x {cell.length} tokens"), torch.inference_mode():
            made: Sample = run(cell, counts)
        return made

    def _stock(self, cell: Cell, counts: tuple[int, ...]) -> Sample:
        """The model as it is, on transformers' own cache."""
        model = self.subject.model
        cache: Any = DynamicCache(config=self.subject.config)
        ids, given = self.prompts(cell), with_cache(self.subject.model, cache)
        peak, began = self._begin()
        tokens = _next(model(input_ids=ids, **given, use_cache=True, logits_to_keep=1))
        marks = [self._mark(tokens) - began]
        tensors = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
        held = sum(tensor.nbytes for tensor in tensors if tensor is not None)  # linear layers have neither
        for done, count in zip((1, *counts), counts, strict=False):
            for _ in range(count - done):
                tokens = _next(model(input_ids=tokens, **given, use_cache=True, logits_to_keep=1))
            marks.append(self._mark(tokens) - began if count > done else marks[-1])
        return Sample(marks[0], tuple(marks[1:]), peak.bytes(), held, held, f"transformers' {_attention(model)}")

    def _compressed(self, cell: Cell, counts: tuple[int, ...]) -> Sample:
        """A compressed cache: prompts of a batch are read one after another, and decoded together."""
        model, plan, ids = self.subject.model, self.plan(cell), self.prompts(cell)
        kernel, reason = pick_kernel(cell.kernel or "auto", kernel_needs(model, plan.policy))
        session = CompressionSession(model, plan, kernel, reason, slack=DEFAULT_SLACK, keep_positions=False)
        with on_ragged_caches(model, self.options.prefill_chunk):
            peak, began = self._begin()
            read = [(run_step(model, cache := session.new_cache(), row[None]), cache) for row in ids]
            cache = read[0][1] if len(read) == 1 else join([each for _, each in read])
            logits = torch.cat([each for each, _ in read])
            del read
            marks = [self._mark(logits.argmax(-1)) - began]
            held, kept = cache.nbytes, kept_bytes(cache)
            cache.make_room(counts[-1])  # or a GPU would capture its steps anew where the last part is timed
            decoder = Decoder(model, cache)
            for done, count in zip((1, *counts), counts, strict=False):
                if count > done:  # the same first token again: what is produced does not change what a step takes
                    decoder.run(logits, 1 + count - done)
                marks.append(self._mark(logits) - began if count > done else marks[-1])
            return Sample(
                marks[0], tuple(marks[1:]), peak.bytes(), held, kept, cache.kernel.name, decoder.graph_refusal
            )

    def prompts(self, cell: Cell) -> torch.Tensor:
        """Random token ids `[batch, length]`."""
        generator = torch.Generator().manual_seed(self.options.seed)
        size, most = (cell.batch, cell.length), self.subject.config.vocab_size
        return torch.randint(min(2, most - 1), most, size, generator=generator).to(self.subject.model.device)

    def _begin(self) -> tuple[PeakMemory, float]:
        peak = PeakMemory(self.subject.model.device)
        peak.start()
        return peak, self.clock()

    def _mark(self, result: torch.Tensor) -> float:
        """The time when `result` is there."""
        if result.is_cuda:
            torch.cuda.synchronize(result.device)
        return self.clock()

    def _free(self) -> None:
        """Give unused memory back to where a run's peak is counted from.

        On a GPU the allocator keeps its blocks, which do not count: to ask the driver anew would be timed as reading.
        """
        gc.collect()
        if self.subject.model.device.type == "cpu" and sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
            if trim is not None:
                trim(0)

    def _check_room(self, cell: Cell) -> None:
        """Raise `DeviceMemoryError` for what can't fit: systems promise more memory than they have."""
        free = free_bytes(self.subject.model.device)
        needed = cell.batch * cell.length * self.subject.kv_bytes_per_token
        if cell.policy != STOCK and cell.budget is not None:
            layer = cell.length * self.subject.kv_bytes_per_token // self.subject.compressed_layers
            needed = layer + cell.batch * self._least(cell)
        if free is not None and needed > free:
            raise DeviceMemoryError(
                f"keys and values take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on "
                f"{self.subject.model.device}"
            )

    def _least(self, cell: Cell) -> int:
        heads = self.subject.compressed_layers * self.subject.geometry.num_key_value_heads
        return int(self.plan(cell).capacities(cell.length).sum()) * self.subject.kv_bytes_per_token // heads


def kept_bytes(cache: RaggedCache) -> int:
    """Bytes of the entries in use: what a step reads. Room for new tokens, and uncompressed layers, are left out."""
    return sum(int(store.lengths.sum()) * store.entry_nbytes for store in cache.stores)


def _next(output: Any) -> torch.Tensor:
    tokens: torch.Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
    return tokens


def _attention(model: Any) -> str:
    return str(model.config._attn_implementation)

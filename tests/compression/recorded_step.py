"""A captured step without a GPU: operations are recorded once and repeated, as a CUDA graph does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headprobe.compression import conversation
from headprobe.compression.decoding import LOOK_EVERY, DecodeStep

FORBIDDEN = "operation not permitted when stream is capturing"
LOOKS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}
HOST_METHODS = ("tolist", "numpy", "__array__", "item", "__bool__", "__int__", "__float__", "__index__")


class RecordedStep:
    """Stands in for `CapturedStep`, and fails where that would.

    The step's Python runs once. What it computes then is taken back, what it counts is set back. A replay repeats the
    operations on the very tensors and with the very numbers of that run: a number that the host worked out stays what
    it was, and a tensor that was put in the place of another is not seen. While it is recorded, nothing may look at
    what the device holds.
    """

    made = 0

    def __init__(self, step: DecodeStep) -> None:
        RecordedStep.made += 1
        self.cache, self.layout = step.cache, step.cache.layout
        counted = self.cache.counters
        drawn = None if step.generator is None else step.generator.get_state()
        self._recorder = Recorder()
        try:
            with no_looks(), self._recorder, patch.object(conversation, "is_capturing", lambda _: True):
                step()
        finally:
            self.cache.counters = counted
            self._recorder.take_back()
            if step.generator is not None:
                step.generator.set_state(drawn)

    def replay(self, count: int) -> None:
        assert self.cache.layout == self.layout
        assert count <= LOOK_EVERY
        assert self.cache.has_room(count)
        for _ in range(count):
            self._recorder.replay()
        self.cache.advance(count)
        for store in self.cache.stores:  # host and device count the same
            assert store.length.tolist() == store.lengths.tolist()
            assert store.last.tolist() == (store.starts + store.lengths - 1).tolist()


@dataclass(frozen=True)
class Operation:
    """A call, and those of the tensors that it made whose memory is their own: by place, and as they were."""

    function: Callable[..., Any]
    arguments: Sequence[Any]
    options: Mapping[str, Any]
    made: tuple[tuple[int, torch.Tensor], ...]

    def repeat(self) -> None:
        given = list(tensors(self.function(*self.arguments, **self.options)))
        for place, tensor in self.made:
            tensor.copy_(given[place])


class Recorder(TorchDispatchMode):
    """Runs operations and writes them down; `take_back` undoes what they wrote into tensors that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[Operation] = []
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._own: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func._schema.name in LOOKS:
            raise RuntimeError(FORBIDDEN)
        for tensor in written(func, args, options):
            if memory(tensor) not in self._own:
                self._before.append((tensor, tensor.clone()))
        out = func(*args, **options)
        taken = {memory(tensor) for tensor in tensors((args, options))}
        made = tuple((i, t) for i, t in enumerate(tensors(out)) if t.numel() and memory(t) not in taken)
        self._own |= {memory(tensor) for _, tensor in made}
        self._operations.append(Operation(func, args, options, made))
        return out

    def take_back(self) -> None:
        for tensor, before in reversed(self._before):
            tensor.copy_(before)

    def replay(self) -> None:
        for operation in self._operations:
            operation.repeat()


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def memory(tensor: torch.Tensor) -> int:
    """Where a tensor's memory begins; views of one memory give the same."""
    return tensor.untyped_storage().data_ptr()


def written(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operation writes into, by its schema."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else options.get(argument.name)
            yield from tensors(given)


@contextmanager
def no_looks() -> Iterator[None]:
    """Refuse what makes numbers of tensors: on a CPU it reads memory and is no operation that a recorder sees."""

    def refuse(self: torch.Tensor, *args: Any, **options: Any) -> Any:
        raise RuntimeError(FORBIDDEN)

    with ExitStack() as stack:
        for name in HOST_METHODS:
            stack.enter_context(patch.object(torch.Tensor, name, refuse))
        yield

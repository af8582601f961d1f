"""That a decode step touches nothing in the host's memory: on torch's device "meta", which holds no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from headprobe.compression import conversation
from headprobe.compression.decoding import DecodeStep, Sampler
from headprobe.compression.fused import layers as fused
from headprobe.compression.generation import join
from headprobe.compression.policies import POLICIES
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.session import compress
from tests.compression.recorded_step import tensors
from tests.compression.test_decoding import small_llama, tokens
from tests.compression.test_joining import read
from tests.compression.test_session import options

MAKERS = ("tensor", "as_tensor", "from_numpy")  # make tensors of numbers that the host holds; on "meta" no operation


class IndexedByNumbers(TorchFunctionMode):
    """Notes `tensor[[number]]`, and `tensor[indices] = number` with a tensor of indices: on a CUDA device, not on
    "meta", torch brings these numbers from the host's memory, which a capture refuses."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__setitem__, torch.Tensor.__getitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            puts_number = len(args) == 3 and bool([*tensors(index)]) and not isinstance(args[2], torch.Tensor)
            if puts_number or any(isinstance(part, list) for part in index):
                self.found.append(f"{func.__name__} {args[1:]}")
        return func(*args, **(kwargs or {}))


class FromHost(TorchDispatchMode):
    """Notes what reads or makes a tensor in the host's memory, or brings numbers from there."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.found: list[str] = []
        self._makers = ExitStack()

    def __enter__(self) -> FromHost:
        for name in MAKERS:
            self._makers.enter_context(patch.object(torch, name, self._noted(name, getattr(torch, name))))
        self._makers.enter_context(IndexedByNumbers(self.found))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._makers.close()

    def _noted(self, name: str, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def noted(*args: Any, **options: Any) -> torch.Tensor:
            self.found.append(name)
            return make(*args, **options)

        return noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += 1
        if any(tensor.device.type != "meta" for tensor in tensors((args, kwargs or {}, out))):
            self.found.append(str(func))
        return out


def to_meta(held: Any, done: dict[int, Any]) -> Any:
    """`held` with all tensors in it on the device "meta"; what is held twice stays one."""
    if id(held) in done:
        return done[id(held)]
    if isinstance(held, torch.Tensor):
        done[id(held)] = held.to("meta")
        return done[id(held)]
    if isinstance(held, tuple):
        return tuple(to_meta(part, done) for part in held)
    done[id(held)] = held
    if isinstance(held, list):
        held[:] = [to_meta(part, done) for part in held]
    elif type(held).__module__.startswith("headprobe."):
        for name, part in getattr(held, "__dict__", {}).items():
            if isinstance(part, torch.Tensor | tuple | list) or type(part).__module__.startswith("headprobe."):
                object.__setattr__(held, name, to_meta(part, done))
    return held


@pytest.fixture(scope="module")
def llama() -> Any:
    return small_llama(4, 2, head_dim=16)


@pytest.fixture
def draws_anywhere() -> Iterator[None]:
    """There are no generators for "meta"."""
    draw = Sampler.draw
    with (
        patch.object(Sampler, "generator", lambda self, device: torch.Generator()),
        patch.object(Sampler, "draw", lambda self, logits, generator: draw(self, logits, None)),  # type: ignore[arg-type]
    ):
        yield


def watched(llama: Any, name: str, sampler: Sampler | None, batch: int = 1, *, is_fused: bool = False) -> FromHost:
    """The second of two steps on "meta": the first makes what is made once."""
    given = options(llama, name)
    with compress(llama, **given, attention="torch") as opened, torch.inference_mode():
        caches: list[RaggedCache] = [read(opened, tokens(70 + 9 * row))[0] for row in range(batch)]
        cache: RaggedCache = to_meta(caches[0] if batch == 1 else join(caches), {})
    model, watch = deepcopy(llama).to("meta"), FromHost()
    with compress(model, **given, attention="torch"), torch.inference_mode():
        step = DecodeStep(model, cache, sampler, fused=is_fused)
        step()
        with watch, patch.object(conversation, "is_capturing", lambda _: True):
            step()
    return watch


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_step_stays_on_its_device_under_every_policy(llama: Any, draws_anywhere: None, name: str) -> None:
    watch = watched(llama, name, Sampler(temperature=2.0, top_k=40, top_p=0.9))
    assert watch.count > 100
    assert watch.found == []


def projected(
    x: torch.Tensor,
    given: list[tuple[torch.Tensor, torch.Tensor | None]],
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    gated: bool = False,
    added: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `project` makes, by its shape: Triton knows no "meta"."""
    assert norm is None or norm[0].shape == x.shape[1:]
    assert {weight.shape[1] for weight, _ in given} == {x.shape[1]}
    out = x.new_empty(len(x), sum(len(weight) for weight, _ in given) // (2 if gated else 1))
    return out if added is None else out + added


def rotated(
    heads: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    keys: torch.Tensor,
    values: torch.Tensor,
    last: torch.Tensor,
    *,
    gains: tuple[torch.Tensor, torch.Tensor, float] | None = None,
) -> torch.Tensor:
    """What `rotate_and_write` makes and writes, by its shape."""
    assert gains is None
    width, batch = keys.shape[1], len(heads)
    assert rotary[0].shape[-1] == rotary[1].shape[-1] == width
    keys.index_fill_(0, last, 0.0)
    values.index_fill_(0, last, 0.0)
    return heads.new_empty(batch, heads.shape[1] // width - 2 * len(last) // batch, 1, width)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["full", "snapkv", "headkv-r2", "h2o", "scissorhands", "vatp-h2o"])
def test_a_step_with_fused_layers_stays_on_its_device(
    llama: Any, monkeypatch: pytest.MonkeyPatch, name: str, batch: int
) -> None:
    monkeypatch.setattr(fused, "_refusal", fused.unfit)
    monkeypatch.setattr(fused, "project", projected)
    monkeypatch.setattr(fused, "rotate_and_write", rotated)
    watch = watched(llama, name, None, batch, is_fused=True)
    assert 10 < watch.count < watched(llama, name, None, batch).count
    assert watch.found == []


@pytest.mark.parametrize("name", ["full", "snapkv", "h2o"])
def test_a_step_of_a_batch_stays_on_its_device(llama: Any, name: str) -> None:
    watch = watched(llama, name, None, batch=3)
    assert watch.count > 100
    assert watch.found == []


@pytest.mark.parametrize(
    "look",
    [
        lambda at: torch.tensor([1.0], device=at.device),
        lambda at: torch.ones(1).to(at.device),
        lambda at: at.clone().__setitem__(at.argmax(-1), 0.0) or 1.0,
        lambda at: at[:, [0]],
    ],
    ids=["numbers of Python", "a tensor of the host", "a number put into a tensor", "a list of places"],
)
def test_a_copy_from_the_host_is_noticed(llama: Any, monkeypatch: pytest.MonkeyPatch, look: Any) -> None:
    own = DecodeStep.choose
    monkeypatch.setattr(DecodeStep, "choose", lambda step, logits: own(step, logits * look(logits)))
    assert watched(llama, "snapkv", None).found != []


def test_a_look_at_the_device_is_noticed(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = DecodeStep.choose
    monkeypatch.setattr(DecodeStep, "choose", lambda step, logits: own(step, logits[logits > 0][None]))
    with pytest.raises((RuntimeError, NotImplementedError)):
        watched(llama, "snapkv", None)

"""Captures that fail: what is said of them, and that the device goes on as if there had been none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from headprobe.compression import capture
from headprobe.compression.capture import captured
from headprobe.compression.decoding import Decoder, DecodeStep, Sampler
from headprobe.compression.session import compress
from tests.compression.test_decoding import small_llama, tokens
from tests.compression.test_joining import read
from tests.compression.test_session import options


class Device:
    """As much of torch's CUDA as a capture needs: its stream, its captures, and what an end that fails leaves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream, self.recording, self.captures, self.end_fails = "own", set[int](), 0, False
        for name, stand_in in {
            "CUDAGraph": object, "graph": self.graph, "graph_pool_handle": lambda: self.captures,
            "current_stream": lambda: self.stream, "set_stream": self.set_stream, "current_device": lambda: 0,
            "device": lambda _: nullcontext(),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda _, pool: self.recording.remove(pool))
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _, pool: None)
        monkeypatch.setattr(capture, "_side_stream", lambda _: "side")
        monkeypatch.setattr(torch, "zeros", lambda count, device: [0.0] * count)

    def set_stream(self, stream: str) -> None:
        self.stream = stream

    @contextmanager
    def graph(self, graph: object, pool: int | None = None, stream: str = "") -> Any:
        """As torch's: where the capture cannot be ended, nothing behind that is done."""
        pool, before = self.captures if pool is None else pool, self.stream
        self.captures += 1
        self.recording.add(pool)
        self.stream = stream
        try:
            yield
        finally:
            if self.end_fails:
                self.end_fails = False
                raise RuntimeError("operation failed due to a previous error during capture")
            self.recording.remove(pool)
            self.stream = before


def fails(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize("end_fails", [False, True])
def test_a_failed_capture_raises_its_cause_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, end_fails: bool
) -> None:
    device = Device(monkeypatch)
    device.end_fails = end_fails
    with pytest.raises(RuntimeError, match="^not permitted when stream is capturing$"):
        captured(fails(RuntimeError("not permitted when stream is capturing")), torch.device("cuda"))
    assert (device.stream, device.recording) == ("own", set())
    assert device.captures == (2 if end_fails else 1)  # the second takes the generator out of the first


def test_a_capture_that_only_its_end_refuses_says_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    device.end_fails = True
    with pytest.raises(RuntimeError, match="^operation failed due to a previous error"):
        captured(lambda: None, torch.device("cuda"))
    assert (device.stream, device.recording) == ("own", set())


@pytest.mark.gpu
def test_on_a_gpu_a_failed_capture_costs_only_itself() -> None:
    """Memory can be given back, numbers drawn, other work captured; the stream is the one before."""
    device, stream = torch.device("cuda"), torch.cuda.current_stream()
    numbers = torch.ones(4, device=device)
    with pytest.raises(RuntimeError, match="captur"):
        captured(lambda: numbers.sum().item(), device)
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    assert torch.randn(4, device=device).isfinite().all()
    generator = torch.Generator(device).manual_seed(1)
    graph = captured(lambda: numbers.add_(1).normal_(generator=generator), device, generator)
    graph.replay()
    first = numbers.clone()
    graph.replay()
    assert not torch.equal(first, numbers)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", [None, Sampler(temperature=2.0, seed=4)])
def test_on_a_gpu_a_step_that_looks_at_the_device_is_decoded_eagerly(
    monkeypatch: pytest.MonkeyPatch, sampler: Sampler | None
) -> None:
    model, own = small_llama(4, 2).cuda(), DecodeStep.choose
    with compress(model, **options(model, "snapkv"), slack=64) as opened:
        cache, logits = read(opened, tokens(50).cuda())
        wanted = Decoder(model, cache, graphs=False).run(logits, 20).tolist()
        with monkeypatch.context() as patched:
            patched.setattr(DecodeStep, "choose", lambda step, given: own(step, given) + int(given.isnan().any()))
            cache, logits = read(opened, tokens(50).cuda())
            decoder = Decoder(model, cache, sampler=sampler)
            found = decoder.run(logits, 20).tolist()
        assert decoder.graph_refusal is not None
        assert "could not be captured" in decoder.graph_refusal
        assert len(found[0]) == 20
        assert sampler is not None or found == wanted
        cache, logits = read(opened, tokens(50).cuda())
        decoder = Decoder(model, cache)
        assert decoder.run(logits, 20).tolist() == wanted
        assert decoder.uses_graph

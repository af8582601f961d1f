"""Which kernel is taken, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headprobe.compression.kernels import choice, measured
from headprobe.compression.kernels.choice import KernelNeeds, pick_kernel, ranked_kernels
from headprobe.errors import OptionError


@pytest.fixture
def triton_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton is installed, flash-attn is not."""
    monkeypatch.setattr(choice, "_installed", lambda module: module == "triton")


@pytest.fixture
def measured_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two kernels were measured on a device called Seen."""
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"Seen": {"torch-varlen": 0.25, "triton": 0.5}}))
    monkeypatch.setattr(measured, "MEASURED_FILE", file)


def test_on_a_cpu_the_torch_kernel_is_taken_and_the_reasons_told() -> None:
    kernel, reason = pick_kernel("auto", KernelNeeds("cpu", "float32", 64))
    assert kernel.name == "torch"
    assert reason == "; ".join(
        f"{name} runs on CUDA devices only, not on cpu" for name in ("flash4", "flash2", "torch-varlen", "triton")
    )


@pytest.mark.usefixtures("triton_is_all")
@pytest.mark.parametrize(
    ("needs", "name"),
    [
        (KernelNeeds("cuda", "bfloat16", 128), "torch-varlen"),
        (KernelNeeds("cuda", "bfloat16", 128, softcap=True), "triton"),
        (KernelNeeds("cuda", "bfloat16", 64, sinks=True), "triton"),
        (KernelNeeds("cuda", "bfloat16", 128, bias=True), "triton"),
        (KernelNeeds("cuda", "bfloat16", 128, weights=True), "triton"),
        (KernelNeeds("cuda", "float32", 128), "triton"),
        (KernelNeeds("cuda", "bfloat16", 84), "triton"),
        (KernelNeeds("cuda", "bfloat16", 512), "torch"),
        (KernelNeeds("cuda", "float64", 64), "torch"),
        (KernelNeeds("mps", "float16", 64), "torch"),
    ],
)
def test_without_flash_attention_the_triton_kernel_takes_what_torchs_varlen_cannot(
    needs: KernelNeeds, name: str
) -> None:
    assert pick_kernel("auto", needs)[0].name == name


@pytest.mark.usefixtures("triton_is_all")
def test_an_unmeasured_device_is_said_to_be_so() -> None:
    _, reason = pick_kernel("auto", KernelNeeds("cuda", "bfloat16", 128, device_name="New"))
    assert reason == (
        "flash4 flash_attn.cute is not installed; flash2 flash_attn is not installed; "
        "torch-varlen comes next; its speed has not been measured on New"
    )


@pytest.mark.usefixtures("triton_is_all", "measured_on")
def test_on_a_measured_device_the_fastest_kernel_is_taken_and_its_share_told() -> None:
    kernel, reason = pick_kernel("auto", KernelNeeds("cuda", "bfloat16", 128, device_name="Seen"))
    assert (kernel.name, reason) == ("triton", "triton reads at 50% of copy bandwidth, measured on Seen")


@pytest.mark.usefixtures("measured_on")
def test_kernels_are_ranked_by_what_was_measured_on_that_device_alone() -> None:
    assert [kernel.name for kernel in ranked_kernels("Seen")] == ["triton", "torch-varlen", "flash4", "flash2", "torch"]
    for other in ("New", None):
        assert [kernel.name for kernel in ranked_kernels(other)] == [kernel.name for kernel in choice.KERNELS]


@pytest.mark.parametrize(
    ("needs", "name", "reason"),
    [
        (KernelNeeds("cuda", "float32", 64), "torch-varlen", "takes half precision, not float32"),
        (KernelNeeds("cuda", "bfloat16", 512), "torch-varlen", "head width 512 is above 256"),
        (KernelNeeds("cuda", "bfloat16", 84), "torch-varlen", "head width 84 is no multiple of 8"),
        (KernelNeeds("cuda", "bfloat16", 64, softcap=True), "torch-varlen", "cannot cap scores"),
        (KernelNeeds("cuda", "bfloat16", 64, sinks=True), "torch-varlen", "knows no attention sinks"),
        (KernelNeeds("cuda", "bfloat16", 64, bias=True), "torch-varlen", "takes no bias"),
        (KernelNeeds("cuda", "bfloat16", 64, weights=True), "torch-varlen", "gives no weights"),
        (KernelNeeds("cuda", "bfloat16", 64), "flash4", "flash_attn.cute is not installed"),
        (KernelNeeds("cuda", "float64", 64), "triton", "takes float16, bfloat16, float32, not float64"),
    ],
)
@pytest.mark.usefixtures("triton_is_all")
def test_a_kernel_that_cannot_serve_says_why(needs: KernelNeeds, name: str, reason: str) -> None:
    with pytest.raises(OptionError, match=f"the attention kernel {name} cannot be used here: .*{reason}"):
        pick_kernel(name, needs)


def test_unknown_kernels_are_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="unknown attention kernel 'fast': known are auto, flash4, flash2"):
        pick_kernel("fast", KernelNeeds("cpu", "float32", 64))

"""Which kernel is taken, and what is said about it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels import choice
from headprobe.compression.kernels import source as sources
from headprobe.compression.kernels.choice import KERNELS, KernelNeeds, fitting, pick_kernel, ranked_kernels
from headprobe.compression.kernels.source import FLASH2, FLASH4, TRITON, Source
from headprobe.errors import OptionError
from tests.compression.kernels.stores import random_store

PACKAGES = {FLASH4.module: FLASH4.package, FLASH2.module: FLASH2.package}
HOPPER, AMPERE, TURING, BLACKWELL, DESKTOP = (9, 0), (8, 0), (7, 5), (10, 0), (12, 0)


def by_name(name: str) -> choice.Kernel:
    return next(kernel for kernel in KERNELS if kernel.name == name)


@pytest.fixture
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel can be imported."""
    monkeypatch.setattr(Source, "fault", lambda source: None)


@pytest.fixture
def fresh_imports() -> Iterator[None]:
    """What was found out about imports is forgotten before and behind the test."""
    sources._fault.cache_clear()
    yield
    sources._fault.cache_clear()


@pytest.fixture
def triton_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton is installed, flash-attn is not."""
    absent = "{package} is not installed"
    pretend = {name: absent.format(package=package) for name, package in PACKAGES.items()}
    monkeypatch.setattr(Source, "fault", lambda source: pretend.get(source.module))


@pytest.fixture
def measured_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two kernels were measured on a device called Seen."""
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"Seen": {"torch-varlen": 0.25, "triton": 0.5}}))
    monkeypatch.setattr(choice, "SHIPPED_FILE", file)


def test_on_a_cpu_the_torch_kernel_is_taken_and_the_reasons_told() -> None:
    kernel, reason = pick_kernel("auto", KernelNeeds("cpu", "float32", 64))
    assert kernel.name == "torch"
    assert reason == "; ".join(
        f"{name} runs on CUDA devices only, not on cpu" for name in ("triton", "flash4", "flash2", "torch-varlen")
    )


@pytest.mark.usefixtures("triton_is_all")
@pytest.mark.parametrize(
    ("needs", "name"),
    [
        (KernelNeeds("cuda", "bfloat16", 128), "triton"),
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
def test_the_triton_kernel_takes_all_that_it_can_and_plain_torch_the_rest(needs: KernelNeeds, name: str) -> None:
    assert pick_kernel("auto", needs)[0].name == name


@pytest.mark.usefixtures("triton_is_all")
def test_an_unmeasured_device_is_said_to_be_so() -> None:
    _, reason = pick_kernel("auto", KernelNeeds("cuda", "bfloat16", 128, device_name="New"))
    assert reason == "triton is next; its speed has not been measured on New"


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
        (KernelNeeds("cuda", "bfloat16", 84), "torch-varlen", "head width 84 is not a multiple of 8"),
        (KernelNeeds("cuda", "bfloat16", 64, softcap=True), "torch-varlen", "cannot cap scores"),
        (KernelNeeds("cuda", "bfloat16", 64, sinks=True), "torch-varlen", "does not support attention sinks"),
        (KernelNeeds("cuda", "bfloat16", 64, bias=True), "torch-varlen", "does not support a bias"),
        (KernelNeeds("cuda", "bfloat16", 64, weights=True), "torch-varlen", "returns no attention weights"),
        (KernelNeeds("cuda", "bfloat16", 64), "flash4", "flash_attn.cute is not installed"),
        (KernelNeeds("cuda", "float64", 64), "triton", "takes float16, bfloat16, float32, not float64"),
    ],
)
@pytest.mark.usefixtures("triton_is_all")
def test_a_kernel_that_cannot_serve_says_why(needs: KernelNeeds, name: str, reason: str) -> None:
    with pytest.raises(OptionError, match=f"the attention kernel {name} cannot be used here: .*{reason}"):
        pick_kernel(name, needs)


def test_unknown_kernels_are_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="unknown attention kernel 'fast': known are auto, triton, flash4"):
        pick_kernel("fast", KernelNeeds("cpu", "float32", 64))


@pytest.mark.usefixtures("all_installed")
@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (HOPPER, None),
        (BLACKWELL, None),
        ((11, 0), None),
        (AMPERE, "runs on compute capability 9.x to 11.x, not 8.0"),
        ((8, 9), "runs on compute capability 9.x to 11.x, not 8.9"),
        (DESKTOP, "runs on compute capability 9.x to 11.x, not 12.0"),
        (None, "needs to know the compute capability"),
    ],
)
def test_flash_attn_4_is_offered_on_its_cards_alone(card: tuple[int, int] | None, reason: str | None) -> None:
    assert by_name("flash4").refuses(KernelNeeds("cuda", "bfloat16", 128, capability=card)) == reason


@pytest.mark.usefixtures("all_installed")
@pytest.mark.parametrize("name", ["flash2", "torch-varlen"])
def test_flash_attn_2_needs_ampere_or_newer(name: str) -> None:
    assert by_name(name).refuses(KernelNeeds("cuda", "float16", 128, capability=DESKTOP)) is None
    reason = by_name(name).refuses(KernelNeeds("cuda", "float16", 128, capability=TURING))
    assert reason == "runs on compute capability 8.0 and newer, not 7.5"


@pytest.mark.usefixtures("all_installed")
@pytest.mark.parametrize(
    ("name", "widths", "card", "reason"),
    [
        ("flash4", (256, None), HOPPER, "head width 256 is above 128"),
        ("flash4", (64, 100), HOPPER, "head width 100 is not a multiple of 8"),
        ("flash4", (64, 128), HOPPER, None),
        ("flash4", (192, 128), HOPPER, "head width 192 is above 128"),
        ("flash4", (192, 128), BLACKWELL, None),
        ("flash2", (192, 128), HOPPER, "needs keys and values of the same width, not 192 and 128"),
        ("torch-varlen", (24, 16), HOPPER, "needs keys and values of the same width, not 24 and 16"),
        ("torch-varlen", (128, 512), HOPPER, "head width 512 is above 256"),
        ("triton", (192, 128), HOPPER, None),
        ("torch", (576, 512), HOPPER, None),
    ],
)
def test_a_kernel_is_asked_for_both_widths(
    name: str, widths: tuple[int, int | None], card: tuple[int, int], reason: str | None
) -> None:
    needs = KernelNeeds("cuda", "bfloat16", widths[0], value_dim=widths[1], capability=card)
    assert by_name(name).refuses(needs) == reason


@pytest.mark.usefixtures("all_installed")
def test_no_flash_kernel_serves_a_model_with_sinks() -> None:
    needs = KernelNeeds("cuda", "bfloat16", 64, sinks=True, capability=HOPPER)
    assert pick_kernel("auto", needs)[0].name == "triton"
    with pytest.raises(
        OptionError, match="the attention kernel flash4 cannot be used here: does not support attention sinks"
    ):
        pick_kernel("flash4", needs)


@pytest.mark.usefixtures("fresh_imports")
def test_flash_attn_2_is_not_there_where_flash_attn_4_alone_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn/cute").mkdir(parents=True)
    (tmp_path / "flash_attn/cute/__init__.py").write_text("def flash_attn_varlen_func(): ...\n")
    forget_flash_attn(monkeypatch, tmp_path)
    needs = KernelNeeds("cuda", "bfloat16", 64, capability=HOPPER)
    assert by_name("flash4").refuses(needs) is None
    assert by_name("flash2").refuses(needs) == "flash_attn is not installed"


@pytest.mark.usefixtures("fresh_imports")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_package", "flash_attn.cute cannot be imported: no no_such_package"),
        (
            "raise OSError('libcuda.so.1:\\nno such file')",
            "flash_attn.cute cannot be imported: libcuda.so.1: no such file",
        ),
        ("", "flash_attn.cute has no flash_attn_varlen_func"),
    ],
)
def test_a_kernel_that_cannot_be_imported_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    (tmp_path / "flash_attn/cute").mkdir(parents=True)
    (tmp_path / "flash_attn/cute/__init__.py").write_text(text)
    forget_flash_attn(monkeypatch, tmp_path)
    needs = KernelNeeds("cuda", "bfloat16", 64, capability=HOPPER)
    assert by_name("flash4").refuses(needs) == reason
    assert pick_kernel("auto", needs)[0].name != "flash4"


@pytest.mark.usefixtures("fresh_imports")
@pytest.mark.parametrize(
    ("compilers", "header", "named", "reason"),
    [
        ({"gcc"}, True, None, None),
        ({"clang"}, True, None, None),
        (set(), True, None, "triton needs a C compiler, and there is no gcc or clang"),
        ({"gcc"}, True, "icc", "triton needs a C compiler, and there is no icc"),
        ({"icc"}, True, "icc", None),
        ({"gcc"}, False, None, "triton compiles C for Python, and there is no {include}/Python.h"),
    ],
)
def test_triton_is_left_out_where_it_could_not_build_its_launches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compilers: set[str], header: bool, named: str | None,
    reason: str | None,
) -> None:  # fmt: skip
    """Found out before anything is read, not at the first launch."""
    pytest.importorskip("triton")
    for variable in ("CC", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(variable, raising=False)
    if named is not None:
        monkeypatch.setenv("CC", named)
    if header:
        (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(sources, "which", lambda name: name if name in compilers else None)
    monkeypatch.setattr(sources.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    builds = Source("triton", TRITON.module, TRITON.function, builder=("json", "loads"))
    assert builds.fault() == (None if reason is None else reason.format(include=tmp_path))
    assert Source("triton", TRITON.module, TRITON.function, builder=("json", "builds")).fault() is None


@pytest.mark.usefixtures("fresh_imports")
def test_nothing_is_imported_for_a_device_that_could_not_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(sources, "import_module", refuse)
    assert pick_kernel("auto", KernelNeeds("cpu", "float32", 64))[0].name == "torch"
    assert "9.x to 11.x" in str(by_name("flash4").refuses(KernelNeeds("cuda", "bfloat16", 64, capability=AMPERE)))


def forget_flash_attn(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let `flash_attn` be what lies in `folder`, until the test ends."""
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, None)  # remembers to forget what the test imports
        del sys.modules[name]


def test_what_a_store_holds_has_the_last_word() -> None:
    """A kernel for narrower heads, as a config that says too little makes `auto` pick: another one takes its place."""
    narrow = dataclasses.replace(KERNELS[-1], name="narrow", max_head_dim=8)
    store = random_store([3, 4], batch=1, dim=16)
    assert fitting(narrow, store, AttentionShape(0.5), weights=False).name == "torch"
    assert fitting(narrow, random_store([3], 1, dim=8), AttentionShape(0.5), weights=False) is narrow
    asked = dataclasses.replace(narrow, asked_for=True)
    with pytest.raises(OptionError, match="kernel narrow cannot be used here: head width 16 is above 8"):
        fitting(asked, store, AttentionShape(0.5), weights=False)


def test_a_store_asks_for_what_it_holds() -> None:
    store = random_store([3, 4], batch=1, dim=16, biased=True)
    store.values = store.values[:, :8].half()
    shape = AttentionShape(0.5, 2.0, torch.zeros(2))
    assert KernelNeeds.of_store(store, shape, weights=True) == KernelNeeds(
        "cpu", "float32", 16, softcap=True, sinks=True, bias=True, weights=True, value_dim=8
    )


@pytest.mark.usefixtures("measured_on")
def test_what_the_user_measured_goes_before_what_comes_with_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADPROBE_CACHE", str(tmp_path / "cache"))
    shipped = choice.measured_shares("Seen")
    own = choice.measured_file()
    assert own == tmp_path / "cache" / "measured.json"
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps({"Seen": {"triton": 0.25}}))
    assert choice.measured_shares("Seen") == {"triton": 0.25} != shipped
    own.write_text('{"Seen": [0.25')
    assert choice.measured_shares("Seen") == shipped

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import headprobe
from headprobe import __version__
from headprobe.commands import doctor
from headprobe.compression.kernels import choice
from headprobe.compression.kernels.varlen import FLASH2, Source
from tests.conftest import CliResult

RunCli = Callable[..., CliResult]


def diagnose(cli: RunCli) -> dict:
    result = cli("doctor", "--json")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None = None) -> None:
    about = SimpleNamespace(total_memory=80 * 2**30, name="Pretend GPU")
    if capability is not None:
        about.major, about.minor = capability
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)


def pretend_installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    installed = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor, "_version", installed.get)


def test_json_tells_versions_devices_kernels_and_places(cli: RunCli) -> None:
    report = diagnose(cli)
    assert report["headprobe"] == __version__
    assert (
        str(report["packages"]["torch"]).split("+")[0] == str(torch.__version__).split("+")[0]
    )  # the build tag is in one of them only
    assert report["devices"][0]["device"] == "cpu"
    assert report["kernels"][-1]["name"] == "torch"
    assert report["kernels"][-1]["usable"] is True
    assert sum(kernel["chosen"] for kernel in report["kernels"]) == 1
    assert report["hub_offline"] is True
    assert report["cache_folder"].endswith("hub")


def test_releases_outside_those_that_were_tested_are_named(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    lowest, highest = json.loads((Path(headprobe.__file__).parent / "tested.json").read_text())["transformers"]
    for installed in ("5.16.1", "99.0.0.dev0"):
        pretend_installed(monkeypatch, transformers=installed, torch="2.13.0+cpu", numpy="2.4.6")
        row = {"package": "transformers", "installed": installed, "lowest": lowest, "highest": highest}
        assert diagnose(cli)["untested"] == [row]
        heading, line = cli("doctor").out.split("\n\n")[1].splitlines()
        assert heading.split("  ")[0] == "outside what was tested"
        assert line.split() == ["transformers", installed, lowest, highest]


def test_releases_that_were_tested_are_not_mentioned(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    pretend_installed(monkeypatch, transformers="5.17.0", torch="2.13.0+cu130", numpy="1.26.0")
    assert diagnose(cli)["untested"] == []
    assert "outside what was tested" not in cli("doctor").out


def test_without_a_gpu_it_says_what_that_is_needed_for(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    report = diagnose(cli)
    assert "a GPU that torch can use" in [gap["what"] for gap in report["missing"]]
    assert [kernel["name"] for kernel in report["kernels"] if kernel["usable"]] == ["torch"]
    assert report["kernels"][0]["reason"] == "runs on CUDA devices only, not on cpu"


def test_with_a_gpu_it_asks_for_flash_attention(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    pretend_cuda(monkeypatch)
    pretend_installed(monkeypatch, triton="3.6")
    report = diagnose(cli)
    assert report["devices"][1] == {"kind": "cuda", "device": "cuda:0", "name": "Pretend GPU", "memory_gib": 80.0}
    has_triton = find_spec("triton") is not None
    kernels = {kernel["name"]: kernel["usable"] for kernel in report["kernels"]}
    assert kernels == {"flash4": False, "flash2": False, "torch-varlen": True, "triton": has_triton, "torch": True}
    wanted = {gap["what"]: gap["for"] for gap in report["missing"]}
    assert wanted["flash-attn"] == "the fastest kernels of compressed caches; scoring does not need it"


@pytest.mark.parametrize(
    ("capability", "how"),
    [
        ((9, 0), "pip install 'headprobe[flash]'"),
        ((8, 0), "pip install flash-attn"),
        ((12, 0), "pip install flash-attn"),
    ],
)
def test_a_card_that_flash_attention_4_does_not_serve_is_not_sent_to_it(
    monkeypatch: pytest.MonkeyPatch, cli: RunCli, capability: tuple[int, int], how: str
) -> None:
    pretend_cuda(monkeypatch, capability)
    report = diagnose(cli)
    assert [gap["how"] for gap in report["missing"] if gap["what"] == "flash-attn"] == [how]
    state = {kernel["name"]: kernel["reason"] for kernel in report["kernels"]}["flash4"]
    wrong_card = f"runs on compute capability 9.x to 11.x, not {capability[0]}.{capability[1]}"
    assert state == ("flash_attn.cute is not installed" if capability == (9, 0) else wrong_card)
    pretend_installed(monkeypatch, flash_attn_4="4.0")
    still_missing = "flash-attn" in [gap["what"] for gap in diagnose(cli)["missing"]]
    assert still_missing == (capability != (9, 0))


def test_a_kernel_that_cannot_be_imported_costs_only_its_own_line(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    def fault(source: Source) -> str | None:
        return f"{source.package} cannot be imported: no libcuda" if source == FLASH2 else None

    monkeypatch.setattr(Source, "fault", fault)
    pretend_cuda(monkeypatch, (9, 0))
    kernels = {kernel["name"]: kernel for kernel in diagnose(cli)["kernels"]}
    assert kernels["flash2"]["reason"] == "flash_attn cannot be imported: no libcuda"
    assert kernels["flash4"]["chosen"] is True
    assert [kernels[name]["usable"] for name in ("torch-varlen", "triton", "torch")] == [True] * 3


def test_when_all_is_there_nothing_is_missing(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    pretend_cuda(monkeypatch)
    pretend_installed(monkeypatch, flash_attn_4="4.0")
    monkeypatch.setattr(doctor, "is_bundled", lambda: True)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert diagnose(cli)["missing"] == []
    assert cli("doctor").out.endswith("nothing is missing\n")


def test_the_tables_tell_the_same(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    pretend_cuda(monkeypatch)
    pretend_installed(monkeypatch, triton="3.6")
    monkeypatch.setattr(doctor, "is_bundled", lambda: False)
    lines = [" ".join(line.split()) for line in cli("doctor").out.splitlines()]
    for line in (
        f"headprobe {__version__}",
        "flash-attn not installed",
        "cuda:0 Pretend GPU 80.0 GiB",
        "torch-varlen used for compressed caches, speed not measured here",
        "torch ready, speed not measured here",
        "bundled model missing",
        "the bundled model --model demo, the default python -m training",
    ):
        assert line in lines


def test_kernels_that_were_measured_on_the_gpu_come_first_with_their_share(
    monkeypatch: pytest.MonkeyPatch, cli: RunCli, tmp_path: Path
) -> None:
    pretend_cuda(monkeypatch)
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"Pretend GPU": {"torch": 0.125, "torch-varlen": 0.5}}))
    monkeypatch.setattr(choice, "SHIPPED_FILE", file)
    kernels = diagnose(cli)["kernels"]
    assert [(kernel["name"], kernel["share"]) for kernel in kernels[:3]] == [
        ("torch-varlen", 0.5), ("torch", 0.125), ("flash4", None),
    ]  # fmt: skip
    assert "torch-varlen used for compressed caches, 50% of copy bandwidth" in [
        " ".join(line.split()) for line in cli("doctor").out.splitlines()
    ]


def test_without_a_gpu_the_plain_kernel_is_used_and_the_others_say_why_not(
    monkeypatch: pytest.MonkeyPatch, cli: RunCli
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines = [" ".join(line.split()) for line in cli("doctor").out.splitlines()]
    assert "torch used for compressed caches" in lines
    assert "flash2 runs on CUDA devices only, not on cpu" in lines

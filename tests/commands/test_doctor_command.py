"""`headprobe doctor`, on this machine as it is, and with packages and a GPU that it does not have.

Packages are real ones in a folder on the path, and are found and imported as any other. Of a GPU there is only what
`torch.cuda` says of it, by functions that take no other arguments than torch's own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch

import headprobe
from headprobe import __version__
from headprobe.commands.doctor import PACKAGES
from headprobe.compression.kernels import choice
from headprobe.compression.kernels import source as sources
from tests.conftest import ROOT, CliResult

RunCli = Callable[..., CliResult]

TESTED: dict[str, tuple[str, str]] = json.loads(Path(headprobe.__file__).with_name("tested.json").read_bytes())
FLASH4 = {"flash_attn/cute/__init__.py": "def flash_attn_varlen_func(): ...\n"}
FLASH2 = {
    "flash_attn/__init__.py": "",
    "flash_attn/flash_attn_interface.py": "def _flash_attn_varlen_forward(): ...\n",
}


def diagnose(cli: RunCli) -> dict:
    result = cli("doctor", "--json")
    assert result.err == ""
    assert result.code == 0
    return json.loads(result.out)


def kernels_of(report: dict) -> dict[str, dict]:
    return {kernel["name"]: kernel for kernel in report["kernels"]}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a distribution, with the files of its modules, ahead of all others. At first there is no flash-attn."""
    place = tmp_path / "site-packages"
    place.mkdir()
    own = metadata.version

    def version(distribution_name: str) -> str:
        spelled = distribution_name.replace("-", "_")
        hidden = spelled.startswith("flash_attn") and not list(place.glob(f"{spelled}-*"))
        return own(f"no-such-{distribution_name}" if hidden else distribution_name)

    def add(name: str, version: str, files: dict[str, str] | None = None) -> None:
        about = place / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        for path, text in (files or {}).items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(text, encoding="utf-8")
        sources._fault.cache_clear()

    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.syspath_prepend(place)
    sources._fault.cache_clear()
    yield add
    sources._fault.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        del sys.modules[name]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int]], None]:
    """Give torch one GPU of a compute capability."""

    def plug_in(capability: tuple[int, int] = (9, 0)) -> None:
        major, minor = capability
        about = SimpleNamespace(total_memory=80 * 2**30, name="Pretend GPU", major=major, minor=minor)
        for name, value in (
            ("is_available", True), ("device_count", 1), ("get_device_properties", about),
            ("get_device_name", about.name), ("get_device_capability", capability),
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, create_autospec(getattr(torch.cuda, name), return_value=value))

    return plug_in


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


# -- this machine -----------------------------------------------------------------------------------------------------


def test_versions_devices_and_places_are_those_of_this_machine(cli: RunCli) -> None:
    report = diagnose(cli)
    assert report["headprobe"] == __version__
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert list(report["packages"]) == list(PACKAGES)
    for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy", "matplotlib"):
        own = str(import_module(name).__version__)
        assert report["packages"][name].split("+")[0] == own.split("+")[0]  # torch's build is in one of them only
    assert [device["device"] for device in report["devices"] if device["kind"] == "cuda"] == [
        f"cuda:{index}" for index in range(torch.cuda.device_count())
    ]
    assert report["devices"][0]["device"] == "cpu"
    assert f"{os.cpu_count()} cores" in report["devices"][0]["name"]
    assert report["hub_offline"] is True
    assert report["cache_folder"] == str(Path(os.environ["HF_HOME"]) / "hub")
    assert (Path(report["bundled_model"]) / "model.safetensors").is_file()
    assert report["gguf_folder"].endswith("gguf")
    assert {"gguf", "accelerate"} <= set(report["packages"])


def test_the_kernel_that_is_named_is_the_one_that_compress_takes(cli: RunCli, no_gpu: None) -> None:
    chosen = [kernel["name"] for kernel in diagnose(cli)["kernels"] if kernel["chosen"]]
    done = cli("compress", "--device", "cpu", "--budget", 64, "--length", 256, "--max-new-tokens", 2, "--json")
    assert done.code == 0, done.err
    assert chosen == [json.loads(done.out)["attention"]] == ["torch"]


@pytest.mark.gpu
def test_on_a_gpu_the_kernel_that_is_named_is_the_one_that_compress_takes(cli: RunCli) -> None:
    report = diagnose(cli)
    gpus = [device for device in report["devices"] if device["kind"] == "cuda"]
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert {gpu["name"] for gpu in gpus} <= set(names)
    done = cli("compress", "--budget", 64, "--length", 256, "--max-new-tokens", 2, "--dtype", "bfloat16", "--json")
    assert [kernel["name"] for kernel in report["kernels"] if kernel["chosen"]] == [json.loads(done.out)["attention"]]


def test_a_copy_without_the_bundled_model_says_how_to_get_it(tmp_path: Path) -> None:
    package = Path(headprobe.__file__).parent
    shutil.copytree(package, tmp_path / "headprobe", ignore=shutil.ignore_patterns("bundled", "__pycache__"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "headprobe", "doctor"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "bundled model missing" in lines
    assert "the bundled model --model demo, the default python -m training" in lines
    assert f"hub cache {tmp_path / 'hf' / 'hub'}" in lines
    assert not any(line.startswith("the hub ") for line in lines)


# -- releases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("installed", ["5.16.1", "99.0.0.dev0"])
def test_releases_outside_those_that_were_tested_are_named(
    cli: RunCli, install: Callable[..., None], installed: str
) -> None:
    for name, (_, highest) in TESTED.items():
        install(name, installed if name == "transformers" else highest)
    lowest, highest = TESTED["transformers"]
    row = {"package": "transformers", "installed": installed, "lowest": lowest, "highest": highest}
    report = diagnose(cli)
    assert report["untested"] == [row]
    assert report["packages"]["transformers"] == installed
    heading, line = cli("doctor").out.split("\n\n")[1].splitlines()
    assert heading.split("  ")[0] == "outside what was tested"
    assert line.split() == ["transformers", installed, lowest, highest]


@pytest.mark.parametrize("end", [0, 1])
def test_releases_that_were_tested_are_not_mentioned(cli: RunCli, install: Callable[..., None], end: int) -> None:
    for name, ends in TESTED.items():
        install(name, f"{ends[end]}+cu130" if name == "torch" else ends[end])
    assert diagnose(cli)["untested"] == []
    assert "outside what was tested" not in cli("doctor").out


# -- devices and kernels ----------------------------------------------------------------------------------------------


def test_without_a_gpu_it_says_what_that_is_needed_for(cli: RunCli, no_gpu: None) -> None:
    report = diagnose(cli)
    assert "a GPU that torch can use" in [gap["what"] for gap in report["missing"]]
    assert [kernel["name"] for kernel in report["kernels"] if kernel["usable"]] == ["torch"]
    assert report["kernels"][0]["reason"] == "runs on CUDA devices only, not on cpu"


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give a reason why triton cannot be used."""

    def hide(reason: str) -> None:
        own = sources._fault
        hidden = partial(lambda each: reason if each is sources.TRITON else own(each))
        hidden.cache_clear = own.cache_clear  # type: ignore[attr-defined]
        monkeypatch.setattr(sources, "_fault", hidden)

    return hide


@pytest.mark.parametrize(
    ("version", "reason", "how"),
    [
        (None, "triton is not installed", "pip install triton"),
        ("3.6.0", "triton needs a C compiler, and there is no gcc or clang", None),
    ],
)
def test_with_a_gpu_it_asks_for_triton_alone(
    cli: RunCli, cuda: Callable[..., None], install: Callable[..., None], no_triton: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch, version: str | None, reason: str, how: str | None,
) -> None:  # fmt: skip
    cuda()
    no_triton(reason)
    monkeypatch.setattr("headprobe.commands.doctor._version", lambda name: version if name == "triton" else "2.0")
    monkeypatch.setattr("headprobe.commands.doctor._untested", list)
    report = diagnose(cli)
    assert report["devices"][1] == {"kind": "cuda", "device": "cuda:0", "name": "Pretend GPU", "memory_gib": 80.0}
    kernels = {name: kernel["usable"] for name, kernel in kernels_of(report).items()}
    assert kernels == {"triton": False, "flash4": False, "flash2": False, "torch-varlen": True, "torch": True}
    assert kernels_of(report)["torch-varlen"]["chosen"] is True
    assert report["missing"][0] == {
        "what": "triton", "how": how or reason,
        "for": "the fastest kernel of compressed caches, decode steps in few launches; scoring does not need it",
    }  # fmt: skip


@pytest.mark.parametrize("capability", [(9, 0), (8, 0), (12, 0)])
def test_flash_attention_4_is_used_on_the_cards_that_it_serves(
    cli: RunCli, cuda: Callable[..., None], install: Callable[..., None], no_triton: Callable[[str], None],
    capability: tuple[int, int],
) -> None:  # fmt: skip
    cuda(capability)
    no_triton("triton is not installed")
    wrong_card = f"runs on compute capability 9.x to 11.x, not {capability[0]}.{capability[1]}"
    missing = "flash_attn.cute is not installed"
    assert kernels_of(diagnose(cli))["flash4"]["reason"] == (missing if capability == (9, 0) else wrong_card)
    install("flash-attn-4", "4.0", FLASH4)
    report = diagnose(cli)
    assert report["packages"]["flash-attn-4"] == "4.0"
    assert kernels_of(report)["flash4"]["usable"] == kernels_of(report)["flash4"]["chosen"] == (capability == (9, 0))


def test_where_flash_attention_2_is_installed_an_older_card_without_triton_uses_it(
    cli: RunCli, cuda: Callable[..., None], install: Callable[..., None], no_triton: Callable[[str], None]
) -> None:
    cuda((8, 6))
    no_triton("triton is not installed")
    install("flash-attn", "2.8.3", FLASH2)
    assert [kernel["name"] for kernel in diagnose(cli)["kernels"] if kernel["chosen"]] == ["flash2"]


def test_a_kernel_that_cannot_be_imported_costs_only_its_own_line(
    cli: RunCli, cuda: Callable[..., None], install: Callable[..., None]
) -> None:
    cuda()
    install("flash-attn-4", "4.0", FLASH4)
    install("flash-attn", "2.8.3", {**FLASH2, "flash_attn/flash_attn_interface.py": "raise OSError('no libcuda')\n"})
    kernels = kernels_of(diagnose(cli))
    assert kernels["flash2"]["reason"] == "flash_attn cannot be imported: no libcuda"
    assert kernels["triton"]["chosen"] is True
    assert [kernels[name]["usable"] for name in ("flash4", "torch-varlen", "triton", "torch")] == [True] * 4


def test_when_all_is_there_nothing_is_missing(
    cli: RunCli, cuda: Callable[..., None], install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert diagnose(cli)["missing"] == []
    assert cli("doctor").out.endswith("nothing is missing\n")


def test_the_tables_say_the_same(cli: RunCli, cuda: Callable[..., None], install: Callable[..., None]) -> None:
    cuda()
    lines = [" ".join(line.split()) for line in cli("doctor").out.splitlines()]
    for line in (
        f"headprobe {__version__}",
        "flash-attn not installed",
        "cuda:0 Pretend GPU 80.0 GiB",
        "triton used for compressed caches, speed not measured here",
        "torch-varlen ready, speed not measured here",
        "torch ready, speed not measured here",
        f"bundled model {ROOT / 'headprobe/models/bundled'}",
        "the hub models that are not in the cache folder yet unset HF_HUB_OFFLINE",
    ):
        assert line in lines


def test_kernels_that_were_measured_on_the_gpu_come_first_with_their_share(
    cli: RunCli,
    cuda: Callable[..., None],
    install: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cuda()
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"Pretend GPU": {"torch": 0.125, "torch-varlen": 0.5}}))
    monkeypatch.setattr(choice, "SHIPPED_FILE", file)
    kernels = diagnose(cli)["kernels"]
    assert [(kernel["name"], kernel["share"]) for kernel in kernels[:3]] == [
        ("torch-varlen", 0.5), ("torch", 0.125), ("triton", None),
    ]  # fmt: skip
    assert "torch-varlen used for compressed caches, 50% of copy bandwidth" in [
        " ".join(line.split()) for line in cli("doctor").out.splitlines()
    ]


def test_without_a_gpu_the_plain_kernel_is_used_and_the_others_say_why_not(cli: RunCli, no_gpu: None) -> None:
    lines = [" ".join(line.split()) for line in cli("doctor").out.splitlines()]
    assert "torch used for compressed caches" in lines
    assert "flash2 runs on CUDA devices only, not on cpu" in lines

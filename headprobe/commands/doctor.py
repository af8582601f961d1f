"""`headprobe doctor`: what is installed, what it runs on, and what is missing."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from importlib.resources import files
from typing import Annotated, Any

import orjson
import torch
import typer
from packaging.version import Version

from headprobe._version import __version__
from headprobe.commands.output import print_table, write_json
from headprobe.compression.kernels.choice import KernelNeeds, capability, measured_shares, ranked_kernels
from headprobe.compression.kernels.source import TRITON
from headprobe.models.catalog import bundled_model_folder, is_bundled
from headprobe.models.gguf_cache import cache_folder as gguf_cache_folder
from headprobe.models.hub import cache_folder, is_offline

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "numpy", "orjson", "matplotlib",
    "triton", "flash-attn", "flash-attn-4", "gguf", "accelerate",
    "torchao",
)  # fmt: skip

FIRST_GPU = torch.device("cuda", 0)
TRITON_USE = "the fastest kernel of compressed caches, decode steps in few launches; scoring does not need it"


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one object instead of tables.")] = False,
) -> None:
    """Report versions, devices, attention kernels, the cache folder, and what is missing for what."""
    report = diagnose()
    if as_json:
        write_json(report)
    else:
        _print(report)


def diagnose() -> dict[str, Any]:
    """All that `doctor` knows, as plain data."""
    versions = {name: _version(name) for name in PACKAGES}
    devices = _devices()
    kernels = _kernels(devices)
    return {
        "headprobe": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "untested": _untested(),
        "devices": devices,
        "kernels": kernels,
        "cache_folder": str(cache_folder()),
        "gguf_folder": str(gguf_cache_folder()),
        "hub_offline": is_offline(),
        "bundled_model": str(bundled_model_folder()) if is_bundled() else None,
        "missing": _missing(versions, devices, offline=is_offline()),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _untested() -> list[dict[str, str]]:
    """Dependencies whose installed release is outside those that the tests have passed on, from lowest to highest."""
    tested: dict[str, list[str]] = orjson.loads(files("headprobe").joinpath("tested.json").read_bytes())
    found = []
    for name, (lowest, highest) in tested.items():
        installed = _version(name)
        if installed is not None and not Version(lowest) <= Version(Version(installed).public) <= Version(highest):
            found.append({"package": name, "installed": installed, "lowest": lowest, "highest": highest})
    return found


def _devices() -> list[dict[str, Any]]:
    processor = f"{platform.machine()}, {os.cpu_count()} cores"
    devices: list[dict[str, Any]] = [{"kind": "cpu", "device": "cpu", "name": processor, "memory_gib": None}]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        gib = round(about.total_memory / 2**30, 1)
        devices.append({"kind": "cuda", "device": f"cuda:{index}", "name": about.name, "memory_gib": gib})
    if torch.backends.mps.is_available():
        devices.append({"kind": "mps", "device": "mps", "name": "Apple GPU", "memory_gib": None})
    return devices


def _kernels(devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Attention kernels of compressed caches as they are tried for a half-precision model on the first GPU.

    `share`: of the device's copy bandwidth, None where it has not been measured.
    """
    name = next((device["name"] for device in devices if device["kind"] == "cuda"), None)
    needs = KernelNeeds("cpu", "float32", 128)
    if name is not None:
        needs = KernelNeeds("cuda", "bfloat16", 128, device_name=name, capability=capability(FIRST_GPU))
    kernels = ranked_kernels(name)
    refused = [kernel.refuses(needs) for kernel in kernels]
    first, shares = refused.index(None), measured_shares(name)
    return [
        {
            "name": kernel.name, "usable": reason is None, "chosen": index == first, "reason": reason,
            "share": shares.get(kernel.name),
        }
        for index, (kernel, reason) in enumerate(zip(kernels, refused, strict=True))
    ]  # fmt: skip


def _missing(versions: dict[str, str | None], devices: list[dict[str, Any]], *, offline: bool) -> list[dict[str, str]]:
    gaps = []
    if not is_bundled():
        gaps.append(("the bundled model", "--model demo, the default", "python -m training"))
    if len(devices) == 1:
        gaps.append(("a GPU that torch can use", "models of several billion parameters", "a torch build with CUDA"))
    elif devices[1]["kind"] == "cuda":
        fault = TRITON.fault()
        if fault is not None:
            gaps.append(("triton", TRITON_USE, fault if versions["triton"] else "pip install triton"))
    if offline:
        gaps.append(("the hub", "models that are not in the cache folder yet", "unset HF_HUB_OFFLINE"))
    return [{"what": what, "for": use, "how": how} for what, use, how in gaps]


def _print(report: dict[str, Any]) -> None:
    versions = [("headprobe", report["headprobe"]), ("python", report["python"]), *report["packages"].items()]
    print_table(("package", "version"), [(name, version or "not installed") for name, version in versions])
    sys.stdout.write("\n")
    if report["untested"]:
        rows = [(row["package"], row["installed"], row["lowest"], row["highest"]) for row in report["untested"]]
        print_table(("outside what was tested", "installed", "lowest tested", "highest tested"), rows)
        sys.stdout.write("\n")
    print_table(("device", "name", "memory"), [_device_row(device) for device in report["devices"]])
    sys.stdout.write("\n")
    on_gpu = any(device["kind"] == "cuda" for device in report["devices"])
    print_table(("kernel", "state"), [(kernel["name"], _state(kernel, on_gpu=on_gpu)) for kernel in report["kernels"]])
    sys.stdout.write("\n")
    places = [
        ("hub cache", report["cache_folder"]),
        ("converted GGUF files", report["gguf_folder"]),
        ("bundled model", report["bundled_model"] or "missing"),
    ]
    print_table(("folder", "path"), places)
    sys.stdout.write("\n")
    gaps = [(gap["what"], gap["for"], gap["how"]) for gap in report["missing"]]
    if gaps:
        print_table(("missing", "needed for", "get it with"), gaps)
    else:
        sys.stdout.write("nothing is missing\n")


def _device_row(device: dict[str, Any]) -> tuple[object, ...]:
    memory = None if device["memory_gib"] is None else f"{device['memory_gib']} GiB"
    return device["device"], device["name"], memory


def _state(kernel: dict[str, Any], *, on_gpu: bool) -> str:
    if not kernel["usable"]:
        return str(kernel["reason"])
    state = "used for compressed caches" if kernel["chosen"] else "ready"
    if kernel["share"] is not None:
        return f"{state}, {kernel['share']:.0%} of copy bandwidth"
    return f"{state}, speed not measured here" if on_gpu else state

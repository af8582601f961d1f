from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from headprobe.errors import OptionError
from headprobe.models.devices import check_dtype, pick_device, pick_dtype

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def config_of(dtype: torch.dtype | None) -> Any:
    config = SimpleNamespace(dtype=dtype)
    config.get_text_config = lambda decoder: config
    return config


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 1)
    assert pick_device("auto") == CUDA


def test_auto_takes_the_cpu_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 0)
    assert pick_device("auto") == CPU


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(OptionError, match=r"device 'cuda:2' is not there: torch finds 2 cuda device\(s\)"):
        pick_device("cuda:2")


@pytest.mark.parametrize("device", ["wobble", "cuda:x", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(OptionError, match=f"device {device!r} is unknown; take auto, cpu, cuda"):
        pick_device(device)


def test_a_device_that_models_cannot_use_is_refused() -> None:
    with pytest.raises(OptionError, match="device 'meta' is not there"):
        pick_device("meta")


@pytest.mark.parametrize(
    ("dtype", "full"), [("fp32", "float32"), ("bf16", "bfloat16"), ("float16", "float16"), ("auto", "auto")]
)
def test_short_names_of_dtypes_are_known(dtype: str, full: str) -> None:
    assert check_dtype(dtype) == full


@pytest.mark.parametrize("dtype", ["int8", "float64", ""])
def test_an_unknown_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(OptionError, match=f"dtype {dtype!r} is unknown; take auto, float32, bfloat16, float16"):
        check_dtype(dtype)


@pytest.mark.parametrize(
    ("device", "stated", "chosen"),
    [
        (CPU, torch.bfloat16, "float32"),
        (CPU, None, "float32"),
        (CUDA, torch.bfloat16, "bfloat16"),
        (CUDA, torch.float16, "float16"),
        (CUDA, torch.float32, "bfloat16"),
        (CUDA, None, "bfloat16"),
    ],
)
def test_auto_dtype_goes_by_device_and_config(device: torch.device, stated: torch.dtype | None, chosen: str) -> None:
    assert pick_dtype("auto", device, config_of(stated)) == chosen


def test_a_stated_dtype_wins() -> None:
    assert pick_dtype("fp16", CPU, config_of(torch.bfloat16)) == "float16"

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from headprobe.scores.formats.format import FaultError
from headprobe.scores.formats.kvzip import is_kvzip, read_kvzip

HALVES = torch.tensor([[0.5, 0.25], [1.0, 0.0]], dtype=torch.float16)


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def archive(pickled: bytes, storage: bytes = bytes(8), compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        made.writestr("x/data.pkl", pickled)
        made.writestr("x/data/0", storage)
    return buffer.getvalue()


def member(data: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return opened.read(next(full for full in opened.namelist() if full.endswith(name)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 2), (1, 2, 2, 1)])
def test_a_tensor_of_layers_and_kv_heads_is_read(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    data = saved(HALVES.to(dtype).reshape(shape))
    assert is_kvzip(data)
    table = read_kvzip(data)
    assert table.mean.tolist() == [[0.5, 0.25], [1.0, 0.0]]
    assert (table.heads, table.method, table.trial_scores) == ("kv", "kvzip", None)


def test_a_view_of_a_tensor_is_read_as_the_view() -> None:
    assert read_kvzip(saved(HALVES.T)).mean.tolist() == [[0.5, 1.0], [0.25, 0.0]]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(("protocol", "told"), [(2, "names '.* system', which is not part"), (4, "uses STACK_GLOBAL")])
def test_a_pickle_that_would_run_code_is_refused_before_it_runs(tmp_path: Path, protocol: int, told: str) -> None:
    with pytest.raises(FaultError, match=told) as error:
        read_kvzip(archive(pickle.dumps(Evil(), protocol)))
    assert error.value.check == "unsafe-pickle"
    assert not (tmp_path / "pwned").exists()


def test_a_tensor_that_states_more_numbers_than_there_are_is_refused() -> None:
    pickled = member(saved(HALVES), "data.pkl")
    assert b"K\x04tq" in pickled  # four numbers
    with pytest.raises(FaultError, match="torch cannot read it|the tensor states"):
        read_kvzip(archive(pickled.replace(b"K\x04tq", b"J\x00\x00\x00\x7ftq")))
    with pytest.raises(FaultError, match="torch cannot read it|the tensor states"):
        read_kvzip(archive(pickled, bytes(4)))


@pytest.mark.parametrize(
    ("value", "check", "reason"),
    [
        (torch.zeros(1, dtype=torch.float16).expand(1 << 30, 1 << 30), "wrong-shape", "1152921504606846976 numbers"),
        (torch.zeros(2, 2, dtype=torch.int64), "unsafe-pickle", "names 'torch LongStorage'"),
        ({"scores": HALVES}, "wrong-shape", "the file holds dict, need one tensor"),
        ([HALVES, HALVES + 1], "wrong-shape", "the archive holds 2 tensors, need one"),
        (torch.zeros(4), "wrong-shape", "the scores have the shape \\[4\\]"),
        (torch.full((1, 2), float("nan")), "not-finite", "the score of head 0-0 is nan"),
        (torch.nn.Linear(1, 1), "unsafe-pickle", "which is not part of a tensor|which a tensor does not need"),
    ],
)
def test_other_contents_are_refused_by_name(value: Any, check: str, reason: str) -> None:
    with pytest.raises(FaultError, match=reason) as error:
        read_kvzip(saved(value) if not isinstance(value, torch.nn.Module) else _one_storage(saved(value)))
    assert error.value.check == check


def _one_storage(data: bytes) -> bytes:
    return archive(member(data, "data.pkl"))


def test_what_unpacks_to_more_than_the_limit_is_refused() -> None:
    pickled = member(saved(HALVES), "data.pkl")
    bomb = archive(pickled, bytes(1 << 26), zipfile.ZIP_DEFLATED)
    assert len(bomb) < 200_000
    with pytest.raises(FaultError, match="larger than the limit of 524288 bytes"):
        read_kvzip(bomb)


@pytest.mark.parametrize("data", [b"PK\x03\x04", b"PK\x03\x04" + bytes(100), saved(HALVES)[:-30]])
def test_a_damaged_archive_is_refused(data: bytes) -> None:
    with pytest.raises(FaultError, match="a damaged .pt file"):
        read_kvzip(data)


def test_another_archive_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a.txt", b"x")
    with pytest.raises(FaultError, match="a zip archive, but not one that torch.save writes"):
        read_kvzip(buffer.getvalue())

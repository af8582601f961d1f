"""What is seen of files of weights before they are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headprobe.errors import ModelError
from headprobe.models.files import check_weight_files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
FOLDER = Path("m")


@pytest.fixture(autouse=True)
def folder() -> Path:
    FOLDER.mkdir()
    return FOLDER


def save(name: str = "model.safetensors") -> bytes:
    save_file({"a": torch.zeros(4, 4)}, FOLDER / name)
    return (FOLDER / name).read_bytes()


def index(shards: object, name: str = "model.safetensors.index.json") -> None:
    (FOLDER / name).write_text(json.dumps({"weight_map": shards}))


def fault() -> str:
    with pytest.raises(ModelError) as caught:
        check_weight_files(FOLDER)
    return str(caught.value).removeprefix("m: ").removeprefix("the weights cannot be loaded: ")


def test_whole_files_and_no_files_are_left_to_transformers() -> None:
    assert check_weight_files(FOLDER) is None
    save()
    assert check_weight_files(FOLDER) is None
    (FOLDER / "model.safetensors").write_bytes(b"")
    assert fault() == "model.safetensors has 0 bytes, less than a header"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_named(name: str) -> None:
    (FOLDER / name).write_bytes(POINTER)
    assert fault() == f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"


def test_a_pointer_among_the_parts_is_named() -> None:
    save("a-1.safetensors")
    (FOLDER / "a-2.safetensors").write_bytes(POINTER)
    index({"x": "a-1.safetensors", "y": "a-2.safetensors"})
    assert fault().startswith("a-2.safetensors is a Git LFS pointer")


def test_an_index_that_is_a_pointer_is_named() -> None:
    (FOLDER / "model.safetensors.index.json").write_bytes(POINTER)
    assert fault().startswith("model.safetensors.index.json is a Git LFS pointer")


def test_a_file_that_ends_too_early_says_how_long_it_should_be() -> None:
    data = save()
    (FOLDER / "model.safetensors").write_bytes(data[:-10])
    assert fault() == f"model.safetensors is cut off: it has {len(data) - 10} bytes, by its header {len(data)}"
    (FOLDER / "model.safetensors").write_bytes(data[:20])
    assert fault().startswith("model.safetensors is not a safetensors file, or cut off: its header would have")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"", "model.safetensors has 0 bytes, less than a header"),
        (
            "model.safetensors",
            (2).to_bytes(8, "little") + b"[]",
            "model.safetensors is not a safetensors file: its header",
        ),
        (
            "model.safetensors",
            (3).to_bytes(8, "little") + b"{x}",
            "model.safetensors is not a safetensors file: its header",
        ),
        ("pytorch_model.bin", b"", "pytorch_model.bin is empty"),
    ],
)
def test_what_is_no_file_of_weights_is_said(name: str, content: bytes, words: str) -> None:
    (FOLDER / name).write_bytes(content)
    assert fault().startswith(words)


def test_parts_that_are_missing_are_named() -> None:
    save("a-1.safetensors")
    index({"x": "a-1.safetensors", "y": "a-2.safetensors", "z": "a-3.safetensors"})
    assert fault() == (
        "model.safetensors.index.json names 'a-2.safetensors' and 1 more, of 3 file(s), "
        "which are missing from the folder"
    )


@pytest.mark.parametrize("shards", [None, {}, [], {"x": 3}, "a"])
def test_an_index_without_files_is_named(shards: object) -> None:
    index(shards)
    assert "model.safetensors.index.json has the weight_map" in fault()


def test_an_index_beside_one_whole_file_is_not_read() -> None:
    save()
    index(None)
    assert check_weight_files(FOLDER) is None
    (FOLDER / "model.safetensors").unlink()
    assert "model.safetensors.index.json has the weight_map" in fault()

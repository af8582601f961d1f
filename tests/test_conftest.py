from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT


def test_a_test_starts_in_an_empty_folder_of_its_own(tmp_path: Path) -> None:
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_test_may_write_in_its_own_folder() -> None:
    Path("file.txt").write_text("here", encoding="utf-8")
    assert Path("file.txt").read_text(encoding="utf-8") == "here"


def test_a_test_may_not_write_into_the_repository() -> None:
    with pytest.raises(PermissionError, match="a test may write to its tmp_path only"):
        (ROOT / "stray.txt").write_text("no", encoding="utf-8")
    with pytest.raises(PermissionError, match="a test may write to its tmp_path only"):
        (ROOT / "stray").mkdir()
    assert not (ROOT / "stray.txt").exists()


def test_triton_may_keep_what_it_compiles() -> None:
    place = Path(os.environ["TRITON_CACHE_DIR"])
    place.mkdir(parents=True, exist_ok=True)
    (place / "kernel").write_bytes(b"compiled")
    assert (place / "kernel").read_bytes() == b"compiled"

from __future__ import annotations

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

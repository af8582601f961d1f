from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headprobe.errors import FileAccessError, FileFormatError, OptionError
from headprobe.scores.hub.remote import check_file_name, check_repository, place_in


@pytest.mark.parametrize("name", ["lena/head-scores", "A1/b_c.d", "x/" + "y" * 96])
def test_a_repository_is_a_user_and_a_name(name: str) -> None:
    assert check_repository(name) == name


@pytest.mark.parametrize(
    "name",
    ["lena", "a/b/c", "/b", "a/", "../b", "a/..", "a/b.git", "a/b--c", "a/b..c", "-a/b", "a/b?x=1", "a/b#c", "a /b",
     "a/b\n", "ä/b", "https://x/y", "a/" + "y" * 97],
)  # fmt: skip
def test_other_names_of_repositories_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match="a repository is called USER/NAME of letters"):
        check_repository(name)


def test_a_missing_repository_is_asked_for() -> None:
    with pytest.raises(OptionError, match=r"which repository\? Give --repo USER/NAME"):
        check_repository("")


@pytest.mark.parametrize("name", ["demo--r2.json", "llama/8b/demo.json", "köpfe (2).json", "a+b,c=d@e.json"])
def test_ordinary_file_names_are_kept(name: str) -> None:
    assert check_file_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "/etc/passwd", "..", "../x.json", "a/../../x.json", "a/./x.json", "a//x.json", "a/", ".bashrc",
        ".git/config", "a/.ssh/x", "C:/x.json", "C:x.json", "a\\..\\x.json", "\\\\server\\x", "x.json\0", "x\n.json",
        "x\x1b[31m.json", "\u202ejson.x", "con", "a/NUL.json", "lpt1.txt", "x.", "x ", " x", "a?.json", "*.json",
        "~/x|y", "a/b/c/d/e/f.json", "x" * 201, "\udcff.json", "file:///x.json",
    ],
)  # fmt: skip
def test_names_that_could_leave_the_folder_or_do_harm_are_refused(name: str) -> None:
    with pytest.raises(FileFormatError, match="^the file name '.*: it is not written here$"):
        check_file_name(name)


@given(st.lists(st.sampled_from(["a", ".", "..", "/", "\\", "~", "C:", " ", "é", "\0", "\n", "con"]), max_size=8))
def test_whatever_the_name_it_is_refused_or_lies_inside(parts: list[str]) -> None:
    name = "".join(parts)
    try:
        target = place_in(Path("/srv/scores"), name)
    except FileFormatError:
        return
    assert target.is_relative_to("/srv/scores")
    assert ".." not in target.parts
    assert target != Path("/srv/scores")


def test_a_file_goes_inside_the_folder(tmp_path: Path) -> None:
    assert place_in(tmp_path, "a/b.json") == tmp_path / "a" / "b.json"


def test_a_link_in_the_folder_does_not_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "out").symlink_to(tmp_path)
    (tmp_path / "scores" / "x.json").symlink_to(tmp_path / "mine.json")
    for name in ("out/x.json", "x.json"):
        with pytest.raises(FileAccessError, match="leads out of .*scores by a symbolic link"):
            place_in(tmp_path / "scores", name)


def test_a_folder_that_is_a_link_itself_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert place_in(tmp_path / "link", "x.json") == tmp_path / "link" / "x.json"

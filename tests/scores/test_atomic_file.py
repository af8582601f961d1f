from __future__ import annotations

import os

import pytest

from headprobe.errors import FileAccessError, HeadprobeError, OutputExistsError
from headprobe.scores import files as atomic_file
from headprobe.scores.files import check_place, write_atomically


def test_missing_folders_are_made(tmp_path):
    path = write_atomically(tmp_path / "a" / "b" / "file", b"data")
    assert path.read_bytes() == b"data"


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HeadprobeError, match=r"cannot write .*file: No space left on device"):
        write_atomically(tmp_path / "file", b"new", overwrite=True)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_file_that_comes_up_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    def slow(path, data):
        path.write_bytes(data)
        (tmp_path / "file").write_bytes(b"theirs")

    monkeypatch.setattr(atomic_file, "_write_synced", slow)
    with pytest.raises(OutputExistsError, match="already exists"):
        write_atomically(tmp_path / "file", b"mine")
    assert (tmp_path / "file").read_bytes() == b"theirs"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_file_systems_without_hard_links_work(tmp_path, monkeypatch):
    def no_link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    assert write_atomically(tmp_path / "file", b"data").read_bytes() == b"data"


def test_a_link_is_followed_when_overwriting(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_dangling_link_counts_as_there(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputExistsError, match="already exists"):
        write_atomically(tmp_path / "link", b"new")


def test_a_folder_is_never_replaced(tmp_path):
    with pytest.raises(OutputExistsError, match="exists and is not a regular file"):
        write_atomically(tmp_path, b"data", overwrite=True)


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HeadprobeError, match=r"cannot write .*: (File exists|Not a directory)"):
        write_atomically(tmp_path / "file" / "below", b"data")


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / "file", b"data")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["x" * 255, "中" * 80 + ".json", "é" * 127])
def test_a_name_as_long_as_the_system_allows_is_written(tmp_path, name):
    check_place(tmp_path / name)
    assert write_atomically(tmp_path / name, b"data").read_bytes() == b"data"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_name_that_is_too_long_is_told_with_the_limit(tmp_path):
    for act in (check_place, lambda path: write_atomically(path, b"")):
        with pytest.raises(FileAccessError, match=r"x: a name of 256 bytes is too long, the limit is 255$"):
            act(tmp_path / ("x" * 256))


def test_looking_at_a_place_leaves_nothing_behind(tmp_path):
    check_place(tmp_path / "new" / "deep" / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("refusing", ["mkdir", "open", "write", "fsync"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, refusing):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if refusing == "write":
        monkeypatch.setattr(atomic_file, "_write_synced", full)
    else:
        monkeypatch.setattr(os, refusing, full)
    with pytest.raises(FileAccessError, match=r"^cannot write .*new/file: No space left on device$"):
        check_place(tmp_path / "new" / "file")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [check_place, lambda path, overwrite: write_atomically(path, b"new", overwrite)])
def test_links_that_lead_in_a_circle_are_refused(tmp_path, write):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(FileAccessError, match=r"^cannot write .*a: Too many levels of symbolic links$"):
        write(tmp_path / "a", True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_look_refuses_what_writing_would(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OutputExistsError, match="--overwrite replaces it"):
        check_place(tmp_path / "file")
    check_place(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputExistsError, match="not a regular file"):
        check_place(tmp_path, overwrite=True)
    with pytest.raises(FileAccessError, match=r"cannot write .*: (File exists|Not a directory)"):
        check_place(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_bytes() == b"old"

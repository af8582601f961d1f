from __future__ import annotations

from pathlib import Path

import pytest

from headprobe.home import in_home, user_cache


def test_a_home_folder_takes_the_place_of_the_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert [in_home("~"), in_home("~/a.json"), in_home("a/~")] == [
        Path("/home/ada"), Path("/home/ada/a.json"), Path("a/~"),
    ]  # fmt: skip


def test_a_user_that_is_not_there_is_a_name_like_any_other() -> None:
    assert in_home("~no-such-user/a.json") == Path("~no-such-user/a.json")


def test_the_users_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("HEADPROBE_CACHE", "~/mine")
    assert user_cache() == Path("/home/someone/mine")
    monkeypatch.delenv("HEADPROBE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert user_cache() == Path("/var/cache/headprobe")
    for nothing in ("", "relative/folder"):  # which the XDG rules say to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert user_cache() == Path("/home/someone/.cache/headprobe")

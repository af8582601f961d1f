from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_models import CHAT_TEMPLATE, build_tiny_model


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk, for reading only."""
    return build_tiny_model("llama", tmp_path_factory.mktemp("models"), chat_template=CHAT_TEMPLATE)


@pytest.fixture
def own_llama(llama_folder: Path, tmp_path: Path) -> Path:
    """A tiny Llama that the test may damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "my-model"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Any attempt to reach another machine fails the test."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"network access: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return refuse

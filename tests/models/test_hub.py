from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from headprobe.errors import ModelError
from headprobe.models import hub
from headprobe.models.catalog import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def answer(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, folder: str = "") -> list[dict[str, Any]]:
    """Let the hub client fail with `error` or give `folder`; returns the calls that will be made."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        if error is not None:
            raise error
        return folder

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def hub_error(kind: Callable[..., Exception], text: str = "refused") -> Exception:
    error = kind.__new__(kind)  # type: ignore[call-overload]
    Exception.__init__(error, text)
    return error


def cache(monkeypatch: pytest.MonkeyPatch, repo_id: str) -> Path:
    """A cache folder that holds the config of `repo_id`."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path("cache").resolve()))
    store = Path("cache").resolve() / f"models--{repo_id.replace('/', '--')}"
    snapshot = store / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}", encoding="utf-8")
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return snapshot


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("ON", True), ("0", False), ("", False)])
def test_the_environment_can_forbid_the_hub(value: str, offline: bool, monkeypatch: pytest.MonkeyPatch, online) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.is_offline() is offline


def test_a_download_takes_the_root_files_of_the_patterns(monkeypatch: pytest.MonkeyPatch, online) -> None:
    calls = answer(monkeypatch, folder="somewhere")
    assert hub.fetch(resolve("qwen3-8b"), ("*.json",)) == Path("somewhere")
    assert calls == [
        {
            "repo_id": "Qwen/Qwen3-8B",
            "allow_patterns": ["*.json"],
            "ignore_patterns": ["*/*", "consolidated*"],
            "local_files_only": False,
        }
    ]


def test_offline_only_the_cache_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer(monkeypatch, folder="somewhere")
    hub.fetch(resolve("qwen3-8b"), ("*.json",))
    assert calls[0]["local_files_only"] is True


def test_a_cached_snapshot_serves_when_some_files_of_the_patterns_are_not_there(
    monkeypatch: pytest.MonkeyPatch, online
) -> None:
    snapshot = cache(monkeypatch, "Qwen/Qwen3-8B")
    answer(monkeypatch, errors.LocalEntryNotFoundError("incomplete"))
    assert hub.fetch(resolve("qwen3-8b"), ("*.json",)) == snapshot


def test_a_cached_folder_is_found_without_network(monkeypatch: pytest.MonkeyPatch, no_network) -> None:
    snapshot = cache(monkeypatch, "Qwen/Qwen3-8B")
    assert hub.cached_folder("Qwen/Qwen3-8B") == snapshot
    assert hub.cached_folder("Qwen/Qwen3-4B") is None


def test_the_revision_is_the_name_of_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.revision_of(cache(monkeypatch, "Qwen/Qwen3-8B")) == COMMIT
    assert hub.revision_of(Path("snapshots/main")) is None
    assert hub.revision_of(Path("elsewhere") / COMMIT) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.LocalEntryNotFoundError("no"), "no copy in .*, and the hub cannot be reached"),
        (hub_error(errors.GatedRepoError), "its licence has to be accepted on the hub's page first"),
        (hub_error(errors.RepositoryNotFoundError), "no such repository on the hub, or a private one"),
        (errors.HFValidationError("bad"), "and not a valid hub id"),
        (hub_error(errors.HfHubHTTPError, "503\n busy"), "no copy in .*, and the hub answered .*Error: 503 busy"),
    ],
)
def test_a_failed_download_says_what_was_tried(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, online
) -> None:
    answer(monkeypatch, error)
    tried = "model 'nobody/nothing': no such alias .*, no such folder"
    with pytest.raises(ModelError, match=f"^{tried}, {words}") as caught:
        hub.fetch(resolve("nobody/nothing"), ("*.json",))
    assert str(caught.value).endswith("as in --model ./folder")
    assert "\n" not in str(caught.value)


def test_a_failed_download_of_an_alias_names_the_hub_id(monkeypatch: pytest.MonkeyPatch, online) -> None:
    answer(monkeypatch, errors.LocalEntryNotFoundError("no"))
    with pytest.raises(ModelError, match="model 'qwen3-8b' is the hub's 'Qwen/Qwen3-8B', no copy in"):
        hub.fetch(resolve("qwen3-8b"), ("*.json",))


def test_offline_without_a_copy_names_the_variable(no_network) -> None:
    with pytest.raises(ModelError, match="no copy in .*, and HF_HUB_OFFLINE is set, so the hub is not contacted"):
        hub.fetch(resolve("nobody/nothing"), ("*.json",))

"""Looking into a repository and fetching from it, against a hub on this machine that may misbehave."""

from __future__ import annotations

import hashlib
import json

import pytest
from huggingface_hub import constants

from headprobe.errors import FileAccessError, FileFormatError, OptionError
from headprobe.scores.hub import remote
from headprobe.scores.hub.remote import RemoteFile, RemoteRepository, fetch, find_repository
from tests.hub_stand_in import TOKEN, Hub
from tests.scores.hub.conftest import REPO

LISTING = f"/api/datasets/{REPO}"


def found(revision: str | None = None) -> RemoteRepository:
    repository = find_repository(REPO, revision)
    assert repository is not None
    return repository


def test_a_repository_is_listed_with_sizes_and_hashes(hub: Hub) -> None:
    made = hub.repo(REPO, {"a.json": b"one", "large.bin": b"three"}, large={"large.bin"})
    repository = found()
    blob = hashlib.sha1(b"blob 3\0one").hexdigest()
    assert repository == RemoteRepository(
        REPO,
        made.head,
        False,
        (RemoteFile("a.json", 3, blob), RemoteFile("large.bin", 5, None, hashlib.sha256(b"three").hexdigest())),
    )


def test_files_are_fetched_small_and_large(hub: Hub) -> None:
    hub.repo(REPO, {"a.json": b"one", "sub/large ü.bin": b"three"}, large={"sub/large ü.bin"})
    repository = found()
    assert [fetch(repository, file, 5) for file in repository.files] == [b"one", b"three"]


def test_another_revision_gives_its_own_files(hub: Hub) -> None:
    made = hub.repo(REPO, {"a.json": b"old"})
    old = made.head
    made.add(files={"a.json": b"newer"})
    assert [fetch(found(r), found(r).files[0], 9) for r in (None, "main", old)] == [b"newer", b"newer", b"old"]
    with pytest.raises(OptionError, match="lena/head-scores has no revision 'v9'"):
        find_repository(REPO, "v9")


def test_what_is_not_there_or_not_shown_is_none(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo(REPO, {"a.json": b"one"}, private=True)
    assert find_repository("lena/other") is None
    assert found().private
    monkeypatch.setenv("HF_TOKEN", "")
    assert find_repository(REPO) is None


def test_the_token_goes_along_but_not_to_another_machine(hub: Hub) -> None:
    hub.repo(REPO, {"a.json": b"one"})
    repository = found()
    assert hub.authorizations == [f"Bearer {TOKEN}"]
    elsewhere = hub.endpoint.replace("127.0.0.1", "localhost")
    path = f"/datasets/{REPO}/resolve/{repository.revision}/a.json"
    hub.instead[path] = (302, {"location": f"{elsewhere}/there"}, b"")
    hub.instead["/there"] = (200, {}, b"one")
    assert fetch(repository, repository.files[0], 3) == b"one"
    assert hub.authorizations[1:] == [f"Bearer {TOKEN}", None]


def test_a_file_over_the_limit_is_not_asked_for(hub: Hub) -> None:
    hub.repo(REPO, {"a.json": b"x" * 5000})
    repository = found()
    with pytest.raises(FileFormatError, match=r"^lena/head-scores/a.json: has 5,000 bytes, the limit is 4,999$"):
        fetch(repository, repository.files[0], 4999)
    assert [path for _, path in hub.requests] == [LISTING]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"x" * 4_000_000, "the hub sends more than the 3 bytes that are allowed"),
        (b"on", r"the hub sent other bytes than it announced \(size or hash differ\)"),
        (b"two", r"the hub sent other bytes than it announced \(size or hash differ\)"),
    ],
)
def test_what_differs_from_the_announcement_is_refused(hub: Hub, body: bytes, told: str) -> None:
    hub.repo(REPO, {"a.json": b"one"})
    repository = found()
    hub.instead[f"/datasets/{REPO}/resolve/{repository.revision}/a.json"] = (200, {}, body)
    with pytest.raises(FileFormatError, match=f"a.json: {told}"):
        fetch(repository, repository.files[0], 10**9)


def test_a_packed_answer_does_not_unfold(hub: Hub) -> None:
    import gzip

    hub.repo(REPO, {"a.json": b"x" * 100_000})
    repository = found()
    path = f"/datasets/{REPO}/resolve/{repository.revision}/a.json"
    hub.instead[path] = (200, {"content-encoding": "gzip"}, gzip.compress(b"x" * 100_000))
    with pytest.raises(FileFormatError, match="other bytes than it announced"):
        fetch(repository, repository.files[0], 10**9)


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "GatedRepo", "its conditions have to be accepted on its page first"),
        (403, "", "the hub forbids it"),
        (429, "", "the hub asks to come back later"),
        (500, "", "the hub answered 500"),
        (401, "Unauthorized", "the hub does not accept the token"),
    ],
)
def test_refusals_are_told_in_words(hub: Hub, status: int, code: str, told: str) -> None:
    hub.instead[LISTING] = (status, {"x-error-code": code}, b"<html>" * 1000)
    with pytest.raises(FileAccessError, match=f"^the listing of lena/head-scores: {told}"):
        find_repository(REPO)


def test_a_file_that_went_meanwhile_is_named(hub: Hub) -> None:
    hub.repo(REPO, {"a.json": b"one"})
    repository = found()
    hub.repo(REPO, {})
    with pytest.raises(FileAccessError, match=r"lena/head-scores/a.json is gone from the hub"):
        fetch(repository, repository.files[0], 3)


@pytest.mark.parametrize(
    "listing",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b'{"sha": 7}',
        b'{"sha": "../../x"}',
        b'{"sha": "%s", "siblings": [{}]}' % (b"0" * 40),
        b'{"sha": "%s", "siblings": [{"rfilename": "a", "size": -1}]}' % (b"0" * 40),
        b'{"sha": "%s", "siblings": [{"rfilename": "a", "size": 1e9}]}' % (b"0" * 40),
        b'{"sha": "%s", "siblings": [{"rfilename": ["a"], "size": 1}]}' % (b"0" * 40),
        b'{"sha": "%s", "siblings": 7}' % (b"0" * 40),
        b'{"sha": "%s", "siblings": [{"rfilename": "a", "size": 1, "lfs": "x"}]}' % (b"0" * 40),
        b"[" * 100_000,
    ],
)
def test_a_listing_that_makes_no_sense_is_refused(hub: Hub, listing: bytes) -> None:
    hub.instead[LISTING] = (200, {}, listing)
    with pytest.raises(FileFormatError, match="^the hub's listing of lena/head-scores makes no sense"):
        find_repository(REPO)


def test_an_endless_listing_is_cut_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_LISTING", 1000)
    hub.instead[LISTING] = (200, {}, json.dumps({"sha": "0" * 40, "x": "y" * 2000}).encode())
    with pytest.raises(FileFormatError, match="the hub sends more than the 1,000 bytes that are allowed"):
        find_repository(REPO)


def test_a_hub_that_drips_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(remote.time, "monotonic", lambda: next(clock))
    hub.repo(REPO)
    with pytest.raises(FileAccessError, match="less than 16,384 bytes a second: given up"):
        find_repository(REPO)


def test_a_hub_that_is_not_there_is_told_with_its_address(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileAccessError, match=r"http://127.0.0.1:9 cannot be reached \(ConnectError"):
        find_repository(REPO)


def test_without_the_hub_the_variable_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileAccessError, match="HF_HUB_OFFLINE is set, so the hub is not contacted"):
        find_repository(REPO)
    assert hub.requests == []

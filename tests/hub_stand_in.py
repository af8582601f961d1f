"""A small hub on this machine: it speaks the addresses that pushing and pulling use, and can be told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Repo:
    """A dataset repository: its files at each commit, oldest first."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    large: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def commit_id(self, index: int) -> str:
        return hashlib.sha1(f"commit {index}".encode()).hexdigest()

    @property
    def head(self) -> str:
        return self.commit_id(len(self.commits) - 1)

    def add(self, message: str = "by hand", **changes: Any) -> None:
        self.commits.append({**self.files, **changes.get("files", {})})
        self.messages.append(message)


class Hub:
    """What the stand-in holds, what it was asked (`requests`), and answers that go before its own (`instead`)."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str | None] = []
        self.instead: dict[str, Answer] = {}
        self.before_commit: Callable[[], None] = lambda: None
        self.stored: dict[str, bytes] = {}
        self.endpoint = ""

    def repo(self, name: str, files: dict[str, bytes] | None = None, **options: Any) -> Repo:
        self.repos[name] = Repo(commits=[{}, dict(files or {})], messages=["initial commit", "by hand"], **options)
        return self.repos[name]

    @property
    def writes(self) -> list[str]:
        return [path for method, path in self.requests if method in ("POST", "PUT") and "validate-yaml" not in path]

    # -- answers ----------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> Answer:
        plain = unquote(urlsplit(path).path)
        self.requests.append((method, plain))
        self.authorizations.append(token)
        if plain in self.instead:
            return self.instead[plain]
        for pattern, handler in (
            (r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._check_card),
            (r"/api/datasets/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/storage/([0-9a-f]{64})", self._store),
            (r"/api/datasets/([^/]+/[^/]+)/commit/(.+)", self._commit),
        ):
            match = re.fullmatch(pattern, plain)
            if match:
                return handler(token, body, *match.groups())
        return _error(404, "EntryNotFound")

    def _visible(self, token: str | None, name: str) -> Repo | None:
        repo = self.repos.get(name)
        return None if repo is None or (repo.private and token != f"Bearer {TOKEN}") else repo

    def _info(self, token: str | None, _: bytes, name: str, revision: str | None) -> Answer:
        repo = self._visible(token, name)
        if repo is None:
            return _error(404 if token else 401, "RepoNotFound")
        ids = [repo.commit_id(index) for index in range(len(repo.commits))]
        if revision not in (None, "main", *ids):
            return _error(404, "RevisionNotFound")
        files = repo.files if revision in (None, "main") else repo.commits[ids.index(str(revision))]
        sha = repo.head if revision in (None, "main") else revision
        siblings = [_sibling(name, data, name in repo.large) for name, data in files.items()]
        return _json({"id": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def _file(self, token: str | None, _: bytes, name: str, revision: str, path: str) -> Answer:
        repo = self._visible(token, name)
        if repo is None:
            return _error(401, "RepoNotFound")
        ids = [repo.commit_id(index) for index in range(len(repo.commits))]
        files = repo.commits[ids.index(revision)] if revision in ids else {}
        if path not in files:
            return _error(404, "EntryNotFound")
        if path in repo.large:
            digest = hashlib.sha256(files[path]).hexdigest()
            self.stored[digest] = files[path]
            return 302, {"location": f"/storage/{digest}"}, b""
        return 200, {}, files[path]

    def _check_card(self, _: str | None, body: bytes) -> Answer:
        given = json.loads(body)
        assert given["repoType"] == "dataset"
        errors = [] if given["content"].startswith("---\n") else [{"message": "no block of YAML"}]
        return _json({"errors": errors, "warnings": [{"message": "no licence"}]})

    def _create(self, token: str | None, body: bytes) -> Answer:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if token != f"Bearer {TOKEN}":
            return _error(401, "", "Invalid username or password.")
        if name in self.repos:
            return _error(409, "", "You already created this dataset repo")
        self.repos[name] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return _json({"url": f"{self.endpoint}/datasets/{name}", "name": name, "id": "0"})

    def _preupload(self, token: str | None, body: bytes, name: str, _: str) -> Answer:
        if token != f"Bearer {TOKEN}":
            return _error(403, "", "you may not write here")
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".png") else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        return _json({"files": files})

    def _batch(self, _: str | None, body: bytes, name: str) -> Answer:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.endpoint}/storage/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _store(self, _: str | None, body: bytes, digest: str) -> Answer:
        if body:
            assert hashlib.sha256(body).hexdigest() == digest
            self.stored[digest] = body
        return 200, {}, b"" if body else self.stored[digest]

    def _commit(self, _: str | None, body: bytes, name: str, revision: str) -> Answer:
        self.before_commit()
        repo = self.repos[name]
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repo.head):
            return _error(412, "", "A commit has happened since. Please refresh and try again.")
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
                repo.large.add(value["path"])
        repo.add(header["summary"], files=files)
        url = f"{self.endpoint}/datasets/{name}/commit/{repo.head}"
        return _json({"commitUrl": url, "commitOid": repo.head, "success": True})


def _sibling(name: str, data: bytes, is_large: bool) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
    if is_large:
        entry["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
    return entry


def _json(value: Any) -> Answer:
    return 200, {"content-type": "application/json"}, json.dumps(value).encode()


def _error(status: int, code: str, message: str = "refused") -> Answer:
    headers = {"x-error-message": message} | ({"x-error-code": code} if code else {})
    return status, headers, json.dumps({"error": message}).encode()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The hub behind `hub.endpoint` on this machine, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, headers, content = hub.answer(self.command, self.path, self.headers.get("authorization"), body)
            self.send_response(status)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):  # a client that has had enough hangs up
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = _serve  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Stay silent."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # a client that hangs up before its next request
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

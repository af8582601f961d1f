"""Score files that somebody damaged or forged: each must end in a report, soon, with little memory, running nothing.

The short form mutates a few hundred files. The full form, `pytest -m slow`, mutates 20,000, and published files as
well where the environment variable HEADPROBE_PUBLISHED_SCORES names a folder of them.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headprobe.errors import HeadprobeError
from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import Target, convert, read_any
from headprobe.scores.formats.duo import duo_bytes
from headprobe.scores.formats.keyed import keyed_bytes
from headprobe.scores.summary import summarize
from headprobe.scores.validation import validate_file

SECONDS_PER_FILE = 10.0  # of this process: other programs may be busy
MEGABYTES = 512
SHORT, FULL, FULL_PUBLISHED = 400, 20_000, 200
PUBLISHED = "HEADPROBE_PUBLISHED_SCORES"
TRIALS = np.random.default_rng(5).random((6, 3, 4)) ** 3
RUNS_CODE = {
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "socket.bind", "ctypes.dlopen", "pickle.find_class", "urllib.Request"),
}
PIECES = (
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"-0.0", b"1e-320", b"null", b"true", b'""', b"[]", b"{}", b"[[[[", b"{"),
    *(b"9" * 30, b"9" * 5000, b"0-0", b"99999-99999", b"\\ud800", b"\\u0000", b"\x00", b"\t", b"\n", b"\xff\xfe"),
    *(b"*a &a", b"!!python/object", b"cos\nsystem\n", b"\x93", b"R.", b"\x8c\x08builtins"),
)
VALUES: tuple[Any, ...] = (None, True, -1, 0, 3, 10**30, 1e308, -1e308, 1e-320, "", "x" * 200, "\ud800", [], {}, [[]])


class Watch:
    """Audit hooks stay for good, so this one can be switched off; it remembers what ran code or reached out."""

    def __init__(self) -> None:
        self.active = False
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event in RUNS_CODE:
            self.seen.append(f"{event}{arguments!r:.100}")


WATCH = Watch()
sys.addaudithook(WATCH)


def tensor_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.tensor(TRIALS[0], dtype=torch.float16), buffer)
    return buffer.getvalue()


@pytest.fixture
def samples(sample: bytes) -> list[bytes]:
    """A small file of each format."""
    keyed = json.loads(keyed_bytes(TRIALS))
    envelope = {"meta": {"model": "toy"}, "scores": keyed, "trial_ids": list("abcdef"), "confidence_intervals": {}}
    ranking = b'# best first\nattn_head_set: "2-1,0-3,1-1,0-0" # top4\nmodel_name_or_path: "org/toy"\n'
    return [sample, keyed_bytes(TRIALS), json.dumps(envelope).encode(), duo_bytes(TRIALS[0]), ranking, tensor_file()]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The file with up to 20 bytes, spans or pieces changed, doubled, moved, put in, taken out or cut off."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 20))):
        at, span = rng.randrange(len(made) + 1), rng.choice((1, 1, 2, 8, 64, 512))
        start = rng.randrange(len(made) + 1)
        change = rng.randrange(7)
        if change == 0:
            made[at : at + 1] = bytes([rng.randrange(256)])
        elif change == 1:
            del made[at : at + span]
        elif change == 2:
            made[at:at] = rng.randbytes(span)
        elif change == 3:
            made[at:at] = made[start : start + span]
        elif change == 4:
            made[at:at] = rng.choice(PIECES)
        elif change == 5:
            made[at : at + span] = rng.choice(PIECES)
        elif rng.random() < 0.3:
            del made[at:]
    return bytes(made)


def forged(data: bytes, rng: random.Random, plain_id: Callable[[Any], str]) -> bytes:
    """The file with a change inside that its checksums do not tell: those of the archive, or the id, are put right."""
    if data.startswith(b"PK"):
        return _forged_archive(data, rng)
    try:
        value = json.loads(data)
    except ValueError:
        return mutated(data, rng)
    for _ in range(rng.choice((1, 1, 2, 5))):
        _forge_value(value, rng)
    if isinstance(value, dict) and "id" in value:
        value["id"] = plain_id(value)
    return json.dumps(value).encode()


def _forged_archive(data: bytes, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        victim = rng.choice(old.namelist()[:1] * 3 + old.namelist())
        for name in old.namelist():
            new.writestr(name, mutated(old.read(name), rng) if name == victim else old.read(name))
    return buffer.getvalue()


def _forge_value(value: Any, rng: random.Random) -> None:
    """Change one value, or drop, double or rename one entry, somewhere in the tree."""
    while isinstance(value, dict | list) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.8:
            value = value[key]
            continue
        change = rng.randrange(4)
        if change == 0:
            value[key] = rng.choice(VALUES)
        elif change == 1:
            del value[key]
        elif change == 2 and isinstance(value, list):
            value.append(value[key])
        elif isinstance(value, dict):
            value[rng.choice(("0-0", "9-9", "x", "id", "\ud800"))] = value[key]
        return


class TooSlowError(BaseException):
    """No `Exception`, so that nothing on the way can take it for a fault of the file."""


def _too_slow(*_: object) -> None:
    raise TooSlowError(f"more than {SECONDS_PER_FILE} s for one file")


@contextmanager
def limits() -> Iterator[None]:
    """No more memory than reading takes, and no code run."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    WATCH.seen.clear()
    WATCH.active = True
    try:
        yield
    finally:
        WATCH.active = False
    assert WATCH.seen == []
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < MEGABYTES


def examine(path: Path) -> str | None:
    """Do all that can be done to a file, in a limited time; the format where it could be read.

    Raises whatever is no expected error.
    """
    signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_FILE)
    try:
        report = validate_file(path)
        assert all("\n" not in finding.detail for finding in report.findings)
        with suppress(HeadprobeError):
            _use(path, report.format)
        return report.format
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _use(path: Path, kind: str | None) -> None:
    scores = read_any(path)
    assert scores.format == kind
    assert np.isfinite(scores.mean).all()
    summarize(scores)
    heads = scores.num_heads
    geometry = ModelGeometry(scores.num_layers, heads, heads, 8, ("full_attention",) * scores.num_layers)
    for target in ("headprobe", "headkv", "duo"):
        convert(scores, target, Target("toy", geometry))


def run(files: list[bytes], number: int, path: Path, plain_id: Callable[[Any], str]) -> set[str | None]:
    """Examine `number` mutations; the formats that could still be read, and None for those that could not."""
    for data in files:
        path.write_bytes(data)
        assert examine(path) is not None
    formats: set[str | None] = set()
    with limits():
        for seed in range(number):
            rng = random.Random(seed)
            data = rng.choice(files)
            path.write_bytes(forged(data, rng, plain_id) if rng.random() < 0.5 else mutated(data, rng))
            try:
                formats.add(examine(path))
            except (Exception, TooSlowError) as error:
                raise AssertionError(f"mutation {seed}: {type(error).__name__}: {error}") from error
    return formats


@pytest.fixture
def full(request: pytest.FixtureRequest) -> None:
    """Skip unless `-m slow` asks for it."""
    if "slow" not in request.config.option.markexpr:
        pytest.skip("takes minutes; `pytest -m slow` runs it")


ALL = {None, "headprobe", "headkv", "locos", "duo", "qrhead", "kvzip"}


def test_mutated_files_end_in_a_report(samples: list[bytes], tmp_path: Path, reference_id) -> None:
    assert run(samples, SHORT, tmp_path / "file", reference_id) == ALL


@pytest.mark.slow
@pytest.mark.usefixtures("full")
def test_twenty_thousand_mutated_files_end_in_a_report(samples: list[bytes], tmp_path: Path, reference_id) -> None:
    assert run(samples, FULL, tmp_path / "file", reference_id) == ALL


@pytest.mark.slow
@pytest.mark.usefixtures("full")
@pytest.mark.skipif(PUBLISHED not in os.environ, reason=f"{PUBLISHED} names no folder of published files")
def test_mutated_published_files_end_in_a_report(tmp_path: Path, reference_id) -> None:
    found = [path for path in sorted(Path(os.environ[PUBLISHED]).rglob("*")) if path.is_file()]
    files = [path.read_bytes() for path in found if path.name != "config.json"]
    assert files
    assert None in run(files, FULL_PUBLISHED, tmp_path / "file", reference_id)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_end_in_a_report(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(data)
    examine(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["0-0", "0-1", "1-0", "1-1", "schema", "meta", "scores", "id", "0-0 ", "00-1"])


@settings(max_examples=200, deadline=None)
@given(value=st.dictionaries(KEYS, JSON | st.lists(st.floats() | st.integers(), max_size=4), max_size=6))
def test_any_json_object_ends_in_a_report(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("json") / "file"
    path.write_text(json.dumps(value))
    examine(path)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 1_000_000,
        b'{"0-0":' * 200_000,
        b'{"trials": [' + b"[]," * 4_000_001 + b"0]}",
        b'{"0-0": [' + b"0," * 1_000_000 + b"0]}",
        b'{"0-0": [1' + b"0" * 1_000_000 + b"]}",
        b'{"0-0": [1], "99999-99999": [1]}',
        b"0\t" * 1_000_000,
        b"0\n" * 1_000_000,
        b"attn_head_set: " + b"0-0," * 100_000,
        b"attn_head_set: " + b",".join(b"%d-%d" % (i % 1000, i // 1000) for i in range(100_000)),
        b"attn_head_set: 1023-1023",
        b"PK\x03\x04" * 100_000,
    ],
    ids=lambda data: f"{data[:24]!r}...{len(data)}",
)
def test_large_files_take_neither_long_nor_much(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with limits():
        examine(path)


@pytest.mark.parametrize("command", ["show", "validate"])
def test_the_commands_end_without_an_internal_error(
    cli, command: str, samples: list[bytes], tmp_path: Path, reference_id
) -> None:
    for seed in range(40):
        rng = random.Random(seed)
        (tmp_path / "file").write_bytes(forged(rng.choice(samples), rng, reference_id))
        shown = cli("scores", command, tmp_path / "file", *rng.choice(([], ["--json"])))
        assert shown.code in (0, 3), shown.err

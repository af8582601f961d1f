"""Events reach those who listen, and their files are outputs of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import OptionError
from headprobe.events import emit, listeners_places, listening
from headprobe.scores.files import refuse_one_place, write_atomically


def test_every_listener_hears_what_happens_while_it_listens() -> None:
    heard: list[tuple[str, str, dict[str, Any]]] = []

    def ear(name: str) -> Any:
        return lambda event, facts: heard.append((name, event, dict(facts)))

    emit("trial", trial="before")
    with listening(ear("a")):
        emit("trial", trial="one")
        with listening(ear("b")):
            emit("skip", trial="two", reason="full")
    emit("trial", trial="behind")
    two = {"trial": "two", "reason": "full"}
    assert heard == [("a", "trial", {"trial": "one"}), ("a", "skip", two), ("b", "skip", two)]


def test_a_listeners_file_may_be_no_output_and_no_input(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with listening(places={"--log-json": log}):
        with pytest.raises(OptionError, match=r"--log-json .*log.jsonl and -o .*LOG.jsonl are the same file"):
            refuse_one_place({"-o": tmp_path / "LOG.jsonl"})
        with pytest.raises(
            OptionError, match=r"--log-json .* and --needles .* are the same file: the input would be lost"
        ):
            refuse_one_place({}, {"--needles": str(log)})
    refuse_one_place({"-o": log})
    assert listeners_places() == {}


def test_a_written_file_is_an_event_with_its_size(tmp_path: Path) -> None:
    heard: list[tuple[str, Mapping[str, Any]]] = []
    with listening(lambda event, facts: heard.append((event, dict(facts)))):
        write_atomically(tmp_path / "a.json", b"12345")
    assert heard == [("write", {"file": str(tmp_path / "a.json"), "bytes": 5})]

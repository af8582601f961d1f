from __future__ import annotations

import io
from pathlib import Path

import pytest

from headprobe.commands.reading import read_text
from headprobe.errors import FileAccessError, FileFormatError

BOM = b"\xef\xbb\xbf"


class _Stdin:
    """Stdin as a process has it: bytes below, whatever the locale makes of them above."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def read(self) -> str:
        return self.buffer.read().decode("ascii", "surrogateescape")


@pytest.fixture(params=["file", "stdin"])
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """`read_text` of these bytes, from a file or from stdin."""

    def give(data: bytes) -> str:
        if request.param == "file":
            Path("p.txt").write_bytes(data)
            return read_text("p.txt")
        monkeypatch.setattr("sys.stdin", _Stdin(data))
        return read_text("-")

    return give


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"One.\n", "One.\n"),
        (BOM + b"One.", "One."),
        (b"One.\r\nTwo.\rThree.\n", "One.\nTwo.\nThree.\n"),
        ("Où? 蜂 \ufeff.".encode(), "Où? 蜂 \ufeff."),
    ],
)
def test_a_prompt_is_its_text_without_byte_order_mark_and_carriage_returns(read, data: bytes, text: str) -> None:
    assert read(data) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\xff", "byte 1 is not UTF-8: a prompt is plain text"),
        (b"ab\xed\xa0\x80", "byte 2 is not UTF-8"),
        ("Hi".encode("utf-16"), "byte 0 is not UTF-8"),
        (b"One.\x00Two.", "a zero byte at character 4: a prompt is plain text"),
        (b"", "the prompt is empty"),
        (b" \r\n\t\n", "the prompt is empty"),
        (BOM, "the prompt is empty"),
        (BOM + b" \n", "the prompt is empty"),
    ],
)
def test_what_is_no_prompt_is_refused(read, data: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=f"(p.txt|stdin): {message}"):
        read(data)


def test_a_closed_stdin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(FileAccessError, match="stdin is closed"):
        read_text("-")

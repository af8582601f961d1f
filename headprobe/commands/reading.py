"""What commands read: prompts, and score files with the number of KV heads also where the file does not tell."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from headprobe.commands.scores.stated_model import stated_model
from headprobe.errors import FileAccessError, FileFormatError, OptionError
from headprobe.home import in_home
from headprobe.probes.plan import parse_lengths
from headprobe.scores.any_scores import AnyScores


def with_geometry(scores: AnyScores, model: str | None = None) -> AnyScores:
    """The scores with the geometry of the model that `--model`, the file or its name states, where it fits the table.

    Raises `OptionError` for a `--model` that is not known or has other heads than the file.
    """
    stated = None if scores.geometry is not None and model is None else stated_model(scores, model)
    if stated is None:
        return scores
    layers, heads, groups = (
        stated.geometry.num_hidden_layers,
        stated.geometry.num_attention_heads,
        stated.geometry.num_key_value_heads,
    )
    if scores.mean.shape == (layers, heads if scores.heads == "query" else groups):
        return scores if scores.geometry is not None else replace(scores, geometry=stated.geometry)
    if model is not None:
        shape = f"{scores.num_layers} layers of {scores.num_heads} {'query' if scores.heads == 'query' else 'KV'} heads"
        raise OptionError(
            f"{scores.path.name} has {shape}, --model {model} {layers} layers of {heads} query and {groups} KV heads"
        )
    return scores


def one_length(text: str, option: str, longest: int | None = None) -> int:
    """Tokens from text such as `2k`, at most `longest`. Raises `OptionError`, which names `option`."""
    lengths = parse_lengths(text) if longest is None else parse_lengths(text, longest)
    if len(lengths) != 1:
        raise OptionError(f"{option} takes one length, got {text!r}")
    return lengths[0]


def read_text(prompt: str) -> str:
    """The text of a file, or of stdin (`-`), as a haystack is read: UTF-8, without a byte order mark, lines end in \\n.

    Raises `FileFormatError` for what is no text, or empty, `FileAccessError` for a file that cannot be read.
    """
    name = "stdin" if prompt == "-" else prompt
    if prompt == "-" and sys.stdin is None:
        raise FileAccessError("stdin is closed")
    data = _stdin() if prompt == "-" else in_home(prompt).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"byte {error.start} is not UTF-8: a prompt is plain text", name) from None
    if "\x00" in text:
        raise FileFormatError(f"a zero byte at character {text.index(chr(0))}: a prompt is plain text", name)
    if not text.strip():
        raise FileFormatError("the prompt is empty", name)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _stdin() -> bytes:
    """All of stdin; its bytes, since how they are decoded would depend on the locale."""
    buffer = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read().encode("utf-8", "surrogatepass") if buffer is None else buffer.read()


def prompt_name(prompt: str | None) -> str:
    """What output calls a prompt that was read from a file, or from stdin (`-`)."""
    return "stdin" if prompt == "-" else Path(str(prompt)).name

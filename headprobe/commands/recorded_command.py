"""The command line that a score file keeps: what was typed, fit to be typed again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import typer

from headprobe.home import in_home

FILES = {"output", "dump_prompts"}
PLACES = {"model", "needles", "haystack"}  # a name, or a file or folder


def recorded_command(context: typer.Context) -> str:
    """The options that were given on the command line, in a form that a shell reads as the same options.

    Files and folders stand with their last part only: what a score file holds must not tell about a machine's folders.
    """
    words = ["headprobe", *context.command_path.split()[1:]]
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            words += _words(parameter, context.params[parameter.name or ""])
    return " ".join(map(shlex.quote, words))


def _words(parameter: Any, value: Any) -> Iterator[str]:
    option = max(parameter.opts, key=len)
    if getattr(parameter, "is_flag", False):
        yield option if value else max(parameter.secondary_opts, key=len)
        return
    for each in value if isinstance(value, list | tuple) else [value]:
        word = without_folders(parameter.name, str(each))
        yield from (f"{option}={word}",) if word.startswith("-") else (option, word)


def without_folders(name: str, value: str) -> str:
    """The value of the option `name` without a machine's folders; a hub id stays whole, and a folder one (`results/`).

    >>> without_folders("output", "/home/ada/a b.json"), without_folders("model", "org/name")
    ('a b.json', 'org/name')
    """
    looks_local = value[:1] in "./~\\" or value.count("/") > 1 or bool(PureWindowsPath(value).drive)
    if name not in FILES and not (name in PLACES and (looks_local or Path(value).exists())):
        return value
    last = _last_part(value)
    is_folder = name == "output" and (value.endswith("/") or in_home(value).is_dir())
    return f"{last}/" if is_folder else last


def _last_part(value: str) -> str:
    part = PureWindowsPath(PurePosixPath(value).name).name
    if part in ("", ".."):
        part = PurePath(os.path.realpath(in_home(value))).name
    return part or "."

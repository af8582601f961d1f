"""Packages that some tasks need and headprobe does without: loaded when they are used, missed in one line."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from headprobe.errors import OptionError


def check_installed(package: str, what: str, extra: str = "eval") -> None:
    """Raise `OptionError`, which names the extra that brings it, where `package` is not installed.

    `what`: what needs it, in words.

    >>> check_installed("no_such_package", "this")
    Traceback (most recent call last):
    headprobe.errors.OptionError: this needs the package no_such_package: `pip install 'headprobe[eval]'` brings it
    """
    if find_spec(package) is None:
        raise OptionError(f"{what} needs the package {package}: `pip install 'headprobe[{extra}]'` brings it")


def needed(module: str, what: str, extra: str = "eval") -> Any:
    """The module, of a package that `extra` brings. Raises as `check_installed`, and where it cannot be loaded."""
    check_installed(module.partition(".")[0], what, extra)
    try:
        return import_module(module)
    except ImportError as error:
        raise OptionError(f"{what} needs {module}, which cannot be loaded: {error}") from None

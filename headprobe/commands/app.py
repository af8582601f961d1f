"""A group of commands, each of which refuses empty values before it does anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand


class _Command(TyperCommand):
    """A command for which an empty value is no value.

    It is refused as it was typed: once read, an empty path is the current folder, and an empty text looks like an
    option that was left out.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As every command does, but raises `OptionError` for an empty value of any option or argument."""
        from headprobe.errors import refuse_empty

        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            value = given.get(parameter.name or "")
            for part in value if isinstance(value, (list, tuple)) else [value]:
                refuse_empty({_told(parameter): part})
        return super().parse_args(ctx, args)


def _told(parameter: Any) -> str:
    """An option by its long name, an argument by what the help calls it."""
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return f"argument {parameter.metavar or str(parameter.name).upper()}"


class App(typer.Typer):
    """A `typer.Typer` whose commands refuse empty values."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """As `typer.Typer.command`."""
        return super().command(name, **{"cls": _Command, **options})

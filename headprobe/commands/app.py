"""A group of commands, each of which refuses empty values before it does anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand


class _Command(TyperCommand):
    """A command for which an empty value is no value, and `1_0` no number.

    Both are refused as they were typed: once read, an empty path is the current folder, an empty text looks like an
    option that was left out, and `1_0` is 10.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As every command does, but raises `OptionError` for an empty value of any option or argument, and for a
        number that is written as no program writes it."""
        from headprobe.errors import refuse_empty

        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            value = given.get(parameter.name or "")
            for part in value if isinstance(value, (list, tuple)) else [value]:
                refuse_empty({_told(parameter): part})
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            name = parameter.name or ""
            _refuse_odd_number(_told(parameter), given.get(name), ctx.params.get(name))
        return rest


def _refuse_odd_number(name: str, typed: object, read: object) -> None:
    """Raise `OptionError` for a number typed with underscores or digits of other scripts, which Python reads too."""
    from headprobe.errors import OptionError, shown

    is_number = isinstance(read, (int, float)) and not isinstance(read, bool)
    if is_number and isinstance(typed, str) and ("_" in typed or not typed.isascii()):
        raise OptionError(f"{name} is {shown(typed)}, need a number in plain digits, such as {read}")


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

"""The tree of commands, from a table, loaded when they run; and the values that none of their options takes."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import isfinite
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from headprobe.errors import OptionError, refuse_empty, shown

# Numbers and texts that no command can do anything with, refused in one place for all options of all commands.

MOST = 2**40  # of anything that is counted: times layers and heads it still fits into 64 bits
LARGEST_SEED = 2**53  # whole numbers up to here are exact in JSON and in a float


def refuse_undecodable(arguments: Sequence[str]) -> None:
    """Raise `OptionError` for an argument that is not UTF-8, or holds a null character.

    No file of ours may be called so: score files, journals and pages hold names as text.
    """
    for argument in arguments:
        if "\0" in argument:
            raise OptionError(f"the argument {argument!r:.200} holds a null character")
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            raise OptionError(f"the argument {argument!r:.200} is not UTF-8: use another name") from None


def check_number(name: str, value: object) -> None:
    """Raise `OptionError`, quoting the limits, for a number beyond them or one that is not finite.

    >>> check_number("--limit", 2**64)
    Traceback (most recent call last):
    headprobe.errors.OptionError: --limit is 18446744073709551616, need -1099511627776 to 1099511627776
    """
    limit = LARGEST_SEED if name == "--seed" else MOST
    if isinstance(value, list | tuple):
        for each in value:
            check_number(name, each)
    elif isinstance(value, float) and not isfinite(value):
        raise OptionError(f"{name} is {value}, need a finite number")
    elif isinstance(value, int) and abs(value) > limit:
        raise OptionError(f"{name} is {_shown(value)}, need {-limit} to {limit}")


def _shown(value: int) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text.lstrip('-'))} digits)"


# The tree of commands, from a table: a command's module is loaded when it runs, or when its own help is asked for.
#
# Every command refuses empty values and numbers that nothing can be done with before it does anything.


@dataclass(frozen=True)
class Command:
    """A line of the table: the function behind a command, as `module:function`, and the first line of its docstring."""

    place: str
    help: str


@dataclass(frozen=True)
class Group:
    """Several commands under one name, which print their list where none of them is named.

    `otherwise`: the command of the table that takes any name that is none of theirs, as its first argument.
    """

    help: str
    table: Table
    otherwise: str | None = None


Table = Mapping[str, Command | Group]


class App(typer.Typer):
    """A `typer.Typer` whose commands are those of `table`."""

    def __init__(self, table: Table, otherwise: str | None = None, **options: Any) -> None:
        super().__init__(
            cls=type("Group", (TableGroup,), {"table": table, "otherwise": otherwise}),
            add_completion=False,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
            **options,
        )


class TableGroup(TyperGroup):
    """A group whose list of commands is read from the table; `commands` loads what is taken from it."""

    table: ClassVar[Table]
    otherwise: ClassVar[str | None] = None

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = _Loaded(self.table)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What a list of commands shows of one; it cannot run."""
        line = self.table.get(cmd_name)
        return None if line is None else TyperCommand(cmd_name, help=line.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that `args` name, loaded."""
        if self.otherwise is not None and args[0] not in self.table and not args[0].startswith("-"):
            return self.otherwise, self.commands[self.otherwise], args
        name, found, rest = super().resolve_command(ctx, args)
        return name, None if found is None else self.commands[str(found.name)], rest


class _Loaded(UserDict[str, Any]):
    """The commands of a table by name, each loaded when it is first taken."""

    def __getitem__(self, name: str) -> Any:
        line = super().__getitem__(name)
        if isinstance(line, Command | Group):
            line = self.data[name] = _command(name, line) if isinstance(line, Command) else _group(name, line)
        return line


def _command(name: str, line: Command) -> TyperCommand:
    module, _, function = line.place.partition(":")
    app = typer.Typer(add_completion=False)
    app.command(name, cls=_Command)(getattr(import_module(module), function))
    command: Any = typer.main.get_command(app)
    return command


def _group(name: str, line: Group) -> TableGroup:
    app = App(line.table, line.otherwise, name=name, help=line.help)
    app.callback(invoke_without_command=True)(_print_help)
    group: Any = typer.main.get_command(app)
    return group


def _print_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


class _Command(TyperCommand):
    """A command for which an empty value is no value, and `1_0` no number.

    Both are refused as they were typed: once read, an empty path is the current folder, an empty text looks like an
    option that was left out, and `1_0` is 10.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As every command does, but raises `OptionError` for an empty value of any option or argument, for a
        number beyond all limits, and for one that is written as no program writes it."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            value = given.get(parameter.name or "")
            for part in value if isinstance(value, (list, tuple)) else [value]:
                refuse_empty({_told(parameter): part})
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            name = parameter.name or ""
            check_number(max(parameter.opts, key=len), ctx.params.get(name))
            _refuse_odd_number(_told(parameter), given.get(name), ctx.params.get(name))
        return rest


def _refuse_odd_number(name: str, typed: object, read: object) -> None:
    """Raise `OptionError` for a number typed with underscores or digits of other scripts, which Python reads too."""
    is_number = isinstance(read, (int, float)) and not isinstance(read, bool)
    if is_number and isinstance(typed, str) and ("_" in typed or not typed.isascii()):
        raise OptionError(f"{name} is {shown(typed)}, need a number in plain digits, such as {read}")


def _told(parameter: Any) -> str:
    """An option by its long name, an argument by what the help calls it."""
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return f"argument {parameter.metavar or str(parameter.name).upper()}"

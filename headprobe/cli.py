"""The command line: one subcommand a stage, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headprobe import __version__
from headprobe.commands.app import App
from headprobe.commands.budgets import budgets_command
from headprobe.commands.compress import compress_command
from headprobe.commands.doctor import doctor_command
from headprobe.commands.evaluate import eval_app
from headprobe.commands.haystacks import haystacks_command
from headprobe.commands.heatmap import heatmap_command
from headprobe.commands.interrupts import INTERRUPTED, LINE, InterruptedRunError
from headprobe.commands.models import models_command
from headprobe.commands.needles import needles_command
from headprobe.commands.norms import norms_command
from headprobe.commands.option_values import CheckedGroup, refuse_undecodable
from headprobe.commands.output import one_line
from headprobe.commands.report import report_command
from headprobe.commands.score import score_command
from headprobe.commands.scores import scores_app
from headprobe.commands.serve_plan import serve_plan_command
from headprobe.commands.streams import fill_closed, let_go, named_output, refuse_closed_output, write_error
from headprobe.errors import FileAccessError, HeadprobeError, OptionError

DEBUG_VARIABLE = "HEADPROBE_DEBUG"
BROKEN_PIPE = 141  # what a shell reports of a command whose reader is gone
INTERNAL_ERROR = 70
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # the parser's own class, which typer does not name

app = App(
    name="headprobe",
    cls=CheckedGroup,
    help="Find the attention heads of a language model that fetch answers from its context.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headprobe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find the attention heads of a language model that fetch answers from its context."""


app.command("score")(score_command)
app.command("heatmap")(heatmap_command)
app.add_typer(scores_app, name="scores")
app.command("report")(report_command)
app.command("compress")(compress_command)
app.add_typer(eval_app, name="eval")
app.command("budgets")(budgets_command)
app.command("norms")(norms_command)
app.command("serve-plan")(serve_plan_command)
app.command("models")(models_command)
app.command("needles")(needles_command)
app.command("haystacks")(haystacks_command)
app.command("doctor")(doctor_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments` (default: those of the process) and return the exit code.

    Expected errors end in one line on stderr and a code of their own (`headprobe.errors`; an `OSError` counts as
    `FileAccessError`), an interrupt in 130, a reader of stdout that is gone in 141 and no line, a bug in 70; with
    `HEADPROBE_DEBUG=1` the traceback comes before the line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    fill_closed()
    try:
        refuse_closed_output()
        refuse_undecodable(given)
        return _ending(given or ["--help"])
    except (KeyboardInterrupt, typer.Abort):
        write_error(LINE)
        return INTERRUPTED
    except InterruptedRunError as error:
        write_error(f"{LINE}: {error}" if str(error) else LINE)
        return INTERRUPTED
    except USAGE_ERROR as error:
        return _complain(f"error: {error.format_message()}", OptionError.exit_code)
    except HeadprobeError as error:
        return _complain(f"error: {error}", error.exit_code)
    except BrokenPipeError:
        let_go(sys.stdout)
        return BROKEN_PIPE
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        return _complain(f"error: {where}{error.strerror or error}", FileAccessError.exit_code)
    except Exception as error:
        hint = f"set {DEBUG_VARIABLE}=1 for the traceback"
        return _complain(f"internal error: {type(error).__name__}: {error}", INTERNAL_ERROR, f" ({hint})")


def _ending(arguments: list[str]) -> int:
    """The exit code of the command, when all that it printed is written. Typer makes codes of some exceptions."""
    with named_output():
        try:
            ending = app(args=arguments, prog_name="headprobe", standalone_mode=False)
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):
                raise error.__context__ from None
            ending = _exit_code(error)
    if ending == INTERRUPTED:
        raise KeyboardInterrupt
    return ending if isinstance(ending, int) else 0


def _exit_code(ending: SystemExit) -> int:
    if isinstance(ending.code, int):
        return ending.code
    return 0 if ending.code is None else 1


def _complain(message: str, code: int, hint: str = "") -> int:
    if os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}:
        write_error(traceback.format_exc().rstrip("\n"))
    write_error(f"headprobe: {one_line(message)}{hint}")
    return code

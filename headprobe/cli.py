"""The command line: one subcommand a stage, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headprobe import __version__
from headprobe.commands.budgets import budgets_command
from headprobe.commands.compress import compress_command
from headprobe.commands.doctor import doctor_command
from headprobe.commands.evaluate import eval_app
from headprobe.commands.haystacks import haystacks_command
from headprobe.commands.heatmap import heatmap_command
from headprobe.commands.models import models_command
from headprobe.commands.needles import needles_command
from headprobe.commands.norms import norms_command
from headprobe.commands.report import report_command
from headprobe.commands.score import score_command
from headprobe.commands.scores import scores_app
from headprobe.commands.serve_plan import serve_plan_command
from headprobe.errors import FileAccessError, HeadprobeError, OptionError

DEBUG_VARIABLE = "HEADPROBE_DEBUG"
INTERRUPTED = 130
INTERNAL_ERROR = 70
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # the parser's own class, which typer does not name

app = typer.Typer(
    name="headprobe",
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
    `FileAccessError`), an interrupt in 130, a bug in 70; with `HEADPROBE_DEBUG=1` the traceback comes before the line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        ending = app(args=given or ["--help"], prog_name="headprobe", standalone_mode=False)
        return ending if isinstance(ending, int) else 0
    except SystemExit as ending:
        return _exit_code(ending)
    except (KeyboardInterrupt, typer.Abort):
        print("headprobe: interrupted", file=sys.stderr)
        return INTERRUPTED
    except USAGE_ERROR as error:
        return _complain(f"error: {_one_line_of(error.format_message())}", OptionError.exit_code)
    except HeadprobeError as error:
        return _complain(f"error: {_one_line(error)}", error.exit_code)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        return _complain(f"error: {where}{error.strerror or _one_line(error)}", FileAccessError.exit_code)
    except Exception as error:
        hint = f"set {DEBUG_VARIABLE}=1 for the traceback"
        return _complain(f"internal error: {type(error).__name__}: {_one_line(error)} ({hint})", INTERNAL_ERROR)


def _exit_code(ending: SystemExit) -> int:
    if isinstance(ending.code, int):
        return ending.code
    return 0 if ending.code is None else 1


def _complain(message: str, code: int) -> int:
    if os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}:
        traceback.print_exc(file=sys.stderr)
    print(f"headprobe: {message}", file=sys.stderr)
    return code


def _one_line(error: Exception) -> str:
    return _one_line_of(str(error))


def _one_line_of(message: str) -> str:
    return " ".join(message.split())

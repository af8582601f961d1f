"""The command line: the table of commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headprobe._version import __version__
from headprobe.commands.app import App, Command, Group, Table, refuse_undecodable
from headprobe.commands.interrupts import INTERRUPTED, LINES, InterruptedRunError
from headprobe.commands.output import one_line
from headprobe.commands.streams import fill_closed, let_go, named_output, refuse_closed_output, write_error
from headprobe.errors import FileAccessError, HeadprobeError, OptionError

DEBUG_VARIABLE = "HEADPROBE_DEBUG"
BROKEN_PIPE = 141  # what a shell reports of a command whose reader is gone
INTERNAL_ERROR = 70
USAGE_ERROR: Any  # what typer's parser raises
try:
    from typer._click import exceptions as parser_errors  # 0.26 to 0.29, which have no public name for it
except ImportError:
    USAGE_ERROR = typer.TyperException  # public since 0.29, the base of all errors of its own
else:
    USAGE_ERROR = parser_errors.UsageError

# One line per command: where it is loaded from when it runs, and the first line of its docstring.
SCORES: Table = {
    "show": Command(
        "headprobe.commands.scores.show:show_command",
        "Show what a score file holds: model, method, trials, top heads, and how the scores spread.",
    ),
    "validate": Command(
        "headprobe.commands.scores.validate:validate_command",
        "Check score files for common faults. Exits with code 3 when a file has an error.",
    ),
    "convert": Command(
        "headprobe.commands.scores.convert:convert_command",
        "Write a score file in another format, and say what that format cannot hold.",
    ),
    "push": Command(
        "headprobe.commands.scores.push:push_command",
        "Put a score file on the Hugging Face hub, with its picture and a card that says where it comes from.",
    ),
    "pull": Command(
        "headprobe.commands.scores.pull:pull_command",
        "Fetch score files from the Hugging Face hub; each is checked first, "
        "and kept only if the checks find no error.",
    ),
    "compare": Command(
        "headprobe.commands.scores.compare:compare_command",
        "Compare the rankings of score files: Spearman, overlap of the best heads, and the heads that moved most.",
    ),
    "stability": Command(
        "headprobe.commands.scores.stability:stability_command",
        "Check whether a score file has enough trials: rank intervals, split halves, odd lengths, depths and needles.",
    ),
    "merge": Command(
        "headprobe.commands.scores.merge:merge_command",
        "Join score files of one model and method, or the parts of a run; what does not belong together is refused.",
    ),
}
EVALUATION: Table = {
    "needles": Command(
        "headprobe.commands.evaluate.needles:needles_command",
        "Compare policies at equal budgets: who still finds the needle, and what it costs.",
    ),
    "TASK": Command(
        "headprobe.commands.evaluate.run:run_command",
        "Compare policies on tasks with known answers, such as longbench:qasper,ruler: scores, and what they cost.",
    ),
    "merge": Command(
        "headprobe.commands.evaluate.merge:merge_command",
        "Put the parts of an evaluation (--shard) together, without its model: rows, summary, table and pictures.",
    ),
    "harness": Command(
        "headprobe.commands.evaluate.harness:harness_command",
        "Run tasks of lm-evaluation-harness on compressed caches, against the full cache.",
    ),
    "tasks": Command(
        "headprobe.commands.evaluate.tasks:tasks_command",
        "List the tasks, their sets and metrics, and where their texts come from.",
    ),
}
COMMANDS: Table = {
    "score": Command(
        "headprobe.commands.score:score_command",
        "Find the heads that retrieve: probe MODEL with needles in haystacks and write a score file.",
    ),
    "heatmap": Command(
        "headprobe.commands.heatmap:heatmap_command",
        "Draw head scores, layer by head, as a picture and in the terminal.",
    ),
    "report": Command(
        "headprobe.commands.report:report_command",
        "Write one self-contained HTML page about score files, which needs no network and no server.",
    ),
    "compress": Command(
        "headprobe.commands.compress:compress_command",
        "Answer a long prompt from a cache that keeps a different number of entries for each head.",
    ),
    "tune": Command(
        "headprobe.commands.tune:tune_command",
        "Find the smallest cache that keeps a share of the full cache's score, and prove it on prompts held out.",
    ),
    "budgets": Command(
        "headprobe.commands.budgets:budgets_command",
        "Show how many entries of a prompt each KV head would keep, without loading a model.",
    ),
    "knockout": Command(
        "headprobe.commands.knockout:knockout_command",
        "Switch the best heads off: what does that cost on needles and on plain text, against random heads?",
    ),
    "bench": Command(
        "headprobe.commands.bench:bench_command",
        "Measure what compressed caches cost: prefill, time per token, peak memory, against the full cache.",
    ),
    "norms": Command(
        "headprobe.commands.norms:norms_command",
        "Draw attention and value norm per token, and report how far the sinks' values fall below the median.",
    ),
    "referee": Command(
        "headprobe.commands.referee:referee_command",
        "Judge detectors: who agrees, whose heads the answers need, whose budgets keep them, and at what cost.",
    ),
    "serve-plan": Command(
        "headprobe.commands.serve_plan:serve_plan_command",
        "Plan two KV caches for vLLM, without loading a model. The plug-in in serving/ carries out the plan.",
    ),
    "models": Command(
        "headprobe.commands.models:models_command",
        "List the models that have a short name, and where they are on this machine.",
    ),
    "needles": Command(
        "headprobe.commands.needles:needles_command",
        "List needle sets, or check your own files: a broken line is reported with its number.",
    ),
    "haystacks": Command(
        "headprobe.commands.haystacks:haystacks_command",
        "List haystacks, or check your own files and folders (txt, md, jsonl).",
    ),
    "doctor": Command(
        "headprobe.commands.doctor:doctor_command",
        "Report versions, devices, attention kernels, the cache folder, and what is missing for what.",
    ),
    "scores": Group("Look at score files, native or foreign: show, check, convert, compare and share them.", SCORES),
    "eval": Group("Measure what a model still answers on a compressed cache.", EVALUATION, otherwise="TASK"),
}

app = App(
    COMMANDS, name="headprobe", help="Find the attention heads of a language model that fetch answers from its context."
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments` (default: those of the process) and return the exit code.

    Expected errors end in one line on stderr and a code of their own (`headprobe.errors`; an `OSError` counts as
    `FileAccessError`), an interrupt in 130, SIGTERM in 143, a reader of stdout that is gone in 141 and no line, a bug
    in 70; with `HEADPROBE_DEBUG=1` the traceback comes before the line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    fill_closed()
    try:
        refuse_closed_output()
        refuse_undecodable(given)
        return _ending(given or ["--help"])
    except (KeyboardInterrupt, typer.Abort):
        write_error(LINES[INTERRUPTED])
        return INTERRUPTED
    except InterruptedRunError as error:
        write_error(f"{LINES[error.code]}: {error}" if str(error) else LINES[error.code])
        return error.code
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

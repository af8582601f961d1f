"""Commands that can be watched: `--log-json` and `--profile` for all of them, and stages that are timed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import typer

from headprobe._version import __version__
from headprobe.commands.event_log import EventLog, Trace, run_of_environment
from headprobe.commands.interrupts import INTERRUPTED, InterruptedRunError
from headprobe.commands.options import LogJsonOption, ProfileOption
from headprobe.commands.output import one_line, tell
from headprobe.errors import FileAccessError, HeadprobeError, OptionError
from headprobe.events import BEGIN, END, Listener, emit, listening
from headprobe.home import in_home
from headprobe.profiling.ranks import Ranks
from headprobe.scores.files import refuse_one_place
from headprobe.stages import Stages, stage_record, timed

INTERNAL_ERROR = 70
OPTIONS = {"log_json": LogJsonOption, "profile": ProfileOption}
Function = TypeVar("Function", bound=Callable[..., None])


def observed(command: Function) -> Function:
    """A command with `--log-json` and `--profile` behind its own options, whose stages are timed.

    Under torchrun one that can do nothing with several processes is refused: all of them would do the same work, and
    write the same files.

    Its own function sees neither: what it works on calls `headprobe.events.emit` and `headprobe.stages.stage`.
    """

    own = inspect.signature(command, eval_str=True)

    @wraps(command)
    def watched(*given: Any, log_json: Path | None = None, profile: Path | None = None, **named: Any) -> None:
        _refuse_processes(command.__name__.removesuffix("_command"), own, bool(named.get("tensor_parallel")))
        with ExitStack() as stack:
            finish = _listen(stack, stack.enter_context(timed()), log_json, profile, bool(named.get("overwrite")))
            emit(BEGIN, command=command.__name__.removesuffix("_command"), version=__version__)
            try:
                command(*given, **named)
            except BaseException as error:
                finish()
                emit(END, code=code_of(error), error=one_line(str(error)), stages=stage_record())
                raise
            finish()
            emit(END, code=0, error=None, stages=stage_record())

    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in OPTIONS.items()]
    watched.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])  # type: ignore[attr-defined]
    watched.__annotations__ = {**inspect.get_annotations(command, eval_str=True), **OPTIONS}
    return watched  # type: ignore[return-value]


def _refuse_processes(name: str, own: inspect.Signature, shares_heads: bool) -> None:
    """Raise `OptionError` where torchrun started several processes for a command that neither deals out trials (it has
    `--shard` then) nor shares the model's heads."""
    ranks = Ranks.of_environment()
    if ranks is None or "shard" in own.parameters or shares_heads:
        return
    way = "give --tensor-parallel, or " if "tensor_parallel" in own.parameters else ""
    raise OptionError(f"torchrun started {ranks.size} processes, each of which would run all of {name}: {way}start one")


def _listen(
    stack: ExitStack, stages: Stages, log_json: Path | None, profile: Path | None, overwrite: bool
) -> Callable[[], None]:
    """Open what the options name, until `stack` ends; gives what is to be done before the last event.

    Raises `OptionError`, `OutputExistsError`, `FileAccessError`.
    """
    named = {"--log-json": log_json, "--profile": profile}
    places = {option: in_home(path) for option, path in named.items() if path is not None}
    refuse_one_place(places)
    listeners: list[Listener] = []
    finish: Callable[[], None] = lambda: None  # noqa: E731
    if log_json is not None:
        log = EventLog(places["--log-json"], stages, tell)
        stack.callback(log.close)
        listeners.append(log)
    if profile is not None and run_of_environment()[1] == 0:
        trace = Trace(places["--profile"], stages, overwrite)
        listeners.append(trace)
        finish = trace.close
    stack.enter_context(listening(*listeners, places=places))
    return finish


def code_of(error: BaseException) -> int:
    """The exit code that the command line makes of an error."""
    if isinstance(error, InterruptedRunError):
        return error.code
    if isinstance(error, HeadprobeError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return FileAccessError.exit_code if isinstance(error, OSError) else INTERNAL_ERROR

"""The process that has loaded everything: reads requests, forks for each command, and reports ids and exit codes.

`python -m tests.loaded_process` answers each line of JSON on standard input with one on standard output: `start` with
the child's id, `wait` with the id and exit code of the first of `pids` that has ended, or null where none has yet.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from typing import Any

import headprobe.cli  # what commands load when they run, so that no child does
import headprobe.commands.compress
import headprobe.commands.evaluate.needles
import headprobe.commands.evaluate.run
import headprobe.commands.knockout
import headprobe.commands.referee
import headprobe.commands.score
import headprobe.commands.scores.merge
import headprobe.commands.tune
import headprobe.pictures.needles  # noqa: F401
from headprobe.models.loading import load_model


def become(asked: dict[str, Any]) -> int:
    """In the child: what a new process would find, then the command; its exit code."""
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["env"])
    for number, place in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
        if place is not None:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0), 0o666)
            os.dup2(descriptor, number)
            os.close(descriptor)
    if asked["err"] is None:
        os.dup2(1, 2)
    if asked["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["limit"], asked["limit"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [asked["module"] or "-c", *asked["arguments"]]
    if asked["module"] is None:
        exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    return 0


def child(asked: dict[str, Any]) -> None:
    """Never returns: the process ends as one of its own would, without Python's slow taking apart of what is loaded."""
    code = 1
    try:
        code = become(asked)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            code = error.code or 0
        else:
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:
        code = 120  # as Python's own end has it
    finally:
        os._exit(code)


def ended(pids: list[int], block: bool) -> tuple[int, int] | None:
    """The first of `pids` that has ended, and its exit code (less than 0 for a signal)."""
    while True:
        for pid in pids:
            found, status = os.waitpid(pid, os.WNOHANG if len(pids) > 1 or not block else 0)
            if found:
                return pid, os.waitstatus_to_exitcode(status)
        if not block:
            return None
        time.sleep(0.01)


def main() -> None:
    """Until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, which is for whoever runs the tests
    load_model("demo", device="cpu", dtype="float32")
    gc.collect()
    gc.freeze()  # or the first collection in each child would copy all that is loaded
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "wait":
            print(json.dumps(ended(asked["pids"], asked["block"])), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            child(asked)
        print(pid, flush=True)


if __name__ == "__main__":
    main()

"""Work in a process of its own: what it takes can be measured, and if it dies nothing else does."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar, cast

from gpseg.errors import RunError

Result = TypeVar("Result")

_STATUS = Path("/proc/self/status")


def memory_of_this_process(field: str) -> int | None:
    """A size in bytes that Linux tells of this process; None on other systems.

    Args:
        field: such as "VmRSS", what is resident now, or "VmHWM", the most that ever was.
    """
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a process that has done nothing yet but import.

    The process ends with this one, and with whatever is raised here while it runs, such as by Ctrl-C.

    Args:
        function: of a module, so that it can be found there.
        arguments: its arguments; they and the result are pickled.

    Raises:
        RunError: the process died, as it does when memory runs out.
        Exception: what the function raised.
    """
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        # Imported once, in the process that the others are forked from.
        context.set_forkserver_preload([function.__module__])
    else:
        context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(there, function, arguments))
    process.start()
    there.close()
    try:
        result, error = here.recv()
    except EOFError:
        process.join()
        raise RunError(f"the process died ({_ending(process.exitcode)})") from None
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
        here.close()
    if error is not None:
        raise error
    return cast(Result, result)


def _call(there: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # Ctrl-C ends a process without a traceback of its own.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    result = wrong = None
    try:
        result = function(*arguments)
    except Exception as error:
        if os.environ.get("GPSEG_DEBUG") == "1":
            sys.excepthook(type(error), error, error.__traceback__)
        wrong = error
    there.send((result, wrong))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _ending(exitcode: int | None) -> str:
    with contextlib.suppress(ValueError):
        if exitcode is not None and exitcode < 0:
            name = signal.Signals(-exitcode).name
            return f"{name}: most likely there is too little memory" if name == "SIGKILL" else name
    return f"exit code {exitcode}: its error is above"

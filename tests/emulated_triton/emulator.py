"""Has the backend ttsem carry launches out: Triton's kernels on CPU tensors, with faults reported at their lines."""

import importlib.util
import itertools
import sys
from typing import Any

from gpseg.backends.triton import launch

_numbers = itertools.count()


def missing() -> str | None:
    """Why Triton's kernels can't be emulated here; None if they can."""
    if sys.version_info < (3, 11):
        return "ttsem needs Python 3.11"
    for name in ("triton", "ttsem"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: `make test` installs it"
    return None


def install() -> None:
    """Have launches on CPU tensors emulated in this process."""
    if missing() is None:
        launch.emulate = run


def run(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Launch a kernel on CPU tensors.

    Raises:
        ttsem.sanitize.KernelFault: it reads or writes where it must not, its programs race, or a result is undefined.
        AssertionError: it is too large to look for races.
    """
    __tracebackhide__ = True
    from tests.emulated_triton.execution import execute  # triton and ttsem: only when needed

    execute(kernel, programs, arguments, options, next(_numbers))

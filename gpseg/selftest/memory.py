"""How much memory a call takes at its peak, measured for real and in a process of its own."""

import contextlib
import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch

from gpseg import ops
from gpseg.errors import RunError

Result = TypeVar("Result")

_PRELOADED = ("gpseg.selftest.models", "torch._inductor.config")
"""What every process needs: imported once, in the process that the others are forked from."""

_M_MMAP_THRESHOLD = -3
_LARGE = 64 * 1024


def can_measure(device: torch.device) -> bool:
    """Whether this system tells the peak of memory on such a device."""
    return device.type == "cuda" or Path("/proc/self/clear_refs").exists()


def peak_rise(call: Callable[[], object], device: torch.device) -> int:
    """Bytes by which the memory in use rises, at its peak during a call, over what is in use before it.

    The call is made once before, so that code, compilers' caches and what is allocated once and for all are not
    counted; what allocators keep of that is given back to the system first. On the CPU it is the resident set as
    Linux has it (`VmHWM`), on a GPU what torch's allocator has given out. To be called in a process that has done
    nothing else: see `in_fresh_process`.
    """
    if device.type == "cuda":
        call()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # another C library than GNU's
        # Every large block is one of the system's own: it goes back when it is freed.
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    call()
    # What gpseg keeps of freed results, for the next ones, counts as what it takes.
    ops.empty_cpu_cache()
    with contextlib.suppress(AttributeError):
        libc.malloc_trim(0)
    # 5: the peak is from now on (Linux, proc(5))
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    """A size in bytes that Linux tells of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a process that has done nothing yet but import.

    Args:
        function: of a module, so that it can be found there.
        arguments: its arguments; they and the result are pickled.

    Raises:
        RunError: the process died, as it does when memory runs out.
        Exception: what the function raised.
    """
    linux = sys.platform == "linux"
    context = multiprocessing.get_context("forkserver" if linux else "spawn")
    if linux:
        context.set_forkserver_preload([*_PRELOADED])
    with ProcessPoolExecutor(1, mp_context=context, initializer=_quiet) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise RunError("the process died: most likely there is too little memory") from error


def _quiet() -> None:
    """Ctrl-C ends a process without a traceback of its own."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

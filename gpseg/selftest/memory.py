"""How much memory a call takes at its peak, measured for real."""

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from gpseg import ops
from gpseg.processes import memory_of_this_process

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
    nothing else: see `gpseg.processes.in_fresh_process`.
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
    resident = memory_of_this_process("VmRSS")
    call()
    peak = memory_of_this_process("VmHWM")
    assert resident is not None and peak is not None  # else `can_measure` says no
    return max(0, peak - resident)

"""C++ kernels for the CPU, compiled when the package is installed."""

import importlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpseg.backends.compiled import CompiledBackend
from gpseg.backends.layout import empty_in_layout_of, memory_format_of

POOLED_BYTES = 8 << 20
"""Results of this size and above are taken from a pool of freed ones, `csrc/cpu/pool.h`: malloc maps memory of
that size afresh, or gives it back when it is freed, and page faults then cost several times the kernel."""


def _load() -> str | None:
    build = "pip install --no-build-isolation ."
    try:
        importlib.import_module("gpseg._C")  # registers torch.ops.gpseg_cpp
    except ModuleNotFoundError:
        return f"gpseg._C is not built: {build}"
    except ImportError as error:
        return f"gpseg._C does not load, build it for this torch with {build} ({error})"
    return None


def _empty(x: Tensor, size: Sequence[int]) -> Tensor:
    if (
        math.prod(size) * x.element_size() < POOLED_BYTES
        or importlib.import_module("gpseg._C").cache_limit() == 0
    ):
        return empty_in_layout_of(x, size)
    channels_last = memory_format_of(x) == torch.channels_last
    y: Tensor = torch.ops.gpseg_cpp.empty.default(x, size, channels_last)
    return y


def empty_cache() -> None:
    """Give the memory of freed results that `BACKEND` keeps for its next ones back to the system."""
    if _load() is None:
        importlib.import_module("gpseg._C").empty_cache()


BACKEND = CompiledBackend("cpp", ("cpu",), _load, _empty)

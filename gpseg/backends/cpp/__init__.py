"""C++ kernels for the CPU, compiled when the package is installed."""

import importlib

import torch

from gpseg.backends.cpp.bias_act import bias_act, bias_act_backward, bias_act_double_backward
from gpseg.backends.cpp.modulated_conv import (
    demod_act,
    demod_act_backward,
    scale_channels,
    scale_channels_backward,
    upfirdn2d_demod_act,
)
from gpseg.backends.cpp.upfirdn2d import upfirdn2d

DEVICES = ("cpu",)
DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

__all__ = [
    "DEVICES",
    "DTYPES",
    "available",
    "bias_act",
    "bias_act_backward",
    "bias_act_double_backward",
    "demod_act",
    "demod_act_backward",
    "scale_channels",
    "scale_channels_backward",
    "upfirdn2d",
    "upfirdn2d_demod_act",
]


def _load() -> str | None:
    build = "pip install --no-build-isolation ."
    try:
        importlib.import_module("gpseg._C")  # registers torch.ops.gpseg_cpp
    except ModuleNotFoundError:
        return f"gpseg._C is not built: {build}"
    except ImportError as error:
        return f"gpseg._C does not load, build it for this torch with {build} ({error})"
    return None


_off = _load()


def available() -> str | None:
    """None if the kernels can be used, else one line that says why not."""
    return _off

"""Triton kernels, compiled at first use for the GPU at hand: nvcc is not needed, nor an NVIDIA GPU."""

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from gpseg.backends import convolution
from gpseg.backends import demodulation as _demodulation
from gpseg.backends.architectures import unserved_gpu
from gpseg.backends.contract import Backend
from gpseg.backends.layout import memory_format_of
from gpseg.backends.resampling import Convolution

_COMPILERS = ("gcc", "clang", "cl")
_OLDEST = (8, 0)
"""Compute capability of the oldest NVIDIA GPUs that Triton's tensor-core code and bfloat16 are tried for here."""


def _load(device: torch.device | None = None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if not os.environ.get("CC") and not any(map(shutil.which, _COMPILERS)):
        return "triton compiles what launches its kernels, and finds no C compiler: install gcc, or name one in CC"
    if torch.version.hip is None:
        unserved = unserved_gpu(device, lambda capability: capability >= _OLDEST)
        if unserved is not None:
            return f"needs compute capability 8.0, {unserved} has less"
    return None


def _in(module: str, name: str) -> Any:
    """A function of a module of kernels, which is imported, and triton with it, when the function is first called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        functions = importlib.import_module(f"gpseg.backends.triton.{module}")
        return getattr(functions, name)(*args, **kwargs)

    return staticmethod(call)


class TritonBackend:
    """The functions of this package's modules, as `gpseg.backends.contract.Backend` has them.

    Args:
        name: as in `gpseg.backends.NAMES`.
        devices: types of the devices they serve; torch calls AMD's GPUs cuda too.
        load: returns None if the kernels can be used on this device, or on any, or one line saying why not.
    """

    DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

    def __init__(
        self, name: str, devices: tuple[str, ...], load: Callable[[torch.device | None], str | None]
    ) -> None:
        self.NAME = name
        self.DEVICES = devices
        self._load = load

    upfirdn2d = _in("upfirdn2d", "upfirdn2d")
    upfirdn2d_demod_act = _in("upfirdn2d", "upfirdn2d_demod_act")
    bias_act = _in("bias_act", "bias_act")
    bias_act_backward = _in("bias_act", "bias_act_backward")
    bias_act_double_backward = _in("bias_act", "bias_act_double_backward")
    scale_channels = _in("bias_act", "scale_channels")
    scale_channels_backward = _in("bias_act", "scale_channels_backward")
    demod_act = _in("bias_act", "demod_act")
    demod_act_backward = _in("bias_act", "demod_act_backward")
    fused_conv = _in("modulated_conv", "fused_conv")
    fused_conv_input_grad = _in("modulated_conv", "fused_conv_input_grad")
    fused_conv_weight_grad = _in("modulated_conv", "fused_conv_weight_grad")

    demodulation = staticmethod(_demodulation.demodulation)
    demodulation_backward = staticmethod(_demodulation.demodulation_backward)
    conv2d = staticmethod(convolution.conv2d)
    conv2d_weight_grad = staticmethod(convolution.conv2d_weight_grad)

    def available(self, device: torch.device | None = None) -> str | None:
        """None if the kernels can be used on this device, or on any, else one line that says why not."""
        return self._load(device)

    def fuses(self, x: Tensor, w: Tensor, conv: Convolution, direction: str) -> bool:
        """Whether a fused kernel serves this convolution: channels_last, read in pieces of 16 bytes, at most 3×3.

        Not float64, whose sums take twice the registers, and which nobody trains in: torch's convolution serves it.
        """
        x_channels, c_channels = w.shape[:2] if conv.transposed else (w.shape[1], w.shape[0])
        read = c_channels if direction == "input_grad" else x_channels
        return (
            x.dtype in (torch.float16, torch.bfloat16, torch.float32)
            and memory_format_of(x) == torch.channels_last
            and read * x.element_size() % 16 == 0
            and max(w.shape[2:]) <= 3
            and conv.stride <= 2
        )

    def fuses_gradients(self, x: Tensor, w: Tensor, conv: Convolution) -> bool:
        """There is no such kernel."""
        return False

    def fused_conv_gradients(self, *_: object) -> NoReturn:
        """There is none."""
        raise NotImplementedError


BACKEND: Backend = TritonBackend("triton", ("cuda",), _load)

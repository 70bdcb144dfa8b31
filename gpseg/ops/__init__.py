"""StyleGAN's operators: modulated convolution, fused bias-activation and upfirdn2d, with their gradients.

Each is a registered torch op with a fake kernel, served by the fastest backend that declares it can
(`backends()`), or by the one that `use_backend` forces. `ops.benchmark = True` has the ways of carrying out a
convolution, and the launch configurations of Triton's kernels, timed once for each kind of problem, as
`torch.backends.cudnn.benchmark` does.
"""

import sys
from types import ModuleType

from gpseg.backends import backends, measured, use_backend
from gpseg.backends.cpp import empty_cache as empty_cpu_cache
from gpseg.ops.bias_act import bias_act, bias_act_backward, bias_act_double_backward
from gpseg.ops.convolution import conv2d_resample, no_weight_grad
from gpseg.ops.modulated_conv import (
    modulated_conv2d,
    modulated_conv2d_act,
    modulated_conv2d_act_backward,
)
from gpseg.ops.registration import decompositions
from gpseg.ops.upfirdn2d import (
    downsample2d,
    filter2d,
    setup_filter,
    upfirdn2d,
    upsample2d,
)

__all__ = [
    "backends",
    "bias_act",
    "bias_act_backward",
    "bias_act_double_backward",
    "conv2d_resample",
    "decompositions",
    "downsample2d",
    "empty_cpu_cache",
    "filter2d",
    "modulated_conv2d",
    "modulated_conv2d_act",
    "modulated_conv2d_act_backward",
    "no_weight_grad",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
    "use_backend",
]


class _Ops(ModuleType):
    """This module, with `benchmark` as a property that reaches where it is used."""

    @property
    def benchmark(self) -> bool:
        return measured.benchmark

    @benchmark.setter
    def benchmark(self, on: bool) -> None:
        measured.benchmark = on


sys.modules[__name__].__class__ = _Ops

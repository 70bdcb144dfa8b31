"""Plain PyTorch, any device: the reference every other backend is held against."""

import torch

from gpseg.backends.eager.bias_act import bias_act, bias_act_backward, bias_act_double_backward
from gpseg.backends.eager.modulated_conv import (
    demod_act,
    demod_act_backward,
    scale_channels,
    scale_channels_backward,
    upfirdn2d_demod_act,
)
from gpseg.backends.eager.upfirdn2d import upfirdn2d

DEVICES = None
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


def available() -> str | None:
    """None: plain PyTorch is always there."""
    return None

"""Plain PyTorch, any device: the reference every other backend is held against."""

from typing import NoReturn

import torch

from gpseg.backends import convolution
from gpseg.backends import demodulation as _demodulation
from gpseg.backends.contract import Backend
from gpseg.backends.eager import bias_act as _bias_act
from gpseg.backends.eager import modulated_conv as _modulated_conv
from gpseg.backends.eager import upfirdn2d as _upfirdn2d


class EagerBackend:
    """The functions of this package's modules, as `gpseg.backends.contract.Backend` has them."""

    NAME = "eager"
    DEVICES = None
    DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

    upfirdn2d = staticmethod(_upfirdn2d.upfirdn2d)
    bias_act = staticmethod(_bias_act.bias_act)
    bias_act_backward = staticmethod(_bias_act.bias_act_backward)
    bias_act_double_backward = staticmethod(_bias_act.bias_act_double_backward)
    scale_channels = staticmethod(_modulated_conv.scale_channels)
    scale_channels_backward = staticmethod(_modulated_conv.scale_channels_backward)
    demod_act = staticmethod(_modulated_conv.demod_act)
    demod_act_backward = staticmethod(_modulated_conv.demod_act_backward)
    upfirdn2d_demod_act = staticmethod(_modulated_conv.upfirdn2d_demod_act)

    demodulation = staticmethod(_modulated_conv.demodulation)
    demodulation_backward = staticmethod(_demodulation.demodulation_backward)
    conv2d = staticmethod(convolution.conv2d)
    conv2d_weight_grad = staticmethod(convolution.conv2d_weight_grad)

    def available(self, device: torch.device | None = None) -> str | None:
        """None: plain PyTorch is always there."""
        return None

    def fuses(self, *_: object) -> bool:
        """Nothing is fused."""
        return False

    fuses_gradients = fuses

    def fused_conv(self, *_: object) -> NoReturn:
        """There is none."""
        raise NotImplementedError

    fused_conv_input_grad = fused_conv
    fused_conv_weight_grad = fused_conv
    fused_conv_gradients = fused_conv


BACKEND: Backend = EagerBackend()

"""Parts of `gpseg.ops` that are no operators of their own, to be timed by themselves."""

import torch
from torch import Tensor

from gpseg import backends
from gpseg.backends.contract import Epilogue
from gpseg.backends.layout import accumulate_dtype


def fir_epilogue(
    x: Tensor,
    demodulation: Tensor,
    bias: Tensor,
    noise: Tensor,
    *,
    f: Tensor,
    clamp: float,
) -> Tensor:
    """What follows the convolution in a synthesis layer with up = 2: filter, demodulate, add noise, lrelu; no gradient.

    Args:
        x: what the transposed convolution gave, `[N, O, H + 1, W + 1]`.
        demodulation: `[N, O]`.
        bias: `[O]`.
        noise: `[H, W]`.
        f: the resampling filter, 4 taps.
        clamp: bound on the result.

    Returns:
        `[N, O, H, W]`.
    """
    d = demodulation.to(accumulate_dtype(x.dtype))
    epilogue = Epilogue(d, noise, bias, "lrelu", 0.2, 2**0.5, clamp)
    with torch.no_grad():
        y, _ = backends.select(x).upfirdn2d_demod_act(
            x, f, (1, 1), (1, 1), (1, 1, 1, 1), False, 4.0, epilogue, False
        )
    return y

"""Modulated convolution the usual way: a weight for every sample, and one convolution with a group for each."""

from typing import Any

from torch import Tensor

from gpseg.selftest import textbook


def modulated_conv2d_act(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    **activation: Any,
) -> Tensor:
    """As `gpseg.ops.modulated_conv2d_act`, with weights `[N · O, I, kh, kw]`."""
    n = x.shape[0]
    w = weight * styles[:, None, :, None, None].to(weight.dtype)
    if demodulate:
        norms = w.float().square().sum([2, 3, 4], keepdim=True)
        w = w * (norms + 1e-8).rsqrt().to(w.dtype)
    y = textbook.conv2d_resample(
        x.reshape(1, -1, *x.shape[2:]),
        w.flatten(0, 1),
        resample_filter,
        up,
        down,
        padding,
        groups=n,
        flip_weight=flip_weight,
    )
    y = y.unflatten(1, (n, -1)).squeeze(0)
    if noise is not None:
        y = y + noise.to(y.dtype)
    return textbook.bias_act(y, bias, 1, **{"act": "lrelu", **activation})


def modulated_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor | None = None, **options: Any
) -> Tensor:
    """`modulated_conv2d_act` without bias and activation."""
    return modulated_conv2d_act(x, weight, styles, noise=noise, act="linear", **options)

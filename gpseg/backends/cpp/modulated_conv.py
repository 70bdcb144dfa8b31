"""The passes around a modulated convolution; arguments as in `gpseg.backends.eager.modulated_conv`."""

import torch
from torch import Tensor

from gpseg.backends.cpp.arguments import as_gradient, for_sums, kernels, sums_for
from gpseg.backends.cpp.upfirdn2d import exact, output_like
from gpseg.backends.layout import empty_in_layout_of, in_layout_of

_IDENTITY = ("linear", 0.0, 1.0, -1.0)


def scale_channels(x: Tensor, s: Tensor) -> Tensor:
    """x · s for `x [N, C, H, W]`, `s [N, C]`."""
    return demod_act(x, s, None, None, *_IDENTITY)


def scale_channels_backward(x: Tensor, s: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (dx, ds) of `scale_channels`, in one pass."""
    dx, ds, _, _ = demod_act_backward(dy, x, s, None, None, *_IDENTITY)
    assert ds is not None
    return dx, ds


def demod_act(
    c: Tensor,
    d: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    """clamp(gain · act(d · c + noise + b)) for `c [N, O, H, W]`, `d [N, O]`, noise [N|1, 1, H, W] or [H, W]."""
    y = empty_in_layout_of(c, c.shape)
    side = for_sums(d, c), for_sums(noise, c), for_sums(b, c)
    kernels.demod_act.default(in_layout_of(c, c), *side, act, alpha, gain, clamp, y)
    return y


def demod_act_backward(
    dy: Tensor,
    c: Tensor,
    d: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dc, dd, dnoise, db) of `demod_act`; None where the input is None."""
    dc = empty_in_layout_of(c, c.shape)
    side = for_sums(d, c), for_sums(noise, c), for_sums(b, c)
    dd, dnoise, db = sums_for(d, c), sums_for(noise, c), sums_for(b, c)
    kernels.demod_act_backward.default(
        in_layout_of(dy, c), in_layout_of(c, c), *side, act, alpha, gain, clamp, dc, dd, dnoise, db
    )
    return dc, as_gradient(dd, d), as_gradient(dnoise, noise), as_gradient(db, b)


def upfirdn2d_demod_act(
    x: Tensor,
    f: Tensor | None,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    fir_gain: float,
    d: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """`demod_act(upfirdn2d(x, …), …)` in one pass over memory, and the filter's result c too if `keep`."""
    y = output_like(x, f, up, down, padding)
    c = torch.empty_like(y) if keep else None
    kernels.upfirdn2d_demod_act.default(
        in_layout_of(x, x),
        exact(f),
        up,
        down,
        padding,
        flip_filter,
        fir_gain,
        for_sums(d, x),
        for_sums(noise, x),
        for_sums(b, x),
        act,
        alpha,
        gain,
        clamp,
        y,
        c,
    )
    return y, c

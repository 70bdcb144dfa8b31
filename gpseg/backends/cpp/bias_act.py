"""bias_act and its two derivatives; arguments and results as in `gpseg.backends.eager.bias_act`."""

import math

from torch import Tensor

from gpseg.backends.cpp.arguments import as_gradient, for_sums, kernels, sums_for
from gpseg.backends.layout import empty_in_layout_of, in_layout_of


def _flattened(x: Tensor, dim: int) -> tuple[int, int, int]:
    """Sizes of dense x in memory as [outer, channels, inner], the channels being dimension `dim`."""
    order = range(x.ndim) if x.is_contiguous() else (0, 2, 3, 1)
    sizes = [x.shape[i] for i in order]
    at = order.index(dim)
    return math.prod(sizes[:at]), sizes[at], math.prod(sizes[at + 1 :])


def bias_act(
    x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float
) -> Tensor:
    """y = clamp(gain * act(x + b)); a negative clamp means none."""
    x, y = in_layout_of(x, x), empty_in_layout_of(x, x.shape)
    flat = _flattened(x, dim)
    kernels.bias_act.default(x, for_sums(b, x), *flat, act, alpha, gain, clamp, y)
    return y


def bias_act_backward(
    dy: Tensor,
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor | None]:
    """Gradients (dx, db) of `bias_act`; db is None without a bias."""
    dy, x = in_layout_of(dy, x), in_layout_of(x, x)
    dx, db = empty_in_layout_of(x, x.shape), sums_for(b, x)
    flat = _flattened(x, dim)
    kernels.bias_act_backward.default(dy, x, for_sums(b, x), *flat, act, alpha, gain, clamp, dx, db)
    return dx, as_gradient(db, b)


def bias_act_double_backward(
    ddx: Tensor | None,
    ddb: Tensor | None,
    dy: Tensor,
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients with respect to (dy, x, b) of <dx, ddx> + <db, ddb>, the outputs of the backward."""
    dy, x = in_layout_of(dy, x), in_layout_of(x, x)
    ddy, d2x, d2b = empty_in_layout_of(x, x.shape), empty_in_layout_of(x, x.shape), sums_for(b, x)
    kernels.bias_act_double_backward.default(
        None if ddx is None else in_layout_of(ddx, x),
        for_sums(ddb, x),
        dy,
        x,
        for_sums(b, x),
        *_flattened(x, dim),
        act,
        alpha,
        gain,
        clamp,
        ddy,
        d2x,
        d2b,
    )
    return ddy, d2x, as_gradient(d2b, b)

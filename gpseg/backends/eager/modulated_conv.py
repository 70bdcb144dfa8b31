"""The passes around the convolution of a modulated layer: style scale, demodulation, epilogue."""

from torch import Tensor

from gpseg.backends.contract import Epilogue
from gpseg.backends.demodulation import inverse_norms, squared_norms
from gpseg.backends.eager.bias_act import bias_act, bias_act_backward
from gpseg.backends.eager.upfirdn2d import upfirdn2d
from gpseg.backends.layout import accumulate_dtype, in_layout_of


def scale_channels(x: Tensor, s: Tensor) -> Tensor:
    """x · s for `x [N, C, H, W]`, `s [N, C]`."""
    return in_layout_of(x.to(accumulate_dtype(x.dtype)) * s[:, :, None, None], x)


def scale_channels_backward(x: Tensor, s: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (dx, ds) of `scale_channels`."""
    g = dy.to(accumulate_dtype(x.dtype))
    ds = (g * x.to(g.dtype)).sum([2, 3])
    return in_layout_of(g * s[:, :, None, None], x), ds.to(s.dtype)


def demodulation(weight: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """W2 `[O, I]` and d `[N, O]` for styles `[N, I]`."""
    w2 = squared_norms(weight).contiguous()
    return w2, inverse_norms(w2, s)


def _preactivation(c: Tensor, d: Tensor | None, noise: Tensor | None) -> Tensor:
    z = c.to(accumulate_dtype(c.dtype))
    if d is not None:
        z = z * d[:, :, None, None]
    if noise is not None:
        z = z + noise.to(z.dtype)
    return z


def demod_act(c: Tensor, epilogue: Epilogue, overwrites: bool = False) -> Tensor:
    """clamp(gain · act(d · c + noise + b)) for `c [N, O, H, W]`, always a new tensor."""
    d, noise, b, act, alpha, gain, clamp = epilogue
    return in_layout_of(bias_act(_preactivation(c, d, noise), b, 1, act, alpha, gain, clamp), c)


def demod_act_backward(
    dy: Tensor,
    c: Tensor,
    epilogue: Epilogue,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dc, dd, dnoise, db) of `demod_act`; None where the input is None."""
    d, noise, b, act, alpha, gain, clamp = epilogue
    z = _preactivation(c, d, noise)
    dz, db = bias_act_backward(dy.to(z.dtype), z, b, 1, act, alpha, gain, clamp)
    dd = None if d is None else (dz * c.to(dz.dtype)).sum([2, 3]).to(d.dtype)
    dnoise = None
    if noise is not None:
        dnoise = dz.sum(1, keepdim=True).sum_to_size(noise.shape).to(noise.dtype)
    dc = dz if d is None else dz * d[:, :, None, None]
    return in_layout_of(dc, c), dd, dnoise, db


def upfirdn2d_demod_act(
    x: Tensor,
    f: Tensor | None,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    fir_gain: float,
    epilogue: Epilogue,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """`demod_act(upfirdn2d(x, …), …)`, and the filter's result c too if `keep`."""
    c = upfirdn2d(x, f, up, down, padding, flip_filter, fir_gain)
    return demod_act(c, epilogue), c if keep else None

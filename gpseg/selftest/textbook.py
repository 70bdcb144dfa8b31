"""The operators as they are usually composed of PyTorch calls, with the signatures of `gpseg.ops`.

Zeros are inserted by reshape and pad, filters are grouped convolutions, and bias, activation, gain and clamp are calls
of their own. Gradients are PyTorch's. This is what the benchmarks compare with and, in float64, what tests do.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_ROOT_TWO = 2**0.5
_ACTIVATIONS: dict[str, Any] = {
    "linear": (lambda x, alpha: x, 1.0),
    "relu": (lambda x, alpha: functional.relu(x), _ROOT_TWO),
    "lrelu": (
        lambda x, alpha: functional.leaky_relu(x, 0.2 if alpha is None else alpha),
        _ROOT_TWO,
    ),
    "tanh": (lambda x, alpha: torch.tanh(x), 1.0),
    "sigmoid": (lambda x, alpha: torch.sigmoid(x), 1.0),
    "elu": (lambda x, alpha: functional.elu(x), 1.0),
    "selu": (lambda x, alpha: functional.selu(x), 1.0),
    "softplus": (lambda x, alpha: functional.softplus(x, threshold=40), 1.0),
    "swish": (lambda x, alpha: functional.silu(x), _ROOT_TWO),
}


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _four(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    if isinstance(padding, int) or len(padding) == 2:
        x, y = _pair(padding)
        return x, x, y, y
    x0, x1, y0, y1 = padding
    return x0, x1, y0, y1


def _size(f: Tensor | None) -> tuple[int, int]:
    return (1, 1) if f is None else (f.shape[0], f.shape[-1])


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Zeros by reshape and pad, one or two grouped convolutions, a strided slice."""
    n, c, h, w = x.shape
    (upx, upy), (downx, downy), pads = _pair(up), _pair(down), _four(padding)
    x = x.reshape(n, c, h, 1, w, 1)
    x = functional.pad(x, [0, upx - 1, 0, 0, 0, upy - 1]).reshape(n, c, h * upy, w * upx)
    x = functional.pad(x, pads)
    f = torch.ones(1, 1, device=x.device) if f is None else f
    f = (f * gain ** (f.ndim / 2)).to(x.dtype)
    f = f if flip_filter else f.flip(list(range(f.ndim)))
    for kernel in [f] if f.ndim == 2 else [f[None, :], f[:, None]]:
        x = functional.conv2d(x, kernel.repeat(c, 1, 1, 1), groups=c)
    return x[:, :, ::downy, ::downx]


def filter2d(
    x: Tensor, f: Tensor | None, padding: int = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """The same size out as in."""
    fh, fw = _size(f)
    pads = [padding + p for p in (fw // 2, (fw - 1) // 2, fh // 2, (fh - 1) // 2)]
    return upfirdn2d(x, f, padding=pads, flip_filter=flip_filter, gain=gain)


def _up_padding(f: Tensor | None, up: int) -> list[int]:
    fh, fw = _size(f)
    return [(fw + up - 1) // 2, (fw - up) // 2, (fh + up - 1) // 2, (fh - up) // 2]


def _down_padding(f: Tensor | None, down: int) -> list[int]:
    fh, fw = _size(f)
    return [(fw - down + 1) // 2, (fw - down) // 2, (fh - down + 1) // 2, (fh - down) // 2]


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: int = 2,
    padding: int = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """`up` times the size."""
    pads = [padding + p for p in _up_padding(f, up)]
    return upfirdn2d(x, f, up=up, padding=pads, flip_filter=flip_filter, gain=gain * up**2)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: int = 2,
    padding: int = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """The size divided by `down`."""
    pads = [padding + p for p in _down_padding(f, down)]
    return upfirdn2d(x, f, down=down, padding=pads, flip_filter=flip_filter, gain=gain)


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Add, activate, multiply, clamp."""
    function, default_gain = _ACTIVATIONS[act]
    if b is not None:
        x = x + b.to(x.dtype).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    x = function(x, alpha)
    gain = default_gain if gain is None else gain
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """A strided or transposed convolution and a filter; `up` only with an odd square kernel and without `down`."""
    if not flip_weight:
        w = w.flip([2, 3])
    if up == 1 and down == 1:
        return functional.conv2d(x, w, padding=padding, groups=groups)
    k = w.shape[2]
    if up == 1:
        pads = [padding + p for p in _down_padding(f, down)]
        x = upfirdn2d(x, f, padding=pads, flip_filter=flip_filter)
        return functional.conv2d(x, w, stride=down, groups=groups)
    if down != 1:
        raise NotImplementedError("textbook: up together with down")
    px0, px1, py0, py1 = (padding + p for p in _up_padding(f, up))
    w = w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip([2, 3])
    x = functional.conv_transpose2d(x, w, stride=up, groups=groups)
    # the transposed convolution starts k - 1 early, and ends up - 1 short of the trailing zeros
    pads = [px0 - k + 1, px1 - k + up, py0 - k + 1, py1 - k + up]
    return upfirdn2d(x, f, padding=pads, flip_filter=flip_filter, gain=up**2)


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
    act: str = "lrelu",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Scale by the styles, convolve, scale by the demodulation, add noise, bias, activate."""
    x = conv2d_resample(
        x * styles[:, :, None, None].to(x.dtype),
        weight,
        resample_filter,
        up,
        down,
        padding,
        flip_weight=flip_weight,
    )
    if demodulate:
        squared = (styles.square()[:, None, :] * weight.square().sum([2, 3])[None]).sum(2)
        x = x * (squared + 1e-8).rsqrt()[:, :, None, None].to(x.dtype)
    if noise is not None:
        x = x + noise.to(x.dtype)
    return bias_act(x, bias, 1, act, alpha, gain, clamp)


def modulated_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor | None = None, **options: Any
) -> Tensor:
    """`modulated_conv2d_act` without bias and activation."""
    return modulated_conv2d_act(x, weight, styles, noise=noise, act="linear", **options)


def fir_epilogue(
    x: Tensor, demodulation: Tensor, bias: Tensor, noise: Tensor, *, f: Tensor, clamp: float
) -> Tensor:
    """`gpseg.selftest.parts.fir_epilogue`: what `modulated_conv2d_act` with up = 2 does after its convolution."""
    x = upfirdn2d(x, f, padding=1, gain=4)
    x = x * demodulation[:, :, None, None].to(x.dtype) + noise
    return bias_act(x, bias, 1, "lrelu", clamp=clamp)


__all__ = [
    "bias_act",
    "conv2d_resample",
    "downsample2d",
    "filter2d",
    "fir_epilogue",
    "modulated_conv2d",
    "modulated_conv2d_act",
    "upfirdn2d",
    "upsample2d",
]

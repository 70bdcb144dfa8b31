"""upfirdn2d as its definition reads: insert zeros, pad, filter, decimate."""

import torch
from torch import Tensor
from torch.nn import functional

from gpseg.backends.layout import accumulate_dtype, in_layout_of


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """Upsample, pad, filter and downsample `x [N, C, H, W]`; arguments as in `gpseg.ops.upfirdn2d`."""
    n, c, h, w = x.shape
    (upx, upy), (downx, downy), (px0, px1, py0, py1) = up, down, padding
    z = x.to(accumulate_dtype(x.dtype)).reshape(n, c, h, 1, w, 1)
    z = functional.pad(z, [0, upx - 1, 0, 0, 0, upy - 1]).reshape(n, c, h * upy, w * upx)
    z = functional.pad(z, [px0, px1, py0, py1])  # negative amounts crop
    if f is None:
        z = z * gain
    else:
        taps = f.to(z.dtype) if flip_filter else f.to(z.dtype).flip(list(range(f.ndim)))
        kernels = [taps] if f.ndim == 2 else [taps[:, None], taps[None, :]]
        for kernel in kernels:
            z = functional.conv2d(z, kernel.expand(c, 1, *kernel.shape), groups=c)
        z = z * gain
    z = z[:, :, ::downy, ::downx]
    return in_layout_of(z, x)

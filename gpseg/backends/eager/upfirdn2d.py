"""upfirdn2d as its definition reads: insert zeros, pad, filter, decimate."""

from torch import Tensor
from torch.nn import functional

from gpseg.backends.layout import accumulate_dtype, empty_in_layout_of, in_layout_of
from gpseg.backends.resampling import filter_taps, filtered_size


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
    size = filtered_size(x.shape, filter_taps(f), up, down, padding)
    if 0 in size:  # torch's padding and convolution refuse some of these
        return empty_in_layout_of(x, size)
    n, c, h, w = x.shape
    (upx, upy), (downx, downy) = up, down
    z = x.to(accumulate_dtype(x.dtype)).reshape(n, c, h, 1, w, 1)
    z = functional.pad(z, [0, upx - 1, 0, 0, 0, upy - 1]).reshape(n, c, h * upy, w * upx)
    # negative amounts crop; in two steps, as more may go on one side than there is before the other is padded
    z = functional.pad(z, [max(p, 0) for p in padding])
    z = functional.pad(z, [min(p, 0) for p in padding])
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

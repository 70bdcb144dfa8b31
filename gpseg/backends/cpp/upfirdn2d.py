"""upfirdn2d in one polyphase pass; arguments as in `gpseg.backends.eager.upfirdn2d`."""

import torch
from torch import Tensor

from gpseg.backends.cpp.arguments import kernels
from gpseg.backends.layout import empty_in_layout_of, in_layout_of
from gpseg.backends.resampling import filter_taps, filtered_size


def output_like(
    x: Tensor,
    f: Tensor | None,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> Tensor:
    """An uninitialised tensor for the result."""
    return empty_in_layout_of(x, filtered_size(x.shape, filter_taps(f), up, down, padding))


def exact(f: Tensor | None) -> Tensor | None:
    """The filter in float64, as the kernels take it."""
    return None if f is None else f.to(torch.float64).contiguous()


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """Upsample, pad, filter and downsample `x [N, C, H, W]`."""
    y = output_like(x, f, up, down, padding)
    kernels.upfirdn2d.default(in_layout_of(x, x), exact(f), up, down, padding, flip_filter, gain, y)
    return y

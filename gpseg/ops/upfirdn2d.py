"""Upsampling, FIR filtering and downsampling in one pass (Karras et al. 2019, arXiv 1912.04958)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpseg import backends
from gpseg.backends.layout import empty_in_layout_of
from gpseg.backends.resampling import (
    adjoint_padding,
    down_padding,
    filter_taps,
    filtered_size,
    up_padding,
)
from gpseg.ops.arguments import check_filter, check_images, filter_padding, pair
from gpseg.ops.registration import register

Factor = int | Sequence[int]
Padding = int | Sequence[int]


def _kernel(
    x: Tensor,
    f: Tensor | None,
    up: list[int],
    down: list[int],
    padding: list[int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    (upx, upy), (downx, downy), (x0, x1, y0, y1) = up, down, padding
    return backends.select(x).upfirdn2d(
        x, f, (upx, upy), (downx, downy), (x0, x1, y0, y1), flip_filter, gain
    )


def _fake(
    x: Tensor,
    f: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    return empty_in_layout_of(x, filtered_size(x.shape, filter_taps(f), up, down, padding))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, f, ctx.up, ctx.down, ctx.padding, ctx.flip_filter, ctx.gain = inputs
    ctx.size = x.shape
    ctx.save_for_backward(f)
    ctx.backend = backends.forced_backend()


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    (f,) = ctx.saved_tensors
    padding = adjoint_padding(filter_taps(f), ctx.up, ctx.down, ctx.padding, ctx.size, dy.shape)
    with backends.use_backend(ctx.backend):
        dx = _upfirdn2d(dy, f, ctx.down, ctx.up, padding, not ctx.flip_filter, ctx.gain)
    return dx, None, None, None, None, None, None


_upfirdn2d = register(
    "upfirdn2d(Tensor x, Tensor? f, SymInt[] up, SymInt[] down, SymInt[] padding,"
    " bool flip_filter, float gain) -> Tensor",
    _kernel,
    _fake,
    _setup,
    _backward,
)


def setup_filter(
    f: Tensor | Sequence[float] | Sequence[Sequence[float]] | float | None,
    device: torch.device | str | None = None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Make a filter for `upfirdn2d` out of its taps.

    Args:
        f: taps, 1-D or 2-D; a number is one tap, None the identity.
        device: device of the result.
        normalize: divide by the sum, so that the filter keeps the mean.
        flip_filter: mirror the taps.
        gain: multiply the filtered signal by this.
        separable: keep a 1-D filter 1-D (applied along both axes) or make it 2-D; by default it is kept if it
            has 8 taps or more.

    Returns:
        float32 filter `[taps]` (separable) or `[fh, fw]`.

    Raises:
        ValueError: the taps are not 1-D or 2-D, are empty, sum to 0 while `normalize` is on (of which torch.compile sees
            nothing), or a 2-D filter or a negative gain is to be separable.
    """
    if isinstance(f, Tensor):
        taps = f.to(torch.float32)
    else:
        # Read where it has values, also where networks are made without memory (on the meta device).
        taps = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32, device="cpu")
        # not torch.get_default_device(), which torch.compile does not trace
        device = torch.empty(0).device if device is None else device
    taps = taps[None] if taps.ndim == 0 else taps
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(
            f"a filter has one or two dimensions and at least one tap, got {[*taps.shape]}"
        )
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= 8
    if separable and taps.ndim != 1:
        raise ValueError(f"a filter of size {[*taps.shape]} can't be separable: give its 1-D taps")
    if taps.ndim == 1 and not separable:
        taps = taps.outer(taps)
    if taps.ndim == 1 and gain < 0:
        raise ValueError(
            f"gain {gain}: a separable filter, applied along both axes, can't change the sign"
        )
    if normalize:
        if not torch.compiler.is_compiling() and taps.sum() == 0:
            raise ValueError(
                "the filter's taps sum to 0: it can't be normalised, pass normalize=False"
            )
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    return (taps * gain ** (taps.ndim / 2)).to(device)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 1,
    down: Factor = 1,
    padding: Padding = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Insert zeros, pad, filter and decimate; differentiable to any order.

    Args:
        x: `[N, C, H, W]`, floating.
        f: filter `[taps]` (applied along both axes) or `[fh, fw]`, on x's device; None for none. Takes no
            gradient.
        up: up - 1 zeros follow each pixel; int or (x, y), at least 1.
        down: every down-th sample is kept; int or (x, y), at least 1.
        padding: zeros around the upsampled image, negative to crop; int, (x, y) or (x0, x1, y0, y1).
        flip_filter: False: true convolution; True: correlation.
        gain: multiplies the result; folded into the taps, in the filter's type.

    Returns:
        `[N, C, outH, outW]` in x's type and layout, with
        outW = (W·upx + x0 + x1 - fw + downx) // downx, and outH likewise.

    Raises:
        TypeError: x or f is not a floating tensor.
        ValueError: a size, factor, padding or device does not fit; the message says which.
    """
    taps = _checked_taps("upfirdn2d", x, f)
    up_xy, down_xy = pair("up", up, least=1), pair("down", down, least=1)
    return _filtered(
        "upfirdn2d", x, f, taps, up_xy, down_xy, filter_padding(padding), flip_filter, gain
    )


def _checked_taps(op: str, x: Tensor, f: Tensor | None) -> tuple[int, int]:
    """Height and width of a filter that is one for images x."""
    check_images(op, "x", x)
    check_filter(op, f, x)
    return filter_taps(f)


def _filtered(
    op: str,
    x: Tensor,
    f: Tensor | None,
    taps: tuple[int, int],
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    _, _, out_h, out_w = filtered_size(x.shape, taps, up, down, padding)
    if out_h < 1 or out_w < 1:
        raise ValueError(
            f"{op}: the result would be {out_h} x {out_w}; an input of {x.shape[2]} x {x.shape[3]} with"
            f" up={up}, padding={padding} is smaller than the filter of {taps} taps"
        )
    if f is not None and gain != 1:
        f, gain = f * abs(gain) ** (f.ndim / 2), math.copysign(1, gain)
    y: Tensor = _upfirdn2d(x, f, up, down, padding, flip_filter, float(gain))
    return y


def filter2d(
    x: Tensor, f: Tensor | None, padding: Padding = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """Filter at the same resolution; arguments as in `upfirdn2d`, `padding` on top of what keeps the size."""
    fh, fw = taps = _checked_taps("filter2d", x, f)
    px0, px1, py0, py1 = filter_padding(padding)
    pads = (px0 + fw // 2, px1 + (fw - 1) // 2, py0 + fh // 2, py1 + (fh - 1) // 2)
    return _filtered("filter2d", x, f, taps, (1, 1), (1, 1), pads, flip_filter, gain)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 2,
    padding: Padding = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Upsample `up` times, keeping the mean; arguments as in `upfirdn2d`, `padding` on top of what up needs."""
    taps = _checked_taps("upsample2d", x, f)
    upx, upy = up_xy = pair("up", up, least=1)
    pads = up_padding(filter_padding(padding), taps, up_xy)
    return _filtered("upsample2d", x, f, taps, up_xy, (1, 1), pads, flip_filter, gain * upx * upy)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Factor = 2,
    padding: Padding = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Downsample `down` times; arguments as in `upfirdn2d`, `padding` on top of what down needs."""
    taps = _checked_taps("downsample2d", x, f)
    down_xy = pair("down", down, least=1)
    pads = down_padding(filter_padding(padding), taps, down_xy)
    return _filtered("downsample2d", x, f, taps, (1, 1), down_xy, pads, flip_filter, gain)

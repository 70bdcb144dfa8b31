"""Convolution differentiable to any order, with weight gradients that can be left out, and resampling."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gpseg import backends
from gpseg.backends import convolution
from gpseg.backends.layout import empty_in_layout_of, memory_format_of
from gpseg.backends.resampling import Fir, filter_taps, oriented_weight, plan_resampling
from gpseg.ops.arguments import check_device, check_filter, check_images, filter_padding
from gpseg.ops.registration import in_autocast_dtype, register
from gpseg.ops.upfirdn2d import Padding, upfirdn2d

# An entry for each `no_weight_grad` in force. Process-wide, not thread-local: for GPU tensors autograd runs the
# backward in threads of its own. Not a flag to restore: those of several threads may end in any order.
_off: list[None] = []

# Whether `weight_grad` is in force. A backward pass uses it while others run, in other threads.
_here = threading.local()


def weight_grad_is_off() -> bool:
    """Whether `no_weight_grad` is in force, in this thread not undone by `weight_grad`.

    Never for what torch.compile traces: its graphs hold no such state, and would stay without the gradient.
    """
    return bool(_off) and not getattr(_here, "on", False) and not torch.compiler.is_compiling()


@contextmanager
def no_weight_grad() -> Iterator[None]:
    """Within it, convolutions give no gradient to their weights (R1 and path length never read it).

    It acts on backward passes run inside it, on all threads; their gradients with respect to the
    input stay differentiable in everything, weights included.
    """
    _off.append(None)
    try:
        yield
    finally:
        _off.pop()


@contextmanager
def weight_grad() -> Iterator[None]:
    """Within it, this thread's backward passes give gradients to convolution weights, inside `no_weight_grad` too."""
    before, _here.on = getattr(_here, "on", False), True
    try:
        yield
    finally:
        _here.on = before


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride, ctx.padding, ctx.transposed, _, ctx.groups = inputs
    ctx.save_for_backward(x, weight)
    ctx.backend = backends.forced_backend()


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    with backends.use_backend(ctx.backend):
        return _gradients(ctx, dy)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    dx, dw = None, None
    # Gradients come in the layout of what they belong to, or the ops before this one would have to copy them.
    dy = dy.contiguous(memory_format=memory_format_of(x))
    if ctx.needs_input_grad[0]:
        extra = [0, 0]
        if not ctx.transposed:
            extra = convolution.output_padding(
                x.shape, dy.shape, weight.shape, ctx.stride, ctx.padding
            )
        dx = _conv2d(dy, weight, ctx.stride, ctx.padding, not ctx.transposed, extra, ctx.groups)
    if ctx.needs_input_grad[1] and not weight_grad_is_off():
        pair = (dy, x) if ctx.transposed else (x, dy)
        dw = _conv2d_weight_grad(*pair, weight.shape, ctx.stride, ctx.padding, ctx.groups)
    return dx, dw, None, None, None, None, None


_conv2d = register(
    "conv2d(Tensor x, Tensor weight, int[] stride, int[] padding, bool transposed,"
    " SymInt[] output_padding, int groups) -> Tensor",
    lambda x, *arguments: backends.select(x).conv2d(x, *arguments),
    lambda x, weight, *arguments: empty_in_layout_of(
        x, convolution.convolution_size(x.shape, weight.shape, *arguments)
    ),
    _setup,
    _backward,
    lowered=2,
)


def _weight_grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, dy, _, ctx.stride, ctx.padding, ctx.groups = inputs
    ctx.save_for_backward(x, dy)
    ctx.backend = backends.forced_backend()


def _weight_grad_backward(ctx: Any, ddw: Tensor) -> tuple[Any, ...]:
    with backends.use_backend(ctx.backend):
        return _weight_grad_gradients(ctx, ddw)


def _weight_grad_gradients(ctx: Any, ddw: Tensor) -> tuple[Any, ...]:
    x, dy = ctx.saved_tensors
    dx, ddy = None, None
    if ctx.needs_input_grad[0]:
        extra = convolution.output_padding(x.shape, dy.shape, ddw.shape, ctx.stride, ctx.padding)
        dx = _conv2d(dy, ddw, ctx.stride, ctx.padding, True, extra, ctx.groups)
    if ctx.needs_input_grad[1]:
        ddy = _conv2d(x, ddw, ctx.stride, ctx.padding, False, [0, 0], ctx.groups)
    return dx, ddy, None, None, None, None


_conv2d_weight_grad = register(
    "conv2d_weight_grad(Tensor x, Tensor dy, SymInt[] size, int[] stride, int[] padding, int groups)"
    " -> Tensor",
    lambda x, *arguments: backends.select(x).conv2d_weight_grad(x, *arguments),
    lambda x, dy, size, *arguments: empty_in_layout_of(x, size),
    _weight_grad_setup,
    _weight_grad_backward,
    lowered=2,
)


def _resample(x: Tensor, fir: Fir | None, f: Tensor | None, flip_filter: bool) -> Tensor:
    if fir is None:
        return x
    taps = f if fir.filtered else None
    return upfirdn2d(x, taps, fir.up, fir.down, fir.padding, flip_filter, fir.gain)


def checked_weight(op: str, x: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """x and weight, in the type of autocast if it is on; raises unless they fit each other."""
    check_images(op, "weight", weight)
    x, weight = in_autocast_dtype(x.device.type, x, weight)
    check_weight(op, x, weight, groups)
    return x, weight


def check_weight(op: str, x: Tensor, weight: Tensor, groups: int) -> None:
    """Raise unless weight is a kernel `[O, I/groups, kh, kw]` for x, of x's type and on its device."""
    check_device(op, "weight", weight, x)
    if weight.dtype != x.dtype:
        raise TypeError(f"{op}: weight is {weight.dtype} but x is {x.dtype}; cast one of them")
    if 0 in weight.shape:
        raise ValueError(f"{op}: a weight {[*weight.shape]} has no channels or no taps")
    if weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        raise ValueError(
            f"{op}: a weight {[*weight.shape]} with groups={groups} does not fit x {[*x.shape]}"
        )


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Convolution with up- or downsampling by a filter; differentiable to any order.

    Args:
        x: `[N, I, H, W]`, floating.
        w: kernel `[O, I/groups, kh, kw]` of x's type.
        f: resampling filter from `setup_filter`; None for none.
        up: factor of upsampling, at least 1.
        down: factor of downsampling, at least 1.
        padding: on the upsampled grid, on top of what resampling needs to keep the image centred; int, (x, y)
            or (x0, x1, y0, y1).
        groups: number of groups.
        flip_weight: True: correlation, as torch's convolution; False: true convolution.
        flip_filter: False: true convolution with f; True: correlation.

    Returns:
        `[N, O, outH, outW]` in x's type and layout.

    Raises:
        TypeError: a tensor is not floating, or w's type is not x's.
        ValueError: a size, factor, padding or device does not fit.
    """
    check_images("conv2d_resample", "x", x)
    x, w = checked_weight("conv2d_resample", x, w, groups)
    check_filter("conv2d_resample", f, x)
    check_factors("conv2d_resample", up, down)
    plan = plan_resampling(
        (w.shape[2], w.shape[3]), filter_taps(f), up, down, filter_padding(padding)
    )
    conv = plan.convolution
    x = _resample(x, plan.before, f, flip_filter)
    w = oriented_weight(w, conv.transposed, flip_weight, groups)
    arguments = ([conv.stride] * 2, conv.padding, conv.transposed, [0, 0], groups)
    size = convolution.convolution_size(x.shape, w.shape, *arguments)
    if min(size[2:]) < 1:
        raise ValueError(
            f"conv2d_resample: the padded input {[*x.shape[2:]]} is smaller than the kernel"
            f" {[*w.shape[2:]]}"
        )
    return _resample(_conv2d(x, w, *arguments), plan.after, f, flip_filter)


def check_factors(op: str, up: int, down: int) -> None:
    """Raise ValueError unless both factors are integers of at least 1."""
    for name, factor in (("up", up), ("down", down)):
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"{op}: {name} must be an int of at least 1, got {factor!r}")

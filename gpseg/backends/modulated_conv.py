"""The modulated synthesis layer composed of a backend's passes and torch's convolution.

    u = styles·x       d = rsqrt(styles² @ W2ᵀ + ε)       c = conv(weight, u)       y = bias_act(d·c + noise)

with W2[o, i] = Σ weight², so that no [N, O, I, k, k] tensor is ever made, forward or backward. Where the backend has a
convolution of its own that takes the passes in, `gpseg.backends.routes` says which of the two ways is taken.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpseg.backends import routes
from gpseg.backends.contract import Backend, Epilogue
from gpseg.backends.convolution import (
    conv2d_input_grad,
    convolution_size,
    multiplies_in_tf32,
)
from gpseg.backends.layout import accumulate_dtype, in_layout_of
from gpseg.backends.resampling import (
    Convolution,
    Fir,
    Plan,
    adjoint_padding,
    filter_taps,
    filtered_size,
    oriented_weight,
    plan_resampling,
)


@dataclass(frozen=True)
class Layer:
    """What a synthesis layer does besides its tensors; as in `gpseg.ops.modulated_conv2d_act`, filled in."""

    up: int
    down: int
    padding: tuple[int, int, int, int]
    demodulate: bool
    flip_weight: bool
    act: str
    alpha: float
    gain: float
    clamp: float

    def plan(self, weight: Tensor, f: Tensor | None) -> Plan:
        """The order of filter and convolution for this layer."""
        return plan_resampling(
            (weight.shape[2], weight.shape[3]), filter_taps(f), self.up, self.down, self.padding
        )

    def epilogue(self, d: Tensor | None, noise: Tensor | None, bias: Tensor | None) -> Epilogue:
        """What follows the convolution."""
        return Epilogue(d, noise, bias, self.act, self.alpha, self.gain, self.clamp)

    @property
    def is_affine(self) -> bool:
        """The epilogue's gradient is the gain alone, whatever the convolution gave."""
        return not self.demodulate and self.act == "linear" and self.clamp < 0


def _filter(backend: Backend, x: Tensor, fir: Fir, f: Tensor | None) -> Tensor:
    taps = f if fir.filtered else None
    pair = (fir.up, fir.up), (fir.down, fir.down)
    return backend.upfirdn2d(x, taps, *pair, fir.padding, False, fir.gain)


def _filter_adjoint(
    backend: Backend, dy: Tensor, fir: Fir, f: Tensor | None, size: torch.Size
) -> Tensor:
    """Gradient of `_filter` for an input of the given size."""
    taps = f if fir.filtered else None
    padding = adjoint_padding(
        filter_taps(taps), (fir.up, fir.up), (fir.down, fir.down), fir.padding, size, dy.shape
    )
    pair = (fir.down, fir.down), (fir.up, fir.up)
    return backend.upfirdn2d(dy, taps, *pair, padding, True, fir.gain)


def _convolution_input(
    backend: Backend, x: Tensor, s: Tensor, plan: Plan, f: Tensor | None
) -> Tensor:
    """u, which the plan's convolution takes: s·x after what goes before the convolution."""
    u = backend.scale_channels(x, s)
    return u if plan.before is None else _filter(backend, u, plan.before, f)


def _convolution_input_size(size: torch.Size, plan: Plan, f: Tensor | None) -> torch.Size:
    """Size of u for x of the given size."""
    if plan.before is None:
        return size
    fir = plan.before
    taps = filter_taps(f if fir.filtered else None)
    return torch.Size(filtered_size(size, taps, [fir.up] * 2, [fir.down] * 2, fir.padding))


def forward(
    backend: Backend,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    f: Tensor | None,
    layer: Layer,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The layer's output y, and if `keep` what a gradient needs of (c, W2, d), c being the convolution before demodulation."""
    plan = layer.plan(weight, f)
    conv = plan.convolution
    s = styles.to(accumulate_dtype(x.dtype))
    w2, d = backend.demodulation(weight, s) if layer.demodulate else (None, None)
    epilogue = layer.epilogue(d, noise, bias)
    keep_c = keep and not layer.is_affine

    w = oriented_weight(weight, conv.transposed, layer.flip_weight)
    if plan.after is None:
        y, c = _convolved(backend, x, s, w, plan, f, epilogue, keep_c)
    else:
        c, _ = _convolved(backend, x, s, w, plan, f, Epilogue(), False)
        fir = plan.after
        pair = (fir.up, fir.up), (fir.down, fir.down)
        y, c = backend.upfirdn2d_demod_act(
            c, f, *pair, fir.padding, False, fir.gain, epilogue, keep_c
        )
    return (y, c, w2, d) if keep else (y, None, None, None)


def _convolved(
    backend: Backend,
    x: Tensor,
    s: Tensor,
    w: Tensor,
    plan: Plan,
    f: Tensor | None,
    epilogue: Epilogue,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """The epilogue of c, the plan's convolution of s·x with what goes before it, and c too if `keep`."""
    conv = plan.convolution

    def composed() -> tuple[Tensor, Tensor | None]:
        u = _convolution_input(backend, x, s, plan, f)
        c = backend.conv2d(u, w, [conv.stride] * 2, conv.padding, conv.transposed, [0, 0], 1)
        if epilogue.does_nothing:
            return c, None
        return backend.demod_act(c, epilogue, not keep), c if keep else None

    if plan.before is not None or not backend.fuses(x, w, conv, "forward"):
        return composed()
    size = convolved_size(x.shape, w, plan)

    def fused() -> tuple[Tensor, Tensor | None]:
        return backend.fused_conv(x, w, conv, size, s, epilogue, keep)

    passes = 0 if epilogue.does_nothing else 2
    problem = _problem(backend, "forward", x, x.shape, size, w, conv, passes, keep)
    return routes.choose(problem, x.device, fused, composed)


def _problem(
    backend: Backend,
    direction: str,
    x: Tensor,
    size_in: torch.Size,
    size_out: torch.Size,
    w: Tensor,
    conv: Convolution,
    passes: int,
    keep: bool,
) -> routes.Problem:
    (n, in_c, in_h, in_w), (_, out_c, out_h, out_w) = size_in, size_out
    taps = w.shape[2] * w.shape[3]
    return routes.Problem(
        backend.NAME,
        direction,
        "tf32" if multiplies_in_tf32(x) else str(x.dtype),
        n,
        in_c,
        in_h,
        in_w,
        out_c,
        out_h,
        out_w,
        taps,
        conv.stride,
        conv.transposed,
        passes,
        keep,
    )


def backward(
    backend: Backend,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    f: Tensor | None,
    c: Tensor | None,
    w2: Tensor | None,
    d: Tensor | None,
    layer: Layer,
    needs_input: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dweight, dstyles, dbias, dnoise); those of x and styles come together, if `needs_input`.

    c, w2 and d are what the forward kept.
    """
    plan = layer.plan(weight, f)
    conv = plan.convolution
    # Here and not where dx would meet x: what goes to a few colours has a small dy and a large dx.
    dy = in_layout_of(dy, x)
    s = styles.to(accumulate_dtype(x.dtype))
    # an affine epilogue keeps no c: its backward reads only the size, which dy has too
    dc, dd, dnoise, dbias = backend.demod_act_backward(
        dy, dy if c is None else c, layer.epilogue(d, noise, bias)
    )
    dweight, dx, ds = None, None, None
    if needs_weight or needs_input:
        w = oriented_weight(weight, conv.transposed, layer.flip_weight)
        if plan.after is not None:
            u_size = _convolution_input_size(x.shape, plan, f)
            dc = _filter_adjoint(backend, dc, plan.after, f, convolved_size(u_size, w, plan))
        dw = None
        both = needs_weight and needs_input and plan.before is None
        if both and backend.fuses_gradients(x, w, conv):
            dx, ds, dw = backend.fused_conv_gradients(dc, w, conv, x, s)
        else:
            if needs_weight:
                dw = _weight_gradient(backend, dc, x, s, w, plan, f)
            if needs_input:
                dx, ds = _input_gradients(backend, dc, x, s, w, plan, f)
        if dw is not None:
            dweight = oriented_weight(dw, conv.transposed, layer.flip_weight)
    if d is not None and w2 is not None and dd is not None:
        backend.demodulation_backward(weight, s, w2, d, dd, ds, dweight)
    if dweight is not None and dweight.stride() != weight.stride():
        dweight = torch.empty_like(weight).copy_(dweight)
    return dx, dweight, None if ds is None else ds.to(styles.dtype), dbias, dnoise


def _input_gradients(
    backend: Backend,
    dc: Tensor,
    x: Tensor,
    s: Tensor,
    w: Tensor,
    plan: Plan,
    f: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients (dx, ds) of the plan's convolution of u, which is s·x after what goes before it."""
    conv = plan.convolution

    def composed() -> tuple[Tensor, Tensor]:
        size, stride = _convolution_input_size(x.shape, plan, f), [conv.stride] * 2
        du = conv2d_input_grad(
            dc, w, size, stride, conv.padding, conv.transposed, 1, backend.conv2d
        )
        if plan.before is not None:
            du = _filter_adjoint(backend, du, plan.before, f, x.shape)
        return backend.scale_channels_backward(x, s, du)

    if plan.before is not None or not backend.fuses(x, w, conv, "input_grad"):
        return composed()

    def fused() -> tuple[Tensor, Tensor]:
        return backend.fused_conv_input_grad(dc, w, conv, x, s)

    gradient = Convolution(conv.stride, conv.padding, not conv.transposed)
    problem = _problem(backend, "input_grad", x, dc.shape, x.shape, w, gradient, 3, False)
    return routes.choose(problem, x.device, fused, composed)


def _weight_gradient(
    backend: Backend, dc: Tensor, x: Tensor, s: Tensor, w: Tensor, plan: Plan, f: Tensor | None
) -> Tensor:
    """Gradient of the plan's convolution of u with respect to w."""
    conv = plan.convolution

    def composed() -> Tensor:
        u = _convolution_input(backend, x, s, plan, f)
        pair = (dc, u) if conv.transposed else (u, dc)
        return backend.conv2d_weight_grad(*pair, w.shape, [conv.stride] * 2, conv.padding, 1)

    if plan.before is not None or not backend.fuses(x, w, conv, "weight_grad"):
        return composed()

    def fused() -> Tensor:
        return backend.fused_conv_weight_grad(dc, w.shape, conv, x, s)

    problem = _problem(backend, "weight_grad", x, x.shape, dc.shape, w, conv, 0, False)
    return routes.choose(problem, x.device, fused, composed)


def convolved_size(size: torch.Size, w: Tensor, plan: Plan) -> torch.Size:
    """Size of the plan's convolution of an input of the given size, w as torch holds it."""
    conv = plan.convolution
    stride = [conv.stride] * 2
    return torch.Size(
        convolution_size(size, w.shape, stride, conv.padding, conv.transposed, [0, 0], 1)
    )

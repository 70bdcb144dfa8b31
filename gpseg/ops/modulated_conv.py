"""StyleGAN2's modulated convolution and the synthesis layer around it (arXiv 1912.04958, section 2.2)."""

from typing import Any

import torch
from torch import Tensor

from gpseg import backends
from gpseg.backends import modulated_conv
from gpseg.backends.demodulation import inverse_norms, squared_norms
from gpseg.backends.layout import accumulate_dtype, empty_in_layout_of
from gpseg.backends.modulated_conv import Layer, convolved_size
from gpseg.backends.resampling import Fir, filter_taps, filtered_size, oriented_weight
from gpseg.ops.arguments import (
    check_device,
    check_filter,
    check_floating,
    check_images,
    check_size,
    filter_padding,
)
from gpseg.ops.bias_act import activation_arguments, bias_act, check_activation
from gpseg.ops.convolution import (
    check_factors,
    check_weight,
    checked_weight,
    conv2d_resample,
    weight_grad,
    weight_grad_is_off,
)
from gpseg.ops.registration import register
from gpseg.ops.upfirdn2d import Padding

_LAYER = (
    "int up, int down, SymInt[] padding, bool demodulate, bool flip_weight,"
    " str act, float alpha, float gain, float clamp"
)


def _layer(arguments: tuple[Any, ...]) -> Layer:
    up, down, padding, *rest = arguments
    return Layer(up, down, tuple(padding), *rest)


def _kernel(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    f: Tensor | None,
    keep: bool,
    *layer: Any,
) -> tuple[Tensor, ...]:
    results = modulated_conv.forward(
        backends.select(x), x, weight, styles, bias, noise, f, _layer(layer), keep
    )
    return tuple(x.new_empty(0) if result is None else result for result in results)


def _output_size(x: Tensor, weight: Tensor, f: Tensor | None, layer: Layer) -> torch.Size:
    plan = layer.plan(weight, f)
    size = x.shape
    if plan.before is not None:
        size = torch.Size(_filtered(size, f, plan.before))
    transposed = plan.convolution.transposed
    # only its size counts: not to be mirrored, which would copy it
    oriented = oriented_weight(weight, transposed, flip_weight=not transposed)
    size = convolved_size(size, oriented, plan)
    return size if plan.after is None else torch.Size(_filtered(size, f, plan.after))


def _filtered(size: torch.Size, f: Tensor | None, fir: Fir) -> tuple[int, int, int, int]:
    taps = f if fir.filtered else None
    return filtered_size(
        size, filter_taps(taps), (fir.up, fir.up), (fir.down, fir.down), fir.padding
    )


def _fake(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    f: Tensor | None,
    keep: bool,
    *layer: Any,
) -> tuple[Tensor, ...]:
    description = _layer(layer)
    size = _output_size(x, weight, f, description)
    demodulates, sums = keep and description.demodulate, accumulate_dtype(x.dtype)
    out_c, in_c = weight.shape[:2]
    return (
        empty_in_layout_of(x, size),
        empty_in_layout_of(x, size) if keep and not description.is_affine else x.new_empty(0),
        x.new_empty((out_c, in_c), dtype=sums) if demodulates else x.new_empty(0),
        x.new_empty((x.shape[0], out_c), dtype=sums) if demodulates else x.new_empty(0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, styles, bias, noise, f, _, *ctx.layer = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, styles, bias, noise, f, *output[1:])
    ctx.backend = backends.forced_backend()


def _given(
    needs_input: bool, needs_weight: bool, bias: Tensor | None, noise: Tensor | None
) -> tuple[bool, ...]:
    """Which results of the backward op are gradients; the others are empty, as a schema can't have None there."""
    return needs_input, needs_weight, needs_input, bias is not None, noise is not None


def _backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    if dy is None:
        return (None,) * len(needs)
    x, weight, styles, bias, noise, f, c, w2, d = ctx.saved_tensors
    if c.shape != dy.shape and not _layer(ctx.layer).is_affine:
        raise RuntimeError(
            "modulated_conv2d_act: this graph was exported for inference and keeps nothing for a gradient; export it"
            " with gradients on, or decomposed"
        )
    needs_input = needs[0] or needs[2]
    needs_weight = needs[1] and not weight_grad_is_off()
    with backends.use_backend(ctx.backend):
        gradients = _modulated_conv2d_act_backward(
            dy, x, weight, styles, bias, noise, f, c, w2, d, needs_input, needs_weight, *ctx.layer
        )
    given = _given(needs_input, needs_weight, bias, noise)
    kept = [g if has else None for g, has in zip(gradients, given, strict=True)]
    return *kept, *(None,) * (len(needs) - len(kept))


_modulated_conv2d_act = register(
    "modulated_conv2d_act(Tensor x, Tensor weight, Tensor styles, Tensor? bias, Tensor? noise,"
    f" Tensor? f, bool keep, {_LAYER}) -> (Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
    _setup,
    _backward,
    lowered=2,
)


def _gradient_kernel(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    f: Tensor | None,
    c: Tensor,
    w2: Tensor,
    d: Tensor,
    needs_input: bool,
    needs_weight: bool,
    *layer: Any,
) -> tuple[Tensor, ...]:
    description = _layer(layer)
    gradients = modulated_conv.backward(
        backends.select(x),
        dy,
        x,
        weight,
        styles,
        bias,
        noise,
        f,
        None if description.is_affine else c,
        w2 if description.demodulate else None,
        d if description.demodulate else None,
        description,
        needs_input,
        needs_weight,
    )
    return tuple(x.new_empty(0) if g is None else g for g in gradients)


def _gradient_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    f: Tensor | None,
    c: Tensor,
    w2: Tensor,
    d: Tensor,
    needs_input: bool,
    needs_weight: bool,
    *layer: Any,
) -> tuple[Tensor, ...]:
    return (
        empty_in_layout_of(x, x.shape) if needs_input else x.new_empty(0),
        torch.empty_like(weight) if needs_weight else x.new_empty(0),
        styles.new_empty(styles.shape) if needs_input else x.new_empty(0),
        x.new_empty(0) if bias is None else bias.new_empty(bias.shape),
        x.new_empty(0) if noise is None else noise.new_empty(noise.shape),
    )


def _gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, _, _, ctx.needs_input, ctx.needs_weight, ctx.layer = *inputs[:12], inputs[12:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.backend = backends.forced_backend()


def _gradient_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
    """Second derivative: differentiate the layer's definition twice, with the graph kept for a third.

    c, W2 and d, which the backward op is given to save time, are functions of the other inputs: their gradients
    below account for them.
    """
    *tensors, f = ctx.saved_tensors
    nothing = (None,) * len(ctx.needs_input_grad)
    needed = [*ctx.needs_input_grad[: len(tensors)]]
    needed[2] = needed[2] and not weight_grad_is_off()
    with torch.enable_grad(), backends.use_backend(ctx.backend), weight_grad():
        # Views, because the saved tensors may depend on each other through the caller's graph (dy on x, x on
        # styles): derivatives with respect to the views can't take that path, and still lead to a third order.
        inputs: list[Any] = [
            t if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            for t in tensors
        ]
        given = _given(ctx.needs_input, ctx.needs_weight, *tensors[-2:])
        asked = [
            i
            for i, (g, has) in enumerate(zip(cotangents, given, strict=True), start=1)
            if has and g is not None
        ]
        if not asked or not any(needed):
            return nothing
        dy, x, weight, styles, bias, noise = inputs
        y = _composed(x, weight, styles, bias, noise, f, _layer(ctx.layer))
        firsts = torch.autograd.grad(y, [inputs[i] for i in asked], dy, create_graph=True)
    seconds = iter(
        torch.autograd.grad(
            firsts,
            [t for t, wanted in zip(inputs, needed, strict=True) if wanted],
            [cotangents[i - 1] for i in asked],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return *(next(seconds) if wanted else None for wanted in needed), *nothing[len(needed) :]


_modulated_conv2d_act_backward = register(
    "modulated_conv2d_act_backward(Tensor dy, Tensor x, Tensor weight, Tensor styles, Tensor? bias,"
    " Tensor? noise, Tensor? f, Tensor c, Tensor w2, Tensor d, bool needs_input, bool needs_weight,"
    f" {_LAYER}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gradient_kernel,
    _gradient_fake,
    _gradient_setup,
    _gradient_backward,
)


def _composed(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    f: Tensor | None,
    layer: Layer,
) -> Tensor:
    """The layer as its definition reads, of ops that are differentiable again."""
    s = styles.to(accumulate_dtype(x.dtype))
    y = conv2d_resample(
        (x * s[:, :, None, None]).to(x.dtype),
        weight,
        f,
        layer.up,
        layer.down,
        layer.padding,
        flip_weight=layer.flip_weight,
    )
    if layer.demodulate:
        d = inverse_norms(squared_norms(weight), s)
        y = (y * d[:, :, None, None]).to(x.dtype)
    if noise is not None:
        y = y + noise.to(y.dtype)
    if layer.act == "linear" and layer.clamp < 0:
        # bias_act ends at the second order, this does not
        z = y if bias is None else y + bias.to(y.dtype)[:, None, None]
        return z * layer.gain
    clamp = None if layer.clamp < 0 else layer.clamp
    return bias_act(y, bias, 1, layer.act, layer.alpha, layer.gain, clamp)


def modulated_conv2d_act(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    act: str = "lrelu",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """The whole synthesis layer, `bias_act(modulated_conv2d(…), bias, …)`, with its passes fused.

    Args:
        x: `[N, I, H, W]`, floating.
        weight: `[O, I, kh, kw]` of x's type.
        styles: `[N, I]`, floating; the scale of each input channel.
        bias: `[O]` or None.
        noise: `[N, 1, outH, outW]` or `[outH, outW]`, added before the bias; None for none.
        up, down, padding, resample_filter, flip_weight: as in `conv2d_resample`.
        demodulate: scale each output channel to unit expected variance.
        act, alpha, gain, clamp: as in `bias_act`.

    Returns:
        `[N, O, outH, outW]` in x's type and layout.

    Raises:
        TypeError: a tensor is not floating, or weight's type is not x's.
        ValueError: a size, factor, padding, device or activation does not fit.
    """
    op = "modulated_conv2d"
    check_images(op, "x", x)
    x, weight = checked_weight(op, x, weight, 1)
    activation = activation_arguments(op, act, alpha, gain, clamp)
    layer = Layer(up, down, filter_padding(padding), demodulate, flip_weight, *activation)
    _checked_size(op, x, weight, styles, bias, noise, resample_filter, layer)
    if x.dtype == torch.float16 and demodulate:
        weight, styles = _prenormalised(weight, styles)
    tensors = [t for t in (x, weight, styles, bias, noise) if t is not None]
    keep = torch.is_grad_enabled() and (any(t.requires_grad for t in tensors) or _transformed())
    y: Tensor
    y, *_ = _modulated_conv2d_act(
        x,
        weight,
        styles,
        bias,
        noise,
        resample_filter,
        keep,
        layer.up,
        layer.down,
        layer.padding,
        layer.demodulate,
        layer.flip_weight,
        *activation,
    )
    return y


def _transformed() -> bool:
    """Whether this is within vmap, where a tensor does not tell whether those that it is a batch of want a gradient."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is not None
    )


def _checked_size(
    op: str,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    f: Tensor | None,
    layer: Layer,
) -> torch.Size:
    """Size of the result; raises unless all else fits x and weight, which fit each other."""
    check_filter(op, f, x)
    check_factors(op, layer.up, layer.down)
    check_size(op, "styles", styles, x.shape[:2], x)
    if bias is not None:
        check_size(op, "bias", bias, weight.shape[:1], x)
    size = _output_size(x, weight, f, layer)
    if min(size[2:]) < 1:
        raise ValueError(
            f"{op}: the result would be {[*size[2:]]}; x {[*x.shape]} is too small for this kernel,"
            " filter and padding"
        )
    if noise is not None:
        check_floating(op, "noise", noise)
        check_device(op, "noise", noise, x)
        # Told apart by ndim: comparing sizes of unlike length compares H with N too, which a dynamic N must not meet.
        if noise.shape != (size[2:] if noise.ndim == 2 else (size[0], 1, *size[2:])):
            raise ValueError(
                f"{op}: noise must be {[size[0], 1, *size[2:]]} or {[*size[2:]]}, got {[*noise.shape]}"
            )
    return size


def _prenormalised(weight: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
    """Scale weight per output channel and styles per sample so that float16 sums can't overflow.

    Demodulation cancels both scales, so they are constants to the gradient.
    """
    with torch.no_grad():
        per_output = weight.float().abs().amax([1, 2, 3], keepdim=True)
        fan_in = weight[0].numel()
        w_scale = 1 / (per_output.clamp(min=1e-12) * fan_in**0.5)
        s_scale = 1 / styles.float().abs().amax(1, keepdim=True).clamp(min=1e-12)
    return (weight.float() * w_scale).to(weight.dtype), styles.float() * s_scale


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> Tensor:
    """Convolution with a kernel modulated by styles: conv(x, weight·styles·d) + noise.

    Arguments, result and errors as in `modulated_conv2d_act`, which this is without bias and activation.
    """
    return modulated_conv2d_act(
        x,
        weight,
        styles,
        noise=noise,
        up=up,
        down=down,
        padding=padding,
        resample_filter=resample_filter,
        demodulate=demodulate,
        flip_weight=flip_weight,
        act="linear",
    )


def modulated_conv2d_act_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    noise: Tensor | None,
    f: Tensor | None,
    c: Tensor,
    needs_input: bool,
    needs_weight: bool,
    up: int,
    down: int,
    padding: Padding,
    demodulate: bool,
    flip_weight: bool,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of <modulated_conv2d_act(x, weight, styles, bias, …), dy>; differentiable as that is.

    Args:
        dy: `[N, O, outH, outW]`, floating.
        x, weight, styles, bias, noise: as in `modulated_conv2d_act`; nothing is brought to the type of autocast.
        f: the layer's `resample_filter`.
        c: `[N, O, outH, outW]`, what the convolution gives before it is demodulated; of any size where only `gain`
            follows it (no demodulation, linear, no clamp).
        needs_input: whether gradients of x and styles are wanted.
        needs_weight: whether weight's is.
        up, down, padding, demodulate, flip_weight, act: as in `modulated_conv2d_act`.
        alpha, gain, clamp: as in `bias_act_backward`.

    Returns:
        The gradients of x, weight, styles, bias and noise, each as what it belongs to; empty, `[0]`, where it isn't
        wanted or that is None.

    Raises:
        TypeError: a tensor is not floating, or weight's type is not x's.
        ValueError: a size, factor, padding, device or activation does not fit.
    """
    op = "modulated_conv2d_act_backward"
    check_images(op, "x", x)
    check_images(op, "weight", weight)
    check_weight(op, x, weight, 1)
    check_activation(op, act)
    pads = filter_padding(padding)
    layer = (up, down, pads, demodulate, flip_weight, act, alpha, gain, clamp)
    size = _checked_size(op, x, weight, styles, bias, noise, f, Layer(*layer))
    check_size(op, "dy", dy, size, x)
    if not Layer(*layer).is_affine:
        check_size(op, "c", c, size, x)
    w2 = d = x.new_empty(0)
    if demodulate:
        with torch.no_grad():
            s = styles.to(accumulate_dtype(x.dtype))
            w2, d = backends.select(x).demodulation(weight, s)
    dx, dweight, dstyles, dbias, dnoise = _modulated_conv2d_act_backward(
        dy, x, weight, styles, bias, noise, f, c, w2, d, needs_input, needs_weight, *layer
    )
    return dx, dweight, dstyles, dbias, dnoise

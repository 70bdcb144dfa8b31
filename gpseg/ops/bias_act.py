"""Bias, activation, gain and clamp in one pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpseg import backends
from gpseg.backends.layout import empty_in_layout_of, memory_format_of
from gpseg.ops.arguments import check_device, check_floating, check_size
from gpseg.ops.registration import register


@dataclass(frozen=True)
class Defaults:
    """An activation's default parameters: gain √2 where it about halves the variance."""

    alpha: float = 0.0
    gain: float = 1.0


ACTIVATIONS = {
    "linear": Defaults(),
    "relu": Defaults(gain=2**0.5),
    "lrelu": Defaults(alpha=0.2, gain=2**0.5),
    "tanh": Defaults(),
    "sigmoid": Defaults(),
    "elu": Defaults(),
    "selu": Defaults(),
    "softplus": Defaults(),
    "swish": Defaults(gain=2**0.5),
}


def check_activation(op: str, act: str) -> None:
    """Raise ValueError for an unknown activation."""
    if act not in ACTIVATIONS:
        raise ValueError(f"{op}: unknown activation {act!r}; there are: {', '.join(ACTIVATIONS)}")


def activation_arguments(
    op: str, act: str, alpha: float | None, gain: float | None, clamp: float | None
) -> tuple[str, float, float, float]:
    """(act, alpha, gain, clamp) with the activation's defaults filled in; no clamp is -1.

    Raises:
        ValueError: unknown activation, or a negative clamp.
    """
    check_activation(op, act)
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"{op}: clamp must be at least 0, got {clamp}")
    defaults = ACTIVATIONS[act]
    return (
        act,
        float(defaults.alpha if alpha is None else alpha),
        float(defaults.gain if gain is None else gain),
        -1.0 if clamp is None else float(clamp),
    )


_ARGUMENTS = "int dim, str act, float alpha, float gain, float clamp"


def _what_tells_the_slope(
    x: Tensor, y: Tensor, act: str, alpha: float, gain: float, clamp: float
) -> Tensor | None:
    """x, or y where the gradient depends on x + b by its sign alone, or None where not at all."""
    if act == "linear" and clamp < 0:
        return None
    # The result rather than x where it serves: the next layer keeps it too, as a rule.
    by_sign = act in ("relu", "lrelu") and alpha >= 0 and gain > 0 and clamp < 0
    return y if by_sign else x


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, b, *ctx.arguments = inputs
    kept = _what_tells_the_slope(x, output, *ctx.arguments[1:])
    ctx.keeps_x = kept is x
    ctx.layout = memory_format_of(x)
    ctx.save_for_backward(kept, b)
    ctx.backend = backends.forced_backend()


def _forward_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, b = ctx.saved_tensors
    if not ctx.keeps_x and b is not None:
        # The result has the bias in it. What is left of b is that its gradient is asked for, or not.
        b = torch.zeros_like(b) if ctx.needs_input_grad[1] else None
    if x is None:
        # The gradient is the same for any x of this size; the layout is what dx takes from it.
        dy = dy.contiguous(memory_format=ctx.layout)
        x = dy.detach()
    with backends.use_backend(ctx.backend):
        dx, db = _bias_act_backward(dy, x, b, *ctx.arguments)
    return dx, db if b is not None else None, None, None, None, None, None


_bias_act = register(
    f"bias_act(Tensor x, Tensor? b, {_ARGUMENTS}) -> Tensor",
    lambda x, *arguments: backends.select(x).bias_act(x, *arguments),
    lambda x, *arguments: empty_in_layout_of(x, x.shape),
    _forward_setup,
    _forward_backward,
)


def _gradient_kernel(
    dy: Tensor, x: Tensor, b: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    dx, db = backends.select(x).bias_act_backward(dy, x, b, *arguments)
    return dx, x.new_empty(0) if db is None else db


def _gradient_fake(
    dy: Tensor, x: Tensor, b: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    return empty_in_layout_of(x, x.shape), x.new_empty(0) if b is None else b.new_empty(b.shape)


def _gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dy, x, b, *ctx.arguments = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dy, x, b)
    ctx.backend = backends.forced_backend()


def _gradient_backward(ctx: Any, ddx: Tensor | None, ddb: Tensor | None) -> tuple[Any, ...]:
    dy, x, b = ctx.saved_tensors
    if b is None:
        ddb = None
    if ddx is None and ddb is None:
        return (None,) * 8
    with backends.use_backend(ctx.backend):
        ddy, d2x, d2b = _bias_act_double_backward(ddx, ddb, dy, x, b, *ctx.arguments)
    return ddy, d2x, d2b if b is not None else None, None, None, None, None, None


_bias_act_backward = register(
    f"bias_act_backward(Tensor dy, Tensor x, Tensor? b, {_ARGUMENTS}) -> (Tensor, Tensor)",
    _gradient_kernel,
    _gradient_fake,
    _gradient_setup,
    _gradient_backward,
)


def _second_kernel(
    ddx: Tensor | None, ddb: Tensor | None, dy: Tensor, x: Tensor, b: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    backend = backends.select(x)
    ddy, d2x, d2b = backend.bias_act_double_backward(ddx, ddb, dy, x, b, *arguments)
    return ddy, d2x, x.new_empty(0) if d2b is None else d2b


def _second_fake(
    ddx: Tensor | None, ddb: Tensor | None, dy: Tensor, x: Tensor, b: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        empty_in_layout_of(x, x.shape),
        empty_in_layout_of(x, x.shape),
        x.new_empty(0) if b is None else b.new_empty(b.shape),
    )


def _no_third_order(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    raise NotImplementedError("bias_act is differentiable twice; a third derivative was asked for")


_bias_act_double_backward = register(
    "bias_act_double_backward(Tensor? ddx, Tensor? ddb, Tensor dy, Tensor x, Tensor? b,"
    f" {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _second_kernel,
    _second_fake,
    lambda ctx, inputs, output: None,
    _no_third_order,
)


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """y = clamp(gain · act(x + b; alpha), ±clamp); differentiable twice.

    Args:
        x: floating tensor of any size.
        b: bias `[x.shape[dim]]` of any floating type, or None.
        dim: x's dimension that the bias runs along.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: slope of lrelu for negative input; default 0.2.
        gain: multiplies the activation's result; default √2 for relu, lrelu and swish, else 1.
        clamp: limit of the result's absolute value, applied after the gain; None for none. The gradient is 0
            where the result was clamped, and 1 exactly at the limit.

    Returns:
        Tensor of x's size, type and layout. For relu and lrelu without clamp the gradient reads it: it must not be
        changed in place before the backward pass.

    Raises:
        TypeError: x or b is not a floating tensor.
        ValueError: dim, bias size, device, activation or clamp does not fit.
    """
    dim = _checked_dim("bias_act", x, b, dim)
    arguments = activation_arguments("bias_act", act, alpha, gain, clamp)
    y: Tensor = _bias_act(x, b, dim, *arguments)
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
) -> tuple[Tensor, Tensor]:
    """Gradients of <bias_act(x, b, …), dy>; differentiable once more.

    Args:
        dy: floating tensor of x's size.
        x, b, dim, act: as in `bias_act`.
        alpha, gain, clamp: as in `bias_act`, but without defaults; a negative clamp is none.

    Returns:
        dx as x, and db as b; empty, `[0]`, without b.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: a size, device, dim or activation does not fit.
    """
    dim = _checked_dim("bias_act_backward", x, b, dim)
    check_activation("bias_act_backward", act)
    check_size("bias_act_backward", "dy", dy, x.shape, x)
    dx, db = _bias_act_backward(dy, x, b, dim, act, alpha, gain, clamp)
    return dx, db


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of <dx, ddx> + <db, ddb>, where dx and db are what `bias_act_backward` returns; not differentiable.

    Args:
        ddx: floating tensor of x's size; None for zeros.
        ddb: floating tensor of b's size; None for zeros, as it must be without b.
        dy, x, b, dim, act, alpha, gain, clamp: as in `bias_act_backward`.

    Returns:
        The gradients with respect to dy and x, each as x, and to b, as b; empty, `[0]`, without b.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: a size, device, dim or activation does not fit, or ddb is given without b.
    """
    op = "bias_act_double_backward"
    dim = _checked_dim(op, x, b, dim)
    check_activation(op, act)
    check_size(op, "dy", dy, x.shape, x)
    if ddx is not None:
        check_size(op, "ddx", ddx, x.shape, x)
    if ddb is not None:
        if b is None:
            raise ValueError(f"{op}: ddb is given but b is not")
        check_size(op, "ddb", ddb, b.shape, x)
    ddy, d2x, d2b = _bias_act_double_backward(ddx, ddb, dy, x, b, dim, act, alpha, gain, clamp)
    return ddy, d2x, d2b


def _checked_dim(op: str, x: Tensor, b: Tensor | None, dim: int) -> int:
    """dim, counted from the front; raises unless it is one of floating x and b fits it."""
    check_floating(op, "x", x)
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"{op}: dim {dim} is not one of x {[*x.shape]}")
    dim %= x.ndim
    if b is not None:
        check_floating(op, "b", b)
        check_device(op, "b", b, x)
        if b.shape != x.shape[dim : dim + 1]:
            raise ValueError(
                f"{op}: b must be [{x.shape[dim]}] for dimension {dim} of x, got {[*b.shape]}"
            )
    return dim

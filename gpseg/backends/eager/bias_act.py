"""bias_act and its two derivatives from closed formulas for each activation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gpseg.backends.layout import accumulate_dtype, in_layout_of

_SELU_SCALE = 1.0507009873554805
_SELU_ALPHA = 1.6732632423543772


@dataclass(frozen=True)
class Activation:
    """An activation and its first two derivatives, as functions of the input z and alpha."""

    value: Callable[[Tensor, float], Tensor]
    first: Callable[[Tensor, float], Tensor]
    second: Callable[[Tensor, float], Tensor]


def _zero(z: Tensor, alpha: float) -> Tensor:
    return torch.zeros_like(z)


def _sigmoid_first(z: Tensor, alpha: float) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _swish_first(z: Tensor, alpha: float) -> Tensor:
    return torch.sigmoid(z) + z * _sigmoid_first(z, alpha)


def _swish_second(z: Tensor, alpha: float) -> Tensor:
    return _sigmoid_first(z, alpha) * (2 + z * (1 - 2 * torch.sigmoid(z)))


ACTIVATIONS = {
    "linear": Activation(lambda z, a: z, lambda z, a: torch.ones_like(z), _zero),
    "relu": Activation(lambda z, a: functional.relu(z), lambda z, a: (z > 0).to(z.dtype), _zero),
    "lrelu": Activation(
        lambda z, a: functional.leaky_relu(z, a),
        lambda z, a: torch.where(z > 0, torch.ones_like(z), a),
        _zero,
    ),
    "tanh": Activation(
        lambda z, a: torch.tanh(z),
        lambda z, a: 1 - torch.tanh(z).square(),
        lambda z, a: -2 * torch.tanh(z) * (1 - torch.tanh(z).square()),
    ),
    "sigmoid": Activation(
        lambda z, a: torch.sigmoid(z),
        _sigmoid_first,
        lambda z, a: _sigmoid_first(z, a) * (1 - 2 * torch.sigmoid(z)),
    ),
    "elu": Activation(
        lambda z, a: functional.elu(z),
        lambda z, a: torch.exp(z.clamp(max=0)),
        lambda z, a: torch.where(z > 0, 0.0, torch.exp(z.clamp(max=0))),
    ),
    "selu": Activation(
        lambda z, a: functional.selu(z),
        lambda z, a: _SELU_SCALE * torch.where(z > 0, 1.0, _SELU_ALPHA * torch.exp(z.clamp(max=0))),
        lambda z, a: _SELU_SCALE * _SELU_ALPHA * torch.where(z > 0, 0.0, torch.exp(z.clamp(max=0))),
    ),
    # past 40 the linear branch is exact in float64 too; torch's default of 20 is not
    "softplus": Activation(
        lambda z, a: functional.softplus(z, threshold=40),
        lambda z, a: torch.sigmoid(z),
        _sigmoid_first,
    ),
    "swish": Activation(lambda z, a: functional.silu(z), _swish_first, _swish_second),
}


def _along(b: Tensor, x: Tensor, dim: int) -> Tensor:
    return b.to(x.dtype).reshape([-1 if i == dim else 1 for i in range(x.ndim)])


def _summed(x: Tensor, b: Tensor, dim: int) -> Tensor:
    others = [i for i in range(x.ndim) if i != dim]
    # torch takes the sum over no dimensions for the sum over all
    return (x.sum(others) if others else x).to(b.dtype)


def bias_act(
    x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float
) -> Tensor:
    """y = clamp(gain * act(x + b)); a negative clamp means none. Arguments as in `gpseg.ops`."""
    z = x.to(accumulate_dtype(x.dtype))
    if b is not None:
        z = z + _along(b, z, dim)
    y = gain * ACTIVATIONS[act].value(z, alpha)
    if clamp >= 0:
        y = y.clamp(-clamp, clamp)
    return in_layout_of(y, x)


def _slope(
    x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float
) -> tuple[Tensor, Tensor]:
    """The pre-activation z and dy/dz without act', that is gain where y is not clamped, else 0."""
    z = x.to(accumulate_dtype(x.dtype))
    if b is not None:
        z = z + _along(b, z, dim)
    if clamp < 0:
        return z, torch.full_like(z, gain)
    return z, gain * ((gain * ACTIVATIONS[act].value(z, alpha)).abs() <= clamp).to(z.dtype)


def bias_act_backward(
    dy: Tensor,
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor | None]:
    """Gradients (dx, db) of `bias_act`; db is None without a bias."""
    z, slope = _slope(x, b, dim, act, alpha, gain, clamp)
    dx = dy.to(z.dtype) * slope * ACTIVATIONS[act].first(z, alpha)
    return in_layout_of(dx, x), None if b is None else _summed(dx, b, dim)


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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients with respect to (dy, x, b) of <dx, ddx> + <db, ddb>, the outputs of the backward."""
    z, slope = _slope(x, b, dim, act, alpha, gain, clamp)
    t = torch.zeros_like(z) if ddx is None else ddx.to(z.dtype)
    if ddb is not None:
        t = t + _along(ddb, z, dim)
    ddy = t * slope * ACTIVATIONS[act].first(z, alpha)
    d2x = t * dy.to(z.dtype) * slope * ACTIVATIONS[act].second(z, alpha)
    return in_layout_of(ddy, x), in_layout_of(d2x, x), None if b is None else _summed(d2x, b, dim)

"""Activations with their first two derivatives, and what follows a convolution or a filter, for the other kernels.

Everything is computed in the type of the argument, float32 or float64; NaN comes out as NaN. `ACT` is the activation's
name, which the compiler knows, so that nothing of the others is left.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

STRAIGHT = frozenset({"linear", "relu", "lrelu"})
"""Activations whose second derivative is 0."""

_SELU_SCALE = tl.constexpr(1.0507009873554804934193349852946)
_SELU_OUTER = tl.constexpr(1.0507009873554804934193349852946 * 1.6732632423543772848170429916717)


@triton.constexpr_function
def accumulated(element):
    """The type that sums over elements of this type are taken in."""
    return tl.float64 if element == tl.float64 else tl.float32


@triton.jit
def _sigmoids(z):
    """sigmoid(z), its derivative and the derivative's; from the exponential that can't overflow."""
    e = tl.exp(-tl.abs(z))
    r = 1.0 / (1.0 + e)
    s = tl.where(z < 0, e * r, r)
    first = e * r * r
    return s, first, first * (1.0 - 2.0 * s)


@triton.jit
def value(z, alpha, ACT: tl.constexpr):
    """act(z)."""
    if ACT == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACT == "lrelu":
        z = tl.where(z > 0, z, z * alpha)
    elif ACT == "tanh":
        z = libdevice.tanh(z)
    elif ACT == "sigmoid":
        z, _, _ = _sigmoids(z)
    elif ACT == "elu":
        z = tl.where(z > 0, z, libdevice.expm1(z))
    elif ACT == "selu":
        z = tl.where(z > 0, _SELU_SCALE * z, _SELU_OUTER * libdevice.expm1(z))
    elif ACT == "softplus":
        z = tl.where(z < 0, 0.0, z) + libdevice.log1p(tl.exp(-tl.abs(z)))
    elif ACT == "swish":
        s, _, _ = _sigmoids(z)
        z = z * s
    else:
        tl.static_assert(ACT == "linear", "unknown activation")
    return z


@triton.jit
def first(z, alpha, ACT: tl.constexpr):
    """act'(z)."""
    if ACT == "linear":
        slope = tl.full(z.shape, 1.0, z.dtype)
    elif ACT == "relu":
        slope = tl.where(z > 0, 1.0, 0.0).to(z.dtype)
    elif ACT == "lrelu":
        slope = tl.where(z > 0, 1.0, alpha).to(z.dtype)
    elif ACT == "tanh":
        _, s1, _ = _sigmoids(2.0 * z)
        slope = 4.0 * s1  # 1 − tanh², without its cancellation
    elif ACT == "sigmoid":
        _, slope, _ = _sigmoids(z)
    elif ACT == "elu":
        slope = tl.where(z > 0, 1.0, tl.exp(z)).to(z.dtype)
    elif ACT == "selu":
        slope = tl.where(z > 0, _SELU_SCALE, _SELU_OUTER * tl.exp(z)).to(z.dtype)
    elif ACT == "softplus":
        slope, _, _ = _sigmoids(z)
    else:
        tl.static_assert(ACT == "swish", "unknown activation")
        s, s1, _ = _sigmoids(z)
        slope = s + z * s1
    return slope


@triton.jit
def second(z, alpha, ACT: tl.constexpr):
    """act''(z)."""
    if ACT == "tanh":
        _, s1, _ = _sigmoids(2.0 * z)
        bend = -8.0 * libdevice.tanh(z) * s1
    elif ACT == "sigmoid":
        _, _, bend = _sigmoids(z)
    elif ACT == "elu":
        bend = tl.where(z > 0, 0.0, tl.exp(z)).to(z.dtype)
    elif ACT == "selu":
        bend = tl.where(z > 0, 0.0, _SELU_OUTER * tl.exp(z)).to(z.dtype)
    elif ACT == "softplus":
        _, bend, _ = _sigmoids(z)
    elif ACT == "swish":
        _, s1, s2 = _sigmoids(z)
        bend = 2.0 * s1 + z * s2
    else:
        bend = tl.zeros(z.shape, z.dtype)
    return bend


@triton.jit
def finished(z, alpha, gain, clamp, ACT: tl.constexpr, CLAMPED: tl.constexpr):
    """clamp(gain · act(z))."""
    y = gain * value(z, alpha, ACT)
    if CLAMPED:
        y = tl.where(y > clamp, clamp, tl.where(y < -clamp, -clamp, y))
    return y


@triton.jit
def _passed(z, alpha, gain, clamp, ACT: tl.constexpr, CLAMPED: tl.constexpr):
    """The derivative of `finished` with respect to act(z): gain, 0 where y is clamped."""
    if CLAMPED:
        gain *= (tl.abs(gain * value(z, alpha, ACT)) <= clamp).to(z.dtype)
    return gain


@triton.jit
def slope(z, alpha, gain, clamp, ACT: tl.constexpr, CLAMPED: tl.constexpr):
    """The derivative of `finished`."""
    return _passed(z, alpha, gain, clamp, ACT, CLAMPED) * first(z, alpha, ACT)


@triton.jit
def bend(z, alpha, gain, clamp, ACT: tl.constexpr, CLAMPED: tl.constexpr):
    """The derivative of `slope`."""
    return _passed(z, alpha, gain, clamp, ACT, CLAMPED) * second(z, alpha, ACT)

"""When two results agree: derivatives of a problem, the textbook's answer in float64, and how far off one may be."""

import functools
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from gpseg.selftest import textbook
from gpseg.selftest.problems import Problem, by_name

FORWARD, BACKWARD, DOUBLE_BACKWARD = range(3)

DIRECTIONS = {"forward": FORWARD, "backward": BACKWARD, "double_backward": DOUBLE_BACKWARD}

DTYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
}


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t


Layout = Callable[[Tensor], Tensor]

LAYOUTS: dict[str, Layout] = {
    "nchw": lambda t: t.contiguous(),
    "channels_last": _channels_last,
}

TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-9}
"""Relative root-mean-square error that the result of one operator may have."""


def tolerance(problem: Problem, dtype: torch.dtype, order: int) -> float:
    """Relative root-mean-square error that derivatives of this order may have."""
    half = dtype in (torch.float16, torch.bfloat16)
    kinked = problem.op == "modulated_conv2d_act" and problem.options.get("act") != "swish"
    if half and kinked and order > FORWARD:
        # The convolution's result is rounded before the activation: an element next to the kink of lrelu or
        # the clamp may fall on the other side, and one of a few hundred is some per cent of the gradient.
        return TOLERANCE[dtype] * (1, 4, 8)[order]
    return TOLERANCE[dtype] * (1, 2, 2)[order] if half else TOLERANCE[dtype]


def relative_rms(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want|, 0 for two zeros and two empty tensors; NaN and infinity never pass."""
    assert got.shape == want.shape
    got, want = (t.detach().double().cpu() for t in (got, want))
    return float((got - want).norm() / want.norm().clamp(min=1e-30))


def derivatives(
    problem: Problem,
    module: ModuleType,
    inputs: dict[str, Tensor],
    order: int,
    layout: Layout = lambda t: t,
    rounding: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """The problem's result "y" (order 0), its gradients "x", … (order 1), or the gradients of a weighted sum of those
    with respect to "dy" and the inputs (order 2).

    Args:
        problem: what to call.
        module: whose operators.
        inputs: tensors by argument name.
        order: of the derivative.
        layout: of the inputs and of dy in memory.
        rounding: type that the random numbers dy and weights are rounded to.
    """
    leaves = {name: layout(t).detach().requires_grad_(order > 0) for name, t in inputs.items()}
    y = problem.call(module, leaves)
    if order == FORWARD:
        return {"y": y}
    generator = torch.Generator().manual_seed(1)

    def random_like(t: Tensor) -> Tensor:
        drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64)
        return drawn.to(rounding).to(t)

    dy = layout(random_like(y)).requires_grad_(order > BACKWARD)
    firsts = torch.autograd.grad(y, [*leaves.values()], dy, create_graph=order > BACKWARD)
    if order == BACKWARD:
        return dict(zip(leaves, firsts, strict=True))
    weighted = [(first, random_like(first)) for first in firsts]
    variables = {"dy": dy, **leaves}
    seconds = torch.autograd.grad(
        [first for first, _ in weighted],
        [*variables.values()],
        [c for _, c in weighted],
        allow_unused=True,
    )
    return {
        name: torch.zeros_like(t) if second is None else second
        for (name, t), second in zip(variables.items(), seconds, strict=True)
    }


@functools.cache
def wanted(name: str, dtype: torch.dtype, order: int) -> dict[str, Tensor]:
    """The textbook's answer in float64, on the CPU, for the named problem's inputs rounded to `dtype`."""
    problem = by_name(name)
    inputs = {k: t.double() for k, t in problem.tensors(dtype).items()}
    return derivatives(problem, textbook, inputs, order, rounding=dtype)

"""When two results agree: derivatives of a problem, the textbook's answer in float64, and how far off one may be."""

import functools
from collections.abc import Callable
from typing import Any

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


def draws(rounding: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Random tensors of the size, type and device of those given, one after another, the same for everybody; the
    numbers are rounded to this type."""
    generator = torch.Generator().manual_seed(1)

    def random_like(t: Tensor) -> Tensor:
        drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64)
        return drawn.to(rounding).to(t)

    return random_like


def derivatives(
    problem: Problem,
    module: Any,
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
    random_like = draws(rounding)
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


def firm(problem: Problem, y: Tensor, within: float) -> Tensor:
    """Where rounding can't put an element of the result `y` on the other side of a kink: 1, elsewhere 0.

    Activation and clamp bend at y = 0 and at |y| = clamp. Of millions of elements some lie so close to these that a
    right answer in a narrower type has the other slope there, which is no error of that answer.

    Args:
        problem: whose result.
        y: in float64.
        within: distance from a kink, relative to the root mean square of `y`.
    """
    distance = within * y.square().mean().sqrt()
    kept = torch.ones_like(y)
    by_default = "lrelu" if problem.op in ("modulated_conv2d_act", "fir_epilogue") else "linear"
    if problem.options.get("act", by_default) in ("relu", "lrelu", "selu"):
        kept *= y.abs() > distance
    if (clamp := problem.options.get("clamp")) is not None:
        kept *= (y.abs() - clamp).abs() > distance
    return kept


class Reference:
    """The textbook's answers to one problem in float64, on the CPU, whose inputs and cotangents are rounded to a type.

    Args:
        problem: what to answer.
        dtype: type of what is to be compared with them.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.problem, self.dtype = problem, dtype
        tensors = problem.tensors(dtype)
        self._leaves = {k: t.double().requires_grad_() for k, t in tensors.items()}
        self._y = problem.call(textbook, self._leaves)
        self._firm = firm(problem, self._y.detach(), TOLERANCE[dtype])
        random_like = draws(dtype)
        self._dy = (random_like(self._y) * self._firm).requires_grad_()
        self.dy = self._dy.detach()
        """The gradient of the result; 0 next to a kink, see `firm`."""
        self._weights = [random_like(t.detach()) for t in self._leaves.values()]

    @functools.cached_property
    def _firsts(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self._y, [*self._leaves.values()], self._dy, create_graph=True)

    def answers(self, order: int) -> dict[str, Tensor]:
        """As `derivatives` names them."""
        if order == FORWARD:
            return {"y": self._y.detach()}
        if order == BACKWARD:
            return {k: t.detach() for k, t in zip(self._leaves, self._firsts, strict=True)}
        variables = {"dy": self._dy, **self._leaves}
        seconds = torch.autograd.grad(
            self._firsts,
            [*variables.values()],
            self._weights,
            allow_unused=True,
            retain_graph=True,
        )
        return self.settled(dict(zip(variables, seconds, strict=True)))

    def settled(self, seconds: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """Second derivatives with zeros where there is none, and where that of dy is undecided by `firm`."""
        variables = {"dy": self._dy, **self._leaves}
        given = {
            k: torch.zeros_like(variables[k], dtype=self.dtype) if t is None else t
            for k, t in seconds.items()
        }
        return {**given, "dy": given["dy"] * self._firm.to(given["dy"])}

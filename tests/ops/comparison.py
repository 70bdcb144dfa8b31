"""What the tests of every operator share: backends, tolerances, layouts, derivatives of a problem."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.problems import Problem
from gpseg import ops

BACKENDS = [name for name, off in ops.backends().items() if off is None]

DTYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
}

TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-9}
"""Relative root-mean-square error that the result of one operator may have."""


def relative_rms(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want|, 0 for two zeros and two empty tensors; NaN and infinity never pass."""
    assert got.shape == want.shape
    error = (got.detach().double() - want.detach().double()).norm()
    return float(error / want.detach().double().norm().clamp(min=1e-30))


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t


def _permuted(t: Tensor) -> Tensor:
    return t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) if t.ndim == 4 else t


def _sliced(t: Tensor) -> Tensor:
    """Every other element of memory, between NaNs."""
    return torch.stack([torch.full_like(t, torch.nan), t], dim=-1)[..., 1]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda t: t.contiguous(),
    "channels_last": _channels_last,
    "permuted": _permuted,
    "sliced": _sliced,
}


def derivatives(
    problem: Problem,
    module: ModuleType,
    inputs: dict[str, Tensor],
    order: int,
    layout: Callable[[Tensor], Tensor] = lambda t: t,
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
    if order == 0:
        return {"y": y}
    generator = torch.Generator().manual_seed(1)

    def random_like(t: Tensor) -> Tensor:
        drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64)
        return drawn.to(rounding).to(t.dtype)

    dy = layout(random_like(y)).requires_grad_(order > 1)
    firsts = torch.autograd.grad(y, [*leaves.values()], dy, create_graph=order > 1)
    if order == 1:
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

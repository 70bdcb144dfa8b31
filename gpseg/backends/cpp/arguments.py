"""Tensors as the C++ kernels take them: dense, side inputs in the accumulation type."""

from typing import Any

import torch
from torch import Tensor

from gpseg.backends.layout import accumulate_dtype

kernels: Any = torch.ops.gpseg_cpp
"""What csrc/ops.cpp registers, once gpseg._C is loaded."""


def for_sums(t: Tensor | None, x: Tensor) -> Tensor | None:
    """A side input of an op on x, in the type that x is accumulated in."""
    return None if t is None else t.to(accumulate_dtype(x.dtype)).contiguous()


def sums_for(t: Tensor | None, x: Tensor) -> Tensor | None:
    """Where a kernel on x puts the gradient of the side input t; None if there is none."""
    if t is None:
        return None
    return torch.empty(t.shape, dtype=accumulate_dtype(x.dtype), device=t.device)


def as_gradient(sums: Tensor | None, t: Tensor | None) -> Tensor | None:
    """What `sums_for(t, …)` holds, as a gradient of t."""
    return None if sums is None or t is None else sums.to(t.dtype)

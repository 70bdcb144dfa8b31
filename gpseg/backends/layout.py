"""The layout rule that every backend and every fake kernel shares, and how kernels see what follows it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Layout of an op's output for the input x: channels_last where x `[N, C, H, W]` is, else contiguous."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def empty_in_layout_of(x: Tensor, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of the given size on x's device, in x's layout."""
    return torch.empty(
        size, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format_of(x)
    )


def in_layout_of(y: Tensor, x: Tensor) -> Tensor:
    """y in x's type and layout."""
    return _dense(y, x.dtype, memory_format_of(x))


def _dense(t: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """t in this type and layout; asking first costs the host less than conversions that change nothing."""
    if t.dtype != dtype:
        t = t.to(dtype)
    return t if t.is_contiguous(memory_format=layout) else t.contiguous(memory_format=layout)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type sums are taken in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def for_sums(t: Tensor | None, x: Tensor) -> Tensor | None:
    """A side input of an op on x, in the type that x is accumulated in."""
    return None if t is None else _dense(t, accumulate_dtype(x.dtype), torch.contiguous_format)


def flattened(x: Tensor, dim: int) -> tuple[int, int, int]:
    """Sizes of dense x in memory as [outer, channels, inner], the channels being dimension `dim`."""
    order = range(x.ndim) if x.is_contiguous() else (0, 2, 3, 1)
    sizes = [x.shape[i] for i in order]
    at = order.index(dim)
    return math.prod(sizes[:at]), sizes[at], math.prod(sizes[at + 1 :])

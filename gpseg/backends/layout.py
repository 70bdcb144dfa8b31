"""The layout rule that every backend and every fake kernel shares."""

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
    return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type sums are taken in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32

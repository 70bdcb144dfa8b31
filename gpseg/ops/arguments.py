"""Checks and defaults of arguments that several ops share."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_floating(op: str, name: str, x: Tensor) -> None:
    """Raise TypeError unless x is a tensor of one of the four floating types that the ops serve."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(
            f"{op}: {name} must be float16, bfloat16, float32 or float64, got {x.dtype}"
        )


def check_images(op: str, name: str, x: Tensor) -> None:
    """Raise unless x is a floating tensor `[N, C, H, W]`."""
    check_floating(op, name, x)
    if x.ndim != 4:
        raise ValueError(f"{op}: {name} must be [N, C, H, W], got {[*x.shape]}")


def check_device(op: str, name: str, t: Tensor, x: Tensor) -> None:
    """Raise ValueError unless t is on x's device."""
    if t.device != x.device:
        raise ValueError(f"{op}: {name} is on {t.device} but x on {x.device}")


def check_size(op: str, name: str, t: Tensor, size: torch.Size, x: Tensor) -> None:
    """Raise unless t is a floating tensor of the given size on x's device."""
    check_floating(op, name, t)
    check_device(op, name, t, x)
    if t.shape != size:
        raise ValueError(f"{op}: {name} must be {[*size]}, got {[*t.shape]}")


def check_filter(op: str, f: Tensor | None, x: Tensor) -> None:
    """Raise unless f is None or a non-empty floating filter of one or two dimensions on x's device."""
    if f is None:
        return
    check_floating(op, "the filter", f)
    check_device(op, "the filter", f, x)
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(
            f"{op}: the filter must be [taps] or [fh, fw], got {[*f.shape]}; see setup_filter"
        )


def pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """(x, y) from an int or a pair, each at least `least`."""
    x, y = (value, value) if isinstance(value, int) else _integers(name, value, (2,))
    if x < least or y < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return x, y


def filter_padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """(x0, x1, y0, y1) from an int, (x, y) or all four."""
    if isinstance(padding, int):
        return padding, padding, padding, padding
    values = _integers("padding", padding, (2, 4))
    x0, x1, y0, y1 = values if len(values) == 4 else [v for v in values for _ in range(2)]
    return x0, x1, y0, y1


def _integers(name: str, value: Sequence[int], lengths: tuple[int, ...]) -> list[int]:
    values = list(value) if isinstance(value, Sequence) else []
    if len(values) not in lengths or not all(isinstance(v, (int, torch.SymInt)) for v in values):
        wanted = " or ".join(str(n) for n in lengths)
        raise ValueError(f"{name} must be an int or {wanted} ints, got {value!r}")
    return values

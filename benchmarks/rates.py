"""What this machine does at best: the last cache, a copy and a matrix product, as torch has them."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN = 32 * 2**20
_LARGEST = 256 * 2**20
_SIDE = 1024


def last_cache(device: torch.device) -> int:
    """Bytes of the last-level cache; 32 MiB where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
    return max((int(size.rstrip("K")) * 1024 for size in sizes), default=_UNKNOWN)


@functools.cache
def large_copy(device: torch.device) -> tuple[Callable[[], object], int]:
    """`y.copy_(x)` of tensors, kept from then on, four times the last cache each, up to 256 MiB; with the bytes it reads and writes."""
    return equal_copy(2 * min(4 * last_cache(device), _LARGEST), device)


def equal_copy(moved: int, device: torch.device) -> tuple[Callable[[], object], int]:
    """`y.copy_(x)` that reads and writes this many bytes together; again with the bytes."""
    x = torch.zeros(max(1, moved // 8), device=device)
    y = torch.empty_like(x).fill_(1)
    return lambda: y.copy_(x), 8 * x.numel()


def matmul(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], int]:
    """The product of two square matrices of 1024 (on a GPU 8192) rows; with its operations, a multiply-add being two."""
    side = 8 * _SIDE if device.type == "cuda" else _SIDE
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * side**3

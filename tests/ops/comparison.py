"""What the tests of every operator share: backends and layouts."""

import torch
from torch import Tensor

from gpseg import ops
from gpseg.backends import refusal
from gpseg.selftest import comparison

ON = [name for name, off in ops.backends().items() if off is None]

BACKENDS = [name for name in ON if refusal(name, torch.device("cpu"), torch.float32) is None]
"""Those that serve tensors on the CPU."""


def device_of(backend: str) -> str:
    """Where a test of the backend puts its tensors."""
    return "cpu" if backend in BACKENDS else "cuda"


def is_slow(backend: str) -> bool:
    """Whether its launches take long, so that tests of many should do with fewer: gradcheck in its fast_mode, say."""
    return backend == "ttsem"


def _permuted(t: Tensor) -> Tensor:
    return t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) if t.ndim == 4 else t


def _sliced(t: Tensor) -> Tensor:
    """Every other element of memory, between NaNs."""
    return torch.stack([torch.full_like(t, torch.nan), t], dim=-1)[..., 1]


LAYOUTS = {**comparison.LAYOUTS, "permuted": _permuted, "sliced": _sliced}

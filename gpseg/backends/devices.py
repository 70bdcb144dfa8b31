"""What GPUs can do at best, for models of time: rooflines in the documentation, and choices not measured yet."""

import functools
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Gpu:
    """Peak rates from the maker's data sheets, dense, and assumed shares of them.

    Args:
        name: as people call it.
        bandwidth: bytes a second from and to memory.
        tensor: float16 and bfloat16 operations a second of the tensor cores, a multiply-add being two; TF32 has
            half of it.
        mma: the share of `tensor` that our fused convolution reaches at best with warp-level `mma.sync` instructions;
            later generations reach their peak with other ones only.
        triton: the share that Triton's fused convolution reaches at best, whose compiler uses those others (`wgmma`,
            `tcgen05`) where there are any.
        scalar: float32 operations a second outside the tensor cores.
        processors: streaming multiprocessors.
    """

    name: str
    bandwidth: float
    tensor: float
    mma: float
    triton: float
    scalar: float
    processors: int


# Shares: Hopper's were measured on an H200 (docs/results.md), the others are assumptions.
A100 = Gpu("A100 SXM 80 GB", 2.04e12, 312e12, 1.0, 1.0, 19.5e12, 108)
H100 = Gpu("H100 SXM", 3.35e12, 989e12, 0.26, 0.34, 66.9e12, 132)
H200 = replace(H100, name="H200 SXM", bandwidth=4.8e12)
B200 = Gpu("B200", 8.0e12, 2250e12, 0.3, 0.7, 75e12, 148)

BY_CAPABILITY = {(8, 0): A100, (9, 0): H100, (10, 0): B200}


@functools.cache  # every call of an op asks, and torch takes its time
def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)


def gpu_of(capability: tuple[int, int]) -> Gpu:
    """The one described here that is nearest below a compute capability.

    What a choice depends on is how many operations a GPU does for each byte it moves, and that is taken to be alike
    within a generation: a 4090 counts as an A100. AMD's GPUs, whose numbers are no compute capabilities, count as
    whatever their numbers come next to (gfx942, 9.4: as an H100).
    """
    below = [c for c in BY_CAPABILITY if c <= capability]
    return BY_CAPABILITY[max(below, default=(8, 0))]

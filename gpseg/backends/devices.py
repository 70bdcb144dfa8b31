"""What GPUs can do at best, for models of time: rooflines in the documentation, and choices not measured yet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Peak rates from the maker's data sheets, dense.

    Args:
        name: as people call it.
        bandwidth: bytes a second from and to memory.
        tensor: float16 and bfloat16 operations a second of the tensor cores, a multiply-add being two.
        mma: the share of `tensor` that warp-level `mma.sync` instructions reach; later generations reach
            their peak with other ones only.
        scalar: float32 operations a second outside the tensor cores.
        processors: streaming multiprocessors.
    """

    name: str
    bandwidth: float
    tensor: float
    mma: float
    scalar: float
    processors: int


A100 = Gpu("A100 SXM 80 GB", 2.04e12, 312e12, 1.0, 19.5e12, 108)
H100 = Gpu("H100 SXM", 3.35e12, 989e12, 0.6, 66.9e12, 132)
B200 = Gpu("B200", 8.0e12, 2250e12, 0.3, 75e12, 148)

BY_CAPABILITY = {(8, 0): A100, (9, 0): H100, (10, 0): B200}


def gpu_of(capability: tuple[int, int]) -> Gpu:
    """The one described here that is nearest below a compute capability."""
    below = [c for c in BY_CAPABILITY if c <= capability]
    return BY_CAPABILITY[max(below, default=(8, 0))]

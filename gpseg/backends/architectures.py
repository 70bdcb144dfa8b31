"""Which GPUs compiled kernels run on."""

import re
from collections.abc import Callable, Iterable

import torch


def unserved_gpu(
    device: torch.device | None, is_served: Callable[[tuple[int, int]], bool]
) -> str | None:
    """The name of a GPU that isn't served, unless another one is: a machine may have an old one for its display.

    Args:
        device: the only GPU that counts; None for all that torch sees.
        is_served: tells by compute capability.
    """
    wanted = range(torch.cuda.device_count()) if device is None else [device]
    if any(is_served(torch.cuda.get_device_capability(gpu)) for gpu in wanted):
        return None
    return torch.cuda.get_device_name(wanted[0])


def serves(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether a GPU runs code that was built for any of these architectures.

    Args:
        architectures: `sm_80` is machine code, for 8.0 and later 8.x; `compute_80` is PTX, which the driver
            compiles for any later GPU. With a suffix: `sm_90a` is for 9.0 alone, `sm_100f` for later 10.x.
        capability: the GPU's compute capability.
    """
    return any(_serves(name, capability) for name in architectures)


def _serves(name: str, capability: tuple[int, int]) -> bool:
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
    if match is None:
        raise ValueError(f"{name!r} is not an architecture")
    kind, major, minor, suffix = match.groups()
    built_for = (int(major), int(minor))
    if suffix == "a":
        return capability == built_for
    return capability >= built_for and (
        capability[0] == built_for[0] or (kind == "compute" and not suffix)
    )

"""Which GPUs compiled kernels run on."""

import re
from collections.abc import Iterable


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

"""Launching a kernel where its tensors are, with the configuration that the table, or a measurement, gives it."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpseg.backends.triton.configurations import Configuration, Target, configuration

Result = TypeVar("Result")

emulate: Callable[..., None] | None = None
"""What carries a launch on CPU tensors out, called as (kernel, programs, *arguments, **options): the tests put an
emulator here."""


def launch(kernel: Any, programs: int, x: Tensor, *arguments: Any, **options: Any) -> None:
    """Run as many programs of a kernel, on the device and the current stream of x; none where there is nothing to do.

    Args:
        kernel: what `triton.jit` made.
        programs: the grid, of one dimension: the others end at 65535.
        x: any tensor of the call.
        arguments, options: the kernel's, with `num_warps` and `num_stages` among the options.
    """
    if programs == 0:
        return
    if x.device.type == "cuda":
        with torch.cuda.device_of(x):  # Triton launches on the current device
            kernel[(programs,)](*arguments, **options)
    else:
        assert emulate is not None, "Triton's kernels run on a GPU"
        emulate(kernel, programs, *arguments, **options)


def target_of(device: torch.device) -> Target:
    """What kernels are compiled for on this device."""
    if device.type != "cuda":
        return "cuda", 90  # emulated
    if torch.version.hip is not None:
        return "hip", 0
    major, minor = torch.cuda.get_device_capability(device)
    return "cuda", 10 * major + minor


def configured(
    kernel: str, x: Tensor, shape: str, run: Callable[[Configuration], Result]
) -> Result:
    """Carry a call out with the configuration for this kernel, x's type and device, and shape class."""
    return run(configuration(kernel, x.dtype, shape, target_of(x.device)))

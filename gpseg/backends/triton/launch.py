"""Launching a kernel where its tensors are, with the configuration that the table, or a measurement, gives it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpseg.backends import measured
from gpseg.backends.devices import capability_of
from gpseg.backends.layout import memory_format_of
from gpseg.backends.triton.configurations import TABLE, Configuration, Target, configuration

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
    major, minor = capability_of(device)
    return "cuda", 10 * major + minor


def configured(
    kernel: str,
    x: Tensor,
    shape: str,
    run: Callable[[Configuration], Result],
    problem: str | None = None,
) -> Result:
    """Carry a call out with the configuration for this kernel, x's type and device, and shape class.

    Args:
        kernel: name in the table.
        x: the tensor whose type and device count.
        shape: shape class, as the kernel's module names it.
        run: carries the call out, to the same effect however often: with `gpseg.ops.benchmark` on, on a GPU, it is
            called with other configurations too, until the fastest one is known.
        problem: what that depends on besides type and shape class; None: x's size and layout.
    """
    target = target_of(x.device)
    usual = configuration(kernel, x.dtype, shape, target)
    if not measured.benchmark or x.device.type != "cuda":
        return run(usual)
    choices = _choices(kernel, x.dtype, shape, target)
    if len(choices) == 1:
        return run(usual)
    if problem is None:
        problem = f"{[*x.shape]} {memory_format_of(x)}"
    ways = {name: functools.partial(run, choice) for name, choice in choices.items()}
    whole = f"kernel={kernel} dtype={x.dtype} shape={shape} problem={problem}"
    fastest = measured.fastest(x.device, whole, ways, _unfit())
    return run(usual if fastest is None else choices[fastest])


@functools.lru_cache(maxsize=1024)  # every launch asks
def _choices(
    kernel: str, dtype: torch.dtype, shape: str, target: Target
) -> Mapping[str, Configuration]:
    """The configuration of this target and shape class, and those of other ones that are cut by the same sizes, by
    what tells them apart."""
    usual = configuration(kernel, dtype, shape, target)
    platform, _ = target
    others = [
        row.configuration
        for row in TABLE
        if row.kernel == kernel
        and row.holds(dtype, row.shape, (platform, row.since))
        and row.configuration.tile.keys() == usual.tile.keys()
    ]
    return {_name(choice): choice for choice in (usual, *others)}


def _name(choice: Configuration) -> str:
    sizes = {**choice.tile, "warps": choice.warps, "stages": choice.stages}
    return " ".join(f"{name}={size}" for name, size in sizes.items())


def _unfit() -> tuple[type[Exception], ...]:
    """What is raised where a kernel can't be compiled for this GPU, or takes more shared memory than it has."""
    from triton.errors import TritonError

    return TritonError, RuntimeError  # the latter by the compiler's later passes

"""Which way carries a modulated convolution out: one fused kernel, or torch's convolution between fused passes.

A model of time decides by default, a measurement (`gpseg.backends.measured`) where `gpseg.ops.benchmark` asks for it.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch

from gpseg.backends import measured
from gpseg.backends.devices import Gpu, capability_of, gpu_of

Result = TypeVar("Result")

FUSED, COMPOSED = "fused", "composed"


@dataclass(frozen=True)
class Problem:
    """What a choice depends on: a convolution and the passes around it.

    Args:
        backend: whose fused kernel it is, as in `gpseg.backends.NAMES`.
        direction: "forward", "input_grad" or "weight_grad".
        dtype: element type, as torch prints it; "tf32" for float32 whose products are rounded to that.
        n, in_c, in_h, in_w, out_c, out_h, out_w: sizes of what goes in and comes out; for the weight's gradient, of
            what the forward took and gave.
        taps: pixels of the kernel.
        stride: of the convolution; a transposed one multiplies 1/stride² of its taps at each pixel.
        transposed: whether it is a transposed convolution.
        passes: images of the output's size that the composed way moves besides the convolution's own result.
        keep: the convolution's result is stored too.
    """

    backend: str
    direction: str
    dtype: str
    n: int
    in_c: int
    in_h: int
    in_w: int
    out_c: int
    out_h: int
    out_w: int
    taps: int
    stride: int
    transposed: bool
    passes: int
    keep: bool

    def __str__(self) -> str:
        """All of it on one line."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


_LAUNCH = 4e-6
"""Seconds that a small kernel takes, whatever it does."""

_REACHED = 0.75
"""Share of a peak that a good kernel reaches."""

_TILE = 128
"""Channels by channels of the weight that one program of a weight gradient sums up, all its pixels read for it."""


def modelled_time(problem: Problem, gpu: Gpu, route: str) -> float:
    """Seconds on a GPU by a roofline model: the larger of arithmetic and traffic, kernel by kernel."""
    p = problem
    size = 4 if p.dtype in ("torch.float32", "tf32") else 2
    x, y = p.n * p.in_c * p.in_h * p.in_w * size, p.n * p.out_c * p.out_h * p.out_w * size
    pixels = p.in_h * p.in_w if p.transposed else p.out_h * p.out_w
    operations = 2 * p.n * pixels * p.in_c * p.out_c * p.taps
    weights = p.in_c * p.out_c * p.taps * size
    peak = _peak(problem, gpu, route)

    def kernel(traffic: float, arithmetic: float = 0.0) -> float:
        times = traffic / (gpu.bandwidth * _REACHED), arithmetic / (peak * _REACHED)
        return _LAUNCH + max(times)

    if route == FUSED:
        if p.direction == "weight_grad":
            # an image once for each tile of the other's channels; a tile's taps meet in the caches
            x, y = x * math.ceil(p.out_c / _TILE), y * math.ceil(p.in_c / _TILE)
        stored = y * (2 if p.keep else 1) + (y if p.direction == "input_grad" else 0)
        return kernel(x + weights + stored, operations)
    scaled = 0.0 if p.direction == "input_grad" else kernel(2 * x)
    epilogue = kernel(p.passes * y) if p.passes else 0.0
    return scaled + kernel(x + weights + y, operations) + epilogue


def _peak(problem: Problem, gpu: Gpu, route: str) -> float:
    """Operations a second of the units, and through the instructions, that a route's convolution uses."""
    if problem.dtype == "torch.float32":
        peak = gpu.scalar
    else:
        peak = gpu.tensor / 2 if problem.dtype == "tf32" else gpu.tensor
    if route == COMPOSED:
        return peak
    return peak * (gpu.triton if problem.backend == "triton" else gpu.mma)


# Process-wide, as `measured.benchmark` is: for GPU tensors autograd runs the backward in threads of its own.
_forced: tuple[str, list[Problem]] | None = None


@contextlib.contextmanager
def forced(route: str | None) -> Iterator[list[Problem]]:
    """Take one route wherever there is a choice; None: choose freely.

    Yields:
        What it was forced for, in the order of the calls: empty if there never was a choice.

    Raises:
        ValueError: there is no route of that name.
    """
    global _forced
    if route not in (FUSED, COMPOSED, None):
        raise ValueError(f"no route {route!r}; there are: {FUSED}, {COMPOSED}")
    problems: list[Problem] = []
    before, _forced = _forced, None if route is None else (route, problems)
    try:
        yield problems
    finally:
        _forced = before


def choose(
    problem: Problem,
    device: torch.device,
    fused: Callable[[], Result],
    composed: Callable[[], Result],
) -> Result:
    """Carry the problem out by whichever way is taken to be faster."""
    ways = {FUSED: fused, COMPOSED: composed}
    return ways[_route(problem, device, ways)]()


def _route(problem: Problem, device: torch.device, ways: Mapping[str, Callable[[], object]]) -> str:
    if _forced is not None:
        route, problems = _forced
        problems.append(problem)
        return route
    known = measured.fastest(device, problem, ways)
    if known is not None:
        return known
    if device.type != "cuda":
        return FUSED  # an emulator, which is there to run the kernels
    return _modelled(problem, gpu_of(capability_of(device)))


@functools.lru_cache(maxsize=4096)  # every call of an op asks
def _modelled(problem: Problem, gpu: Gpu) -> str:
    return min((FUSED, COMPOSED), key=lambda route: modelled_time(problem, gpu, route))

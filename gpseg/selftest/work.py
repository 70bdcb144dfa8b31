"""What a problem must move and compute at least, and what share of a GPU's peak a measured time is."""

import math

import torch

from gpseg.backends.devices import A100, B200, H100, H200, Gpu
from gpseg.backends.resampling import filter_taps
from gpseg.selftest import textbook
from gpseg.selftest.problems import Problem
from gpseg.selftest.timing import Direction

PEAKS = {
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
    "NVIDIA B200": B200,
}
"""By the name that the driver gives. Other variants of these have other peaks, so they are not here."""

FILTERS = ("upfirdn2d", "filter2d", "upsample2d", "downsample2d")
"""Operators that are linear, and need no input for their gradient."""


def output_size(problem: Problem) -> torch.Size:
    """Size of the problem's result."""
    tensors = {name: torch.empty(*size, device="meta") for name, size in problem.sizes.items()}
    return problem.call(textbook, tensors).shape


def bytes_moved(problem: Problem, dtype: torch.dtype, direction: Direction) -> int:
    """Bytes when everything that is needed is read once and every result written once.

    The backward reads the inputs again, but for filters, whose gradient needs none of them; the second derivative reads
    what weighs each first gradient besides.
    """
    read = sum(math.prod(size) for size in problem.sizes.values())
    result = math.prod(output_size(problem))
    if problem.op in FILTERS:
        elements = {"forward+backward": 2 * (read + result)}.get(direction, read + result)
    else:
        elements = {
            "forward": read + result,
            "backward": result + 2 * read,
            "forward+backward": 2 * result + 3 * read,
            "double_backward": 2 * result + 3 * read,
        }[direction]
    return elements * dtype.itemsize


def operations(problem: Problem, direction: Direction) -> int | None:
    """Operations of the convolution, a multiply-add being two; None for the others, which traffic rules."""
    weight = problem.sizes.get("weight") or problem.sizes.get("w")
    if weight is None:
        return None
    upsampled = problem.options.get("up", 1) > 1
    n, _, *pixels = problem.sizes["x"] if upsampled else output_size(problem)
    forward = 2 * n * math.prod(pixels) * math.prod(weight)
    times = {"forward": 1, "backward": 2, "forward+backward": 3, "double_backward": 4}
    return forward * times[direction]


def arithmetic(problem: Problem, direction: Direction) -> int:
    """Operations of whatever there is: convolution, else filter taps that meet a pixel, or about 6 an element."""
    convolved = operations(problem, direction)
    if convolved is not None:
        return convolved
    times = 2 if direction == "forward+backward" else 1
    pixels = max(math.prod(output_size(problem)), math.prod(problem.sizes["x"]))
    if problem.op not in FILTERS:
        return times * 6 * pixels
    f = problem.arguments()["f"]
    fh, fw = filter_taps(f)
    # Every sample of the smaller side meets every tap once.
    small = min(math.prod(output_size(problem)), math.prod(problem.sizes["x"]))
    taps = fh * fw if f is None or f.ndim == 2 else fh + fw
    return times * 2 * taps * small


def peak_operations(gpu: Gpu, dtype: torch.dtype) -> float | None:
    """Operations a second at best; None where the data sheets' figure depends on settings, as TF32's."""
    return gpu.tensor if dtype in (torch.float16, torch.bfloat16) else None

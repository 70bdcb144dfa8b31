"""What is measured and how: the same calls and the same clock for every benchmark."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import textbook
from benchmarks.problems import Problem
from gpseg import ops

Call = Callable[[], object]
Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
TEXTBOOK = "textbook"
BLOCK = 0.05  # seconds


def contestants() -> list[str]:
    """The textbook composition, and every backend that is on."""
    return [TEXTBOOK, *(name for name, off in ops.backends().items() if off is None)]


def prepare(
    problem: Problem, contestant: str, direction: Direction, dtype: torch.dtype, channels_last: bool
) -> Call:
    """A call that does the problem's work once.

    Args:
        problem: what to do.
        contestant: "textbook" or the name of a backend.
        direction: forward, without a graph; or backward alone, for gradients of every tensor.
        dtype: of the tensors.
        channels_last: layout of the images and weights.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tensors = {
        k: t.contiguous(memory_format=layout) if t.ndim == 4 else t
        for k, t in problem.tensors(dtype).items()
    }
    arguments = problem.arguments()
    module: Any = textbook if contestant == TEXTBOOK else ops
    function = getattr(module, problem.op)
    forced = None if contestant == TEXTBOOK else contestant
    if direction == "forward":

        def forward() -> object:
            with torch.no_grad(), ops.use_backend(forced):
                return function(**tensors, **arguments)

        return forward

    leaves = {k: t.requires_grad_() for k, t in tensors.items()}
    with ops.use_backend(forced):
        y = function(**leaves, **arguments)
    inputs, dy = list(leaves.values()), torch.randn_like(y)

    def backward() -> object:
        return torch.autograd.grad(y, inputs, dy, retain_graph=True)

    return backward


@dataclass(frozen=True)
class Timing:
    """Times of one contestant over the rounds, in seconds, and how many times as fast as the first one it was.

    The ratio is the median of the rounds' ratios, so that a machine that slows down slows both; `low` and `high`
    are the ratios' 20th and 80th percentile.
    """

    median: float
    ratio: float
    low: float
    high: float


def interleaved(
    calls: Mapping[str, Call],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    least_rounds: int = 7,
) -> dict[str, Timing]:
    """Time calls in turn, round after round; short ones several times in a row.

    Args:
        calls: by name; the first is what the others are compared with.
        seconds: for all of them together.
        clock: what times are read off, in seconds.
        least_rounds: at least this many rounds, however long that takes.
    """
    for call in calls.values():
        for _ in range(2):  # allocations, code paths chosen at first use
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(times[next(iter(calls))]) < least_rounds or time.perf_counter() < end:
        for name, call in calls.items():
            times[name].append(_mean_time(call, clock))
    reference = times[next(iter(calls))]
    timings = {}
    for name, own in times.items():
        ratios = [r / t for r, t in zip(reference, own, strict=True)]
        low, *_, high = statistics.quantiles(ratios, n=5)
        timings[name] = Timing(statistics.median(own), statistics.median(ratios), low, high)
    return timings


def _mean_time(call: Call, clock: Callable[[], float]) -> float:
    """Time of one call, over as many in a row as fill a block: what the contestant before left in the caches, and
    threads that have to wake up, weigh on the first alone."""
    start, count = clock(), 0
    while True:
        call()
        count += 1
        elapsed = clock() - start
        if elapsed >= BLOCK:
            return elapsed / count


def machine() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

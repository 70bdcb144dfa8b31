"""What is measured and how: the same calls and the same clocks for every benchmark."""

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gpseg import ops
from gpseg.backends import NAMES, measured, routes
from gpseg.selftest import textbook
from gpseg.selftest.problems import Problem

Call = Callable[[], object]
Timer = Callable[[Call], float]
Direction = Literal["forward", "backward", "forward+backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
BLOCK = 0.05  # seconds

_FLUSH = 256 * 2**20
"""Bytes: more than the second-level cache of any GPU."""


@dataclass(frozen=True)
class Contestant:
    """One way of doing a problem.

    Args:
        name: in tables.
        operators: module, or other object, that has functions with the signatures of `gpseg.ops`.
        backend: forced for `gpseg.ops`; None for none.
        route: forced for `gpseg.ops`, as in `gpseg.backends.routes`; None for none.
        measure: choices are made by measurement, as with `gpseg.ops.benchmark`.
    """

    name: str
    operators: Any
    backend: str | None = None
    route: str | None = None
    measure: bool = False

    @contextlib.contextmanager
    def forced(self) -> Iterator[None]:
        """Force backend, route and measurement."""
        with (
            ops.use_backend(self.backend),
            routes.forced(self.route),
            measured.switched(self.measure),
        ):
            yield


def serving_backends() -> list[str]:
    """The backends that are on and that calls would be served by unless one is forced: eager, which serves
    everything, is the last."""
    state = ops.backends()
    return [name for name in NAMES[: NAMES.index("eager") + 1] if state[name] is None]


def contestants() -> list[Contestant]:
    """The textbook composition, and every backend that serves by itself."""
    own = [Contestant(name, ops, name) for name in serving_backends()]
    return [Contestant("textbook", textbook), *own]


def inputs(
    problem: Problem,
    dtype: torch.dtype,
    channels_last: bool,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """The problem's tensors, images and weights in this layout, ready to take gradients."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    drawn = problem.tensors(dtype, device=device)
    return {
        k: (t.contiguous(memory_format=layout) if t.ndim == 4 else t).requires_grad_()
        for k, t in drawn.items()
    }


def prepare(
    problem: Problem, contestant: Contestant, direction: Direction, tensors: Mapping[str, Tensor]
) -> Call:
    """A call that does the problem's work once.

    Args:
        problem: what to do.
        contestant: who does it.
        direction: forward, without a graph; backward alone, or both, for gradients of every tensor.
        tensors: as `inputs` gives them.
    """
    arguments = problem.arguments(tensors["x"].device)
    function = getattr(contestant.operators, problem.op)

    def forward() -> Tensor:
        with torch.no_grad(), contestant.forced():
            result: Tensor = function(**tensors, **arguments)
        return result

    if direction == "forward":
        return forward
    leaves, dy = list(tensors.values()), torch.randn_like(forward())

    def both() -> object:
        with contestant.forced():
            return torch.autograd.grad(function(**tensors, **arguments), leaves, dy)

    if direction == "forward+backward":
        return both
    with contestant.forced():
        y = function(**tensors, **arguments)

    def backward() -> object:
        with contestant.forced():
            return torch.autograd.grad(y, leaves, dy, retain_graph=True)

    return backward


@dataclass(frozen=True)
class Timing:
    """Times of one contestant by round, in seconds, and how many times as fast as the first one it was.

    The ratio is the median of the rounds' ratios, so that a machine that slows down slows both; `low` and `high`
    are the ratios' 20th and 80th percentile.
    """

    times: list[float]
    median: float
    ratio: float
    low: float
    high: float


def interleaved(
    calls: Mapping[str, Call], seconds: float, timer: Timer, least_rounds: int = 7
) -> dict[str, Timing]:
    """Time calls in turn, round after round.

    Args:
        calls: by name; the first is what the others are compared with.
        seconds: for all of them together.
        timer: gives the seconds that a call takes.
        least_rounds: at least this many rounds, however long that takes.
    """
    for call in calls.values():
        for _ in range(2):  # allocations, code paths chosen at first use
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(times[next(iter(calls))]) < least_rounds or time.perf_counter() < end:
        for name, call in calls.items():
            times[name].append(timer(call))
    reference = times[next(iter(calls))]
    timings = {}
    for name, own in times.items():
        ratios = [r / t for r, t in zip(reference, own, strict=True)]
        low, *_, high = statistics.quantiles(ratios, n=5)
        timings[name] = Timing(own, statistics.median(own), statistics.median(ratios), low, high)
    return timings


def on_cpu(clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Time of one call, over as many in a row as fill a block: what the contestant before left in the caches, and
    threads that have to wake up, weigh on the first alone."""

    def timer(call: Call) -> float:
        start, count = clock(), 0
        while True:
            call()
            count += 1
            elapsed = clock() - start
            if elapsed >= BLOCK:
                return elapsed / count

    return timer


def on_gpu(device: torch.device, repeats: int = 10) -> Timer:
    """Median time of a call on the device itself, its caches emptied before each one, as a network's other layers
    would. Calls are queued without waiting, so that the host runs ahead where it is the faster of the two."""

    def timer(call: Call) -> float:
        flush = torch.empty(_FLUSH, dtype=torch.int8, device=device)
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(repeats)
        ]
        for before, after in events:
            flush.zero_()
            before.record(torch.cuda.current_stream(device))
            call()
            after.record(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
        return statistics.median(before.elapsed_time(after) / 1e3 for before, after in events)

    return timer


def machine() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

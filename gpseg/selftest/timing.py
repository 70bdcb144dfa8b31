"""What is measured and how: the same calls and the same clocks for every benchmark."""

import contextlib
import functools
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from gpseg import ops
from gpseg.backends import NAMES, measured, routes
from gpseg.selftest import grouped, parts, textbook
from gpseg.selftest.comparison import draws
from gpseg.selftest.problems import Problem
from gpseg.training.steps import short_collections

Call = Callable[[], object]
Timer = Callable[[Call], float]
Direction = Literal["forward", "backward", "forward+backward", "double_backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
BLOCK = 0.05  # seconds


@dataclass(frozen=True)
class Contestant:
    """One way of doing a problem.

    Args:
        name: in tables.
        operators: module, or other object, that has functions with the signatures of `gpseg.ops`.
        backend: forced for `gpseg.ops`; None for none.
        route: forced for `gpseg.ops`, as in `gpseg.backends.routes`; None for none.
        measure: choices are made by measurement, as with `gpseg.ops.benchmark`.
        layout: of what it is given, whatever the others get; None for the same as they.
        directions: what it can do; None for everything.
    """

    name: str
    operators: Any
    backend: str | None = None
    route: str | None = None
    measure: bool = False
    layout: str | None = None
    directions: tuple[Direction, ...] | None = None

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


def compiled(op: str) -> Contestant:
    """The textbook's function through torch.compile, which has no second derivative."""

    @functools.cache
    def function() -> Callable[..., Any]:
        return torch.compile(getattr(textbook, op), dynamic=False)  # takes seconds to import

    def call(*arguments: Any, **options: Any) -> Any:
        return function()(*arguments, **options)

    return Contestant(
        "compiled",
        SimpleNamespace(**{op: call}),
        directions=("forward", "backward", "forward+backward"),
    )


def contestants(op: str) -> list[Contestant]:
    """Every reasonable way of calling an operator: the textbook in NCHW, which the others are compared with; the same
    compiled; grouped convolution where it convolves with styles; and every backend that serves by itself, eager in
    channels_last.

    Call `torch.compiler.reset()` between problems, or torch gives up compiling after a few.
    """
    own = ops if hasattr(ops, op) else parts
    return [
        Contestant("textbook", textbook, layout="nchw"),
        compiled(op),
        *([Contestant("grouped", grouped)] if hasattr(grouped, op) else []),
        *(
            Contestant(name, own, name, layout="channels_last" if name == "eager" else None)
            for name in serving_backends()
        ),
    ]


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
    problem: Problem,
    contestant: Contestant,
    direction: Direction,
    tensors: Mapping[str, Tensor],
    dy: Tensor | None = None,
) -> Call:
    """A call that does the problem's work once.

    Args:
        problem: what to do.
        contestant: who does it.
        direction: forward, without a graph; backward alone, or both, for gradients of every tensor; or the second
            derivative alone, of every first gradient by every tensor and by dy.
        tensors: as `inputs` gives them.
        dy: gradient of the result; None for random numbers.

    Returns:
        The call; it returns the result, a tuple of gradients in the order of the tensors, or of second derivatives by
        dy and the tensors.
    """
    arguments = problem.arguments(tensors["x"].device)
    function = getattr(contestant.operators, problem.op)

    def forward() -> Tensor:
        with torch.no_grad(), contestant.forced():
            result: Tensor = function(**tensors, **arguments)
        return result

    if direction == "forward":
        return forward
    leaves, y = list(tensors.values()), forward()
    random_like = draws(y.dtype)
    drawn = random_like(y)
    dy = torch.empty_like(y).copy_(drawn if dy is None else dy)

    def both() -> object:
        with contestant.forced():
            return torch.autograd.grad(function(**tensors, **arguments), leaves, dy)

    if direction == "forward+backward":
        return both
    with contestant.forced(), _kept_graphs():
        y = function(**tensors, **arguments)

    def backward() -> object:
        with contestant.forced():
            return torch.autograd.grad(y, leaves, dy, retain_graph=True)

    if direction == "backward":
        return backward
    variables = [dy.requires_grad_(), *leaves]
    weights = [random_like(t) for t in leaves]
    with contestant.forced():
        firsts = torch.autograd.grad(y, leaves, dy, create_graph=True)

    def second() -> object:
        with contestant.forced():
            return torch.autograd.grad(
                firsts, variables, weights, retain_graph=True, allow_unused=True
            )

    return second


@contextlib.contextmanager
def _kept_graphs() -> Iterator[None]:
    """What is compiled within it can be differentiated more than once."""
    from torch._functorch import config  # private, and the only way to say so

    with config.patch(donated_buffer=False):
        yield


@dataclass(frozen=True)
class Parts:
    """A call made of others that are not done equally often: each with how often for one of the whole."""

    calls: Sequence[tuple[Call, float]]

    def __call__(self) -> None:
        """Each once."""
        for call, _ in self.calls:
            call()

    def total(self, timer: Timer) -> float:
        """Seconds for one of the whole."""
        return sum(timer(call) * often for call, often in self.calls)


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


def rounds(
    calls: Mapping[str, Call], seconds: float, timer: Timer, least_rounds: int = 7
) -> dict[str, list[float]]:
    """Time calls in turn, round after round.

    Args:
        calls: by name.
        seconds: for all of them together.
        timer: gives the seconds that a call takes.
        least_rounds: at least this many rounds, however long that takes.

    Returns:
        The times of each by round, in seconds.
    """
    for call in calls.values():
        for _ in range(2):  # allocations, code paths chosen at first use
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    with short_collections():  # for all alike, as the standard library's timeit has it
        while len(times[next(iter(calls))]) < least_rounds or time.perf_counter() < end:
            for name, call in calls.items():
                times[name].append(timer(call))
    return times


def interleaved(
    calls: Mapping[str, Call], seconds: float, timer: Timer, least_rounds: int = 7
) -> dict[str, Timing]:
    """`rounds`, the first call being what the others are compared with."""
    times = rounds(calls, seconds, timer, least_rounds)
    reference = times[next(iter(calls))]
    return {
        name: Timing(own, statistics.median(own), *ratios(reference, own))
        for name, own in times.items()
    }


def ratios(reference: Sequence[float], own: Sequence[float]) -> tuple[float, float, float]:
    """How many times as fast the own times are as the reference's of the same rounds: median, 20th, 80th percentile."""
    each = [r / t for r, t in zip(reference, own, strict=True)]
    return statistics.median(each), *spread(each)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """20th and 80th percentile."""
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    return low, high


def on_cpu(clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Time of one call, over as many in a row as fill a block, after one that is not counted: what the contestant before
    left in caches and allocators, and threads that have to wake up, weigh on that. Of `Parts` it is the weighted sum."""

    def timer(call: Call) -> float:
        if isinstance(call, Parts):
            return call.total(timer)
        call()
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
    would. The device begins late, when calls have been queued: what the host takes to queue a call that keeps the device
    busy for less does not count, as it would not within a CUDA graph. Of `Parts` it is the weighted sum."""

    def timer(call: Call) -> float:
        if isinstance(call, Parts):
            return call.total(timer)
        call()  # what is done once is not a matter of queueing
        start = time.perf_counter()
        call()
        to_queue = (repeats + 1) * (time.perf_counter() - start)
        return statistics.median(measured.queued_times(device, call, repeats, to_queue))

    return timer


def machine() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

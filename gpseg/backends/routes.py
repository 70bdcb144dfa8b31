"""Which way carries a modulated convolution out: one fused kernel, or torch's convolution between fused passes.

As with `torch.backends.cudnn.benchmark`: a model decides by default; with `benchmark` on, both ways are timed once for
each kind of problem, and the faster one is taken from then on. GPSEG_ROUTES names a file that remembers these choices,
by GPU, across processes.
"""

import contextlib
import functools
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch

from gpseg.atomic import replacing
from gpseg.backends.devices import Gpu, gpu_of

Result = TypeVar("Result")

FUSED, COMPOSED = "fused", "composed"

benchmark = False
"""Measure instead of using the model; set as `gpseg.ops.benchmark`."""

_ROUNDS = 7


@dataclass(frozen=True)
class Problem:
    """What a choice depends on: a convolution and the passes around it.

    Args:
        backend: whose fused kernel it is, as in `gpseg.backends.NAMES`.
        direction: "forward", "input_grad" or "weight_grad".
        dtype: element type, as torch prints it.
        n, in_c, in_h, in_w, out_c, out_h, out_w: sizes of what goes in and comes out.
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

    @property
    def key(self) -> str:
        """All of it on one line."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


_LAUNCH = 4e-6
"""Seconds that a small kernel takes, whatever it does."""

_REACHED = 0.75
"""Share of a peak that a good kernel reaches."""


def modelled_time(problem: Problem, gpu: Gpu, route: str) -> float:
    """Seconds on a GPU by a roofline model: the larger of arithmetic and traffic, kernel by kernel."""
    p = problem
    x, y = p.n * p.in_c * p.in_h * p.in_w * 2, p.n * p.out_c * p.out_h * p.out_w * 2
    pixels = p.in_h * p.in_w if p.transposed else p.out_h * p.out_w
    operations = 2 * p.n * pixels * p.in_c * p.out_c * p.taps
    weights = p.in_c * p.out_c * p.taps * 2

    def kernel(traffic: float, arithmetic: float = 0.0, peak: float = 1.0) -> float:
        times = traffic / (gpu.bandwidth * _REACHED), arithmetic / (peak * _REACHED)
        return _LAUNCH + max(times)

    if route == FUSED:
        stored = y * (2 if p.keep else 1) + (y if p.direction == "input_grad" else 0)
        return kernel(x + weights + stored, operations, gpu.tensor * gpu.mma)
    scaled = kernel(2 * x) if p.direction == "forward" else 0.0
    epilogue = kernel(p.passes * y) if p.passes else 0.0
    return scaled + kernel(x + weights + y, operations, gpu.tensor) + epilogue


# Process-wide, as `benchmark` is: for GPU tensors autograd runs the backward in threads of its own.
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
    return {FUSED: fused, COMPOSED: composed}[_route(problem, device, fused, composed)]()


def _route(
    problem: Problem,
    device: torch.device,
    fused: Callable[[], object],
    composed: Callable[[], object],
) -> str:
    if _forced is not None:
        route, problems = _forced
        problems.append(problem)
        return route
    if benchmark:
        known = _memory.get(device, problem)
        if known is not None:
            return known
        if not _capturing(device):
            times = _measured(device, {FUSED: fused, COMPOSED: composed})
            fastest = min(times, key=lambda route: times[route])
            _memory.put(device, problem, fastest)
            return fastest
    if device.type != "cuda":
        return FUSED  # the emulator, which is there to run the kernels
    return _modelled(problem, gpu_of(torch.cuda.get_device_capability(device)))


@functools.lru_cache(maxsize=4096)  # every call of an op asks
def _modelled(problem: Problem, gpu: Gpu) -> str:
    return min((FUSED, COMPOSED), key=lambda route: modelled_time(problem, gpu, route))


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _measured(device: torch.device, ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each way; they take turns, so that a change of clock meets both."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + _ROUNDS):
        for name, way in ways.items():
            seconds = _timed(device, way)
            if turn > 0:  # the first one warms up
                times[name].append(seconds)
    return {name: statistics.median(taken) for name, taken in times.items()}


def _timed(device: torch.device, way: Callable[[], object]) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        way()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream = torch.cuda.current_stream(device)
    before.record(stream)
    way()
    after.record(stream)
    after.synchronize()
    return before.elapsed_time(after) / 1e3


class _Memory:
    """Measured choices by device and problem, and the file that keeps them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._routes: dict[str, dict[str, str]] = {}
        self._read: Path | None = None

    def get(self, device: torch.device, problem: Problem) -> str | None:
        with self._lock:
            self._load()
            return self._routes.get(_name(device), {}).get(problem.key)

    def put(self, device: torch.device, problem: Problem, route: str) -> None:
        with self._lock:
            self._load()
            self._routes.setdefault(_name(device), {})[problem.key] = route
            if self._read is not None:
                # what another process added meanwhile is kept; that it can't be written must not stop a run
                with contextlib.suppress(OSError):
                    self._merge(_routes_in(self._read))
                    self._read.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(self._read) as temporary:
                        temporary.write_text(json.dumps(self._routes, indent=1, sort_keys=True))

    def clear(self) -> None:
        with self._lock:
            self._routes, self._read = {}, None

    def _load(self) -> None:
        path = os.environ.get("GPSEG_ROUTES")
        wanted = Path(path) if path else None
        if wanted != self._read:
            self._read = wanted
            if wanted is not None:
                self._merge(_routes_in(wanted))

    def _merge(self, stored: dict[str, dict[str, str]]) -> None:
        for device, routes in stored.items():
            self._routes[device] = {**routes, **self._routes.get(device, {})}


def _routes_in(path: Path) -> dict[str, dict[str, str]]:
    """What the file holds; nothing if it is missing or not such a file, which the next choice then replaces."""
    try:
        stored = json.loads(path.read_text())
        return {
            str(device): {str(k): v for k, v in routes.items() if v in (FUSED, COMPOSED)}
            for device, routes in stored.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}


def _name(device: torch.device) -> str:
    """What measured times hold for: this kind of GPU, with this torch."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{gpu}, torch {torch.__version__}"


_memory = _Memory()


def forget() -> None:
    """Drop measured choices from memory; the file that GPSEG_ROUTES names stays."""
    _memory.clear()

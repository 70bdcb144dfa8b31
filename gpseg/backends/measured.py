"""Choices made by measurement: of several ways to do the same thing, the one that was the fastest on this GPU.

As with `torch.backends.cudnn.benchmark`: with `benchmark` on, the ways are timed once for each problem, and the fastest
one is taken from then on. GPSEG_ROUTES names a file that remembers these choices, by GPU, across processes.
"""

import contextlib
import functools
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from gpseg.atomic import replacing

benchmark = False
"""Measure; set as `gpseg.ops.benchmark`."""

_ROUNDS = 7

_FLUSH = 256 * 2**20
"""Bytes: more than the second-level cache of any GPU."""

_CLOCK = 2e9
"""Clock cycles a second, more than most GPUs have."""

_HEAD_START = 1e-3
"""Seconds: what the host takes to queue a way, and more."""


@contextlib.contextmanager
def switched(on: bool) -> Iterator[None]:
    """Measure, or don't, within it."""
    global benchmark
    before, benchmark = benchmark, on
    try:
        yield
    finally:
        benchmark = before


def fastest(
    device: torch.device,
    problem: object,
    ways: Mapping[str, Callable[[], object]],
    unfit: tuple[type[Exception], ...] = (),
) -> str | None:
    """The name of the fastest way, measured now if it was not before.

    Args:
        device: where the ways run.
        problem: what the choice holds for; its `str` tells it from every other problem.
        ways: what to choose from; each has the same effect however often it is called.
        unfit: exceptions of a way that can't be taken here; the others are measured without it.

    Returns:
        None where nothing is measured: `benchmark` is off or results are to be deterministic, no way is fit or memory
        doesn't suffice to measure, or a CUDA graph is being captured, in which a measurement would become part of the graph,
        and the problem is new.
    """
    if not benchmark or torch.are_deterministic_algorithms_enabled():
        return None
    key = str(problem)
    known = _memory.get(device, key)
    if known in ways:  # what a file remembers may be gone
        return known
    if _capturing(device):
        return None
    try:
        times = _measured(device, ways, unfit)
    except torch.OutOfMemoryError:
        return None
    if not times:
        return None
    name = min(times, key=lambda name: times[name])
    _memory.put(device, key, name)
    return name


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _measured(
    device: torch.device,
    ways: Mapping[str, Callable[[], object]],
    unfit: tuple[type[Exception], ...],
) -> dict[str, float]:
    """Median seconds of each fit way; they take turns, so that a change of clock meets all of them."""
    times: dict[str, list[float]] = {}
    for name, way in ways.items():
        with contextlib.suppress(*unfit):
            way()  # compiles, allocates, and chooses within itself where there is a choice
            times[name] = []
    for _ in range(_ROUNDS):
        for name, taken in times.items():
            taken.append(_timed(device, ways[name]))
    return {name: statistics.median(taken) for name, taken in times.items()}


def _timed(device: torch.device, way: Callable[[], object]) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        way()
        return time.perf_counter() - start
    (seconds,) = queued_times(device, way, 1, _HEAD_START)
    return seconds


def queued_times(
    device: torch.device, call: Callable[[], object], repeats: int, head_start: float
) -> list[float]:
    """Seconds that each of several calls takes on a GPU, its caches emptied before, as a network's other layers would.

    Args:
        device: where the calls run.
        call: what to repeat.
        repeats: how often.
        head_start: seconds that the GPU waits before the first: where all calls are queued by then, it is not the host
            that is timed.
    """
    flush = torch.empty(_FLUSH, dtype=torch.int8, device=device)
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        torch.cuda._sleep(int(_CLOCK * head_start))
        for before, after in events:
            flush.zero_()
            before.record(stream)
            call()
            after.record(stream)
        stream.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in events]


Choices = dict[str, dict[str, str]]
"""The fastest way by device and problem."""


class _Memory:
    """Measured choices, and the file that keeps them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._choices: Choices = {}
        self._read: Path | None = None

    def get(self, device: torch.device, key: str) -> str | None:
        with self._lock:
            self._load()
            return self._choices.get(_name(device), {}).get(key)

    def put(self, device: torch.device, key: str, name: str) -> None:
        with self._lock:
            self._load()
            self._choices.setdefault(_name(device), {})[key] = name
            if self._read is not None:
                # what another process added meanwhile is kept; that it can't be written must not stop a run
                with contextlib.suppress(OSError):
                    self._merge(_choices_in(self._read))
                    self._read.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(self._read) as temporary:
                        temporary.write_text(json.dumps(self._choices, indent=1, sort_keys=True))

    def all(self) -> Choices:
        with self._lock:
            return {device: dict(choices) for device, choices in self._choices.items()}

    def clear(self) -> None:
        with self._lock:
            self._choices, self._read = {}, None

    def _load(self) -> None:
        path = os.environ.get("GPSEG_ROUTES")
        wanted = Path(path) if path else None
        if wanted != self._read:
            self._read = wanted
            if wanted is not None:
                self._merge(_choices_in(wanted))

    def _merge(self, stored: Choices) -> None:
        for device, choices in stored.items():
            self._choices[device] = {**choices, **self._choices.get(device, {})}


def _choices_in(path: Path) -> Choices:
    """What the file holds; nothing if it is missing or not such a file, which the next choice then replaces."""
    try:
        stored = json.loads(path.read_text())
        return {
            str(device): {str(k): v for k, v in choices.items() if isinstance(v, str)}
            for device, choices in stored.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}


@functools.cache  # every call of an op asks
def _name(device: torch.device) -> str:
    """What measured times hold for: this kind of GPU, with this torch, which brings its Triton."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{gpu}, torch {torch.__version__}"


_memory = _Memory()


def choices() -> Choices:
    """What was measured or read from the file so far."""
    return _memory.all()


def forget() -> None:
    """Drop measured choices from memory; the file that GPSEG_ROUTES names stays."""
    _memory.clear()

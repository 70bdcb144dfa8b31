"""How fast the operators are on a GPU, each by all its routes and with measured choices, and the usual ways of composing
them, in turn."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gpseg import ops
from gpseg.backends import measured, refusal, routes
from gpseg.backends.devices import Gpu
from gpseg.selftest import grouped, textbook, work
from gpseg.selftest.checks import one_line
from gpseg.selftest.comparison import DTYPES
from gpseg.selftest.problems import LAYERS, NAMED, Problem
from gpseg.selftest.timing import (
    Call,
    Contestant,
    Direction,
    Timer,
    Timing,
    compiled,
    inputs,
    interleaved,
    prepare,
)

DIRECTIONS: tuple[Direction, ...] = ("forward", "forward+backward")


@dataclass(frozen=True)
class Race:
    """A problem for all contestants, with images of this type and, unless a contestant stands for one, layout."""

    problem: Problem
    dtype: str
    layout: str
    direction: Direction


@dataclass(frozen=True)
class RaceResult:
    """One contestant in a race.

    Args:
        race, contestant: which.
        timing: its times; None if it could not be timed.
        bytes_per_second: of what has to be moved at least, by `gpseg.selftest.work`.
        operations_per_second: of the convolution; None without one.
        of_bandwidth, of_peak: shares of what the GPU can do; None where that is not known.
        choices: what it measured to be the fastest, as `gpseg.backends.measured` has it.
        error: why it could not be timed.
    """

    race: Race
    contestant: str
    timing: Timing | None
    bytes_per_second: float | None = None
    operations_per_second: float | None = None
    of_bandwidth: float | None = None
    of_peak: float | None = None
    choices: measured.Choices = field(default_factory=dict)
    error: str = ""


def races(quick: bool) -> list[Race]:
    """What is timed; `quick`: one type, and of the layers a few."""
    if quick:
        grid = [(p, "bf16") for p in (*NAMED, *LAYERS) if p in NAMED or "-256-batch-8" in p.name]
    else:
        grid = [(p, dtype) for p in (*NAMED, *LAYERS) for dtype in ("bf16", "f16", "f32")]
    return [
        Race(p, dtype, "nchw" if dtype == "f32" else "channels_last", direction)
        for p, dtype in grid
        for direction in DIRECTIONS
    ]


def rows(
    race: Race, backends: Sequence[str], device: torch.device, timer: Timer, seconds: float
) -> list[RaceResult]:
    """Time every contestant, in turn with the others; ratios refer to the first one that could be timed.

    Backends that do not serve this device and type are left out.
    """
    serving = [b for b in backends if not refusal(b, device, DTYPES[race.dtype])]
    try:
        return list(_timed(race, serving, device, timer, seconds))
    except Exception as error:  # most likely memory: the next race may fit
        return [RaceResult(race, "all", None, error=one_line(error))]


def _timed(
    race: Race, backends: Sequence[str], device: torch.device, timer: Timer, seconds: float
) -> Iterator[RaceResult]:
    drawn = {
        layout: inputs(race.problem, DTYPES[race.dtype], layout == "channels_last", device)
        for layout in ("nchw", "channels_last")
    }
    measured.forget()
    contestants: dict[str, Contestant] = {}
    calls: dict[str, Call] = {}
    for contestant, layout in _contestants(race, backends, drawn[race.layout]):
        try:
            call = prepare(race.problem, contestant, race.direction, drawn[layout])
            call()
        except Exception as error:  # memory, a compiler that is not there: the others still run
            yield RaceResult(race, contestant.name, None, error=one_line(error))
        else:
            contestants[contestant.name], calls[contestant.name] = contestant, call
    gpu = work.PEAKS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    for name, timing in interleaved(calls, seconds, timer).items() if calls else ():
        row = _row(race, name, timing, gpu)
        yield replace(row, choices=measured.choices()) if contestants[name].measure else row


def _contestants(
    race: Race, backends: Sequence[str], tensors: dict[str, Tensor]
) -> Iterator[tuple[Contestant, str]]:
    """With the layout of what each is given."""
    op = race.problem.op
    yield Contestant("textbook, nchw", textbook), "nchw"
    yield Contestant("textbook, channels_last", textbook), "channels_last"
    torch.compiler.reset()  # or it would give up after a few problems
    yield compiled(op), race.layout
    if hasattr(grouped, op):
        yield Contestant("grouped", grouped), race.layout
    for backend in backends:
        yield Contestant(backend, ops, backend), race.layout
        for variant in _variants(race.problem, backend, tensors):
            yield variant, race.layout


def _variants(problem: Problem, backend: str, tensors: dict[str, Tensor]) -> list[Contestant]:
    """The backend by each route and by measurement, as far as it has a choice; none if it fails, which its row says."""
    measuring = Contestant(f"{backend}, measured", ops, backend, measure=True)
    variants = []
    with contextlib.suppress(Exception), torch.no_grad():
        with ops.use_backend(backend), routes.forced(routes.COMPOSED) as chosen:
            problem.call(ops, tensors)
        for route in (routes.FUSED, routes.COMPOSED) if chosen else ():
            variants.append(Contestant(f"{backend}, {route}", ops, backend, route))
        known = measured.choices()
        with measuring.forced():
            problem.call(ops, tensors)
        if measured.choices() != known:
            variants.append(measuring)
    return variants


def _row(race: Race, name: str, timing: Timing, gpu: Gpu | None) -> RaceResult:
    dtype = DTYPES[race.dtype]
    moved = work.bytes_moved(race.problem, dtype, race.direction) / timing.median
    count = work.operations(race.problem, race.direction)
    done = None if count is None else count / timing.median
    peak = None if gpu is None else work.peak_operations(gpu, dtype)
    return RaceResult(
        race,
        name,
        timing,
        moved,
        done,
        None if gpu is None else moved / gpu.bandwidth,
        None if done is None or peak is None else done / peak,
    )

"""Measuring: the check that comes before, the rounds in which contestants take turns, and the peak of memory."""

import contextlib
import logging
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import rates
from benchmarks.rows import Row
from gpseg.processes import in_fresh_process
from gpseg.selftest import memory, models, work
from gpseg.selftest.checks import Finding, judged, one_line, strict
from gpseg.selftest.comparison import Reference, relative_rms, tolerance
from gpseg.selftest.models import (
    ModelContestant,
    ModelDirection,
    ModelProblem,
    model_contestants,
    prepare_model,
)
from gpseg.selftest.problems import PARTS, Problem
from gpseg.selftest.timing import (
    Call,
    Contestant,
    Direction,
    contestants,
    inputs,
    on_cpu,
    on_gpu,
    prepare,
    ratios,
    rounds,
    spread,
)

ORDERS: dict[Direction, int] = {
    "forward": 0,
    "backward": 1,
    "forward+backward": 1,
    "double_backward": 2,
}
CHECKED: tuple[Direction, ...] = ("forward", "backward")
"""What must be right before anything is timed, whatever is asked for."""

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no GPU

_COPY, _EQUAL_COPY, _MATMUL = "the large copy", "the equal copy", "the matrix product"
_MODEL_ROUNDS = 5


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        seconds: for each row; at least 7 rounds are made, of whole models 5.
        threads: of the CPU.
        device: where.
        contestants: names of those that take part besides the textbook; empty for all.
        memory: measure the peak of memory too.
        memory_but: names of those whose memory is not measured, as compiling takes long.
    """

    seconds: float = 1.0
    threads: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    contestants: tuple[str, ...] = ()
    memory: bool = True
    memory_but: tuple[str, ...] = ()

    def admits(self, name: str) -> bool:
        """Whether a contestant of this name takes part."""
        return not self.contestants or name == "textbook" or name in self.contestants

    def timer(self) -> Callable[[Call], float]:
        """The clock for the device."""
        return on_gpu(self.device) if self.device.type == "cuda" else on_cpu()

    def least_rounds(self, model: bool) -> int:
        """The fewest rounds."""
        return (_MODEL_ROUNDS if model else 7) if self.seconds else 2


def type_name(dtype: torch.dtype) -> str:
    """As torch has it."""
    return str(dtype).removeprefix("torch.")


def operator_rows(
    problem: Problem,
    directions: Sequence[Direction],
    dtype: torch.dtype,
    layout: str,
    settings: Settings,
    trusted: Collection[str] | None = None,
) -> Iterator[Row]:
    """Check and measure every contestant in an operator's problem.

    Args:
        problem: what to do.
        directions: what of it.
        dtype, layout: of the images.
        settings: how.
        trusted: names of contestants that are measured without a check, and no others; None: all are checked.

    Yields:
        Direction by direction, the textbook's row and those of the others.
    """
    part = problem.op in {p.op for p in PARTS}
    directions = [d for d in directions if d == "forward" or not part]
    torch.compiler.reset()
    torch.set_num_threads(settings.threads)
    drawn = {
        name: on(settings.device, inputs(problem, dtype, name == "channels_last"))
        for name in ("nchw", "channels_last")
    }
    if trusted is None:
        taking_part = [c for c in contestants(problem.op) if settings.admits(c.name)]
        asked = [*(("forward",) if part else CHECKED), *directions]
        findings = _checked(problem, taking_part, asked, dtype, layout, drawn)
    else:
        taking_part = [c for c in contestants(problem.op) if c.name in trusted]
        findings = {(c.name, d): Finding("passed") for c in taking_part for d in directions}
    for direction in directions:
        rows: list[Row] = []
        calls: dict[str, Call] = {}
        for c in taking_part:
            if (c.name, direction) not in findings:
                continue
            own = [f for (name, _), f in findings.items() if name == c.name]
            finding = findings[c.name, direction]
            row = Row(
                "part" if part else "operator",
                f"{problem.name} {direction} {type_name(dtype)} {layout}",
                problem.name,
                c.name,
                direction,
                type_name(dtype),
                c.layout or layout,
                settings.threads,
                deviation=finding.error,
                tolerance=finding.tolerance,
            )
            wrong = next((f for f in own if f.outcome != "passed"), None)
            if wrong is not None:
                rows.append(_failed(row, wrong))
                continue
            tensors = drawn[c.layout or layout]
            calls[c.name] = prepare(problem, c, direction, tensors)
            rows.append(row)
        moved = work.bytes_moved(problem, dtype, direction)
        count = work.operations(problem, direction)
        rows = _timed(rows, calls, settings, moved, count, dtype)
        arithmetic = work.arithmetic(problem, direction)

        def peak(row: Row, direction: Direction = direction) -> int:
            return in_fresh_process(
                operator_peak,
                problem,
                row.contestant,
                direction,
                dtype,
                row.layout,
                settings.device,
                settings.threads,
            )

        for row in _with_memory(rows, settings, peak):
            yield replace(row, arithmetic=arithmetic)


def on(device: torch.device, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers that the CPU draws, on a device."""
    return {k: t.detach().to(device).requires_grad_() for k, t in tensors.items()}


def _checked(
    problem: Problem,
    taking_part: Sequence[Contestant],
    directions: Iterable[Direction],
    dtype: torch.dtype,
    layout: str,
    drawn: Mapping[str, Mapping[str, Tensor]],
) -> dict[tuple[str, str], Finding]:
    """By contestant and direction, as far as it has it."""
    reference = Reference(problem, dtype)
    return {
        (c.name, direction): check(problem, c, direction, drawn[c.layout or layout], reference)
        for c in taking_part
        for direction in dict.fromkeys(directions)
        if c.directions is None or direction in c.directions
    }


def check(
    problem: Problem,
    contestant: Contestant,
    direction: Direction,
    tensors: Mapping[str, Tensor],
    reference: Reference,
) -> Finding:
    """Whether the very call that is to be timed gives what the textbook gives in float64."""
    try:
        with _checking(contestant.name):
            dy = reference.dy.to(tensors["x"])
            got = prepare(problem, contestant, direction, tensors, dy)()
    except Exception as error:
        return Finding("error", detail=one_line(error))
    order = ORDERS[direction]
    want = reference.answers(order)
    results = [got] if isinstance(got, Tensor) else list(got)  # type: ignore[call-overload]
    named: dict[str, Any] = dict(zip(want, results, strict=True))
    if order == 2:
        named = reference.settled(named)
    if wrong := [f"{n} is {t.dtype}" for n, t in named.items() if t.dtype != reference.dtype]:
        return Finding("failed", detail=wrong[0])
    errors = {name: relative_rms(t, want[name]) for name, t in named.items()}
    return judged(errors, tolerance(problem, reference.dtype, order))


def _checking(contestant: str) -> contextlib.AbstractContextManager[None]:
    """How a contestant is checked: strictly, float32 being float32, unless torch.compile would compile twice for that."""
    return contextlib.nullcontext() if contestant == "compiled" else strict()


def operator_peak(
    problem: Problem,
    name: str,
    direction: Direction,
    dtype: torch.dtype,
    layout: str,
    device: torch.device,
    threads: int,
) -> int:
    """Peak memory of a contestant, in this process; of a backward with the forward, of a second derivative with both."""
    torch.set_num_threads(threads)
    tensors = inputs(problem, dtype, layout == "channels_last", device)
    contestant = next(c for c in contestants(problem.op) if c.name == name)
    if direction == "double_backward":
        return memory.peak_rise(lambda: prepare(problem, contestant, direction, tensors)(), device)
    whole: Direction = "forward+backward" if direction == "backward" else direction
    return memory.peak_rise(prepare(problem, contestant, whole, tensors), device)


def model_rows(
    problem: ModelProblem,
    directions: Sequence[ModelDirection],
    dtypes: Sequence[torch.dtype],
    settings: Settings,
) -> Iterator[Row]:
    """Check and measure every contestant in a whole model's problem.

    Args:
        problem: what to do.
        directions: what of it.
        dtypes: of the features; float32 is always among them, and the only one for all but gpseg.
        settings: how.

    Yields:
        As `operator_rows`.
    """
    for direction in directions:
        torch.compiler.reset()
        torch.set_num_threads(settings.threads)
        want = models.reference(problem, direction, settings.device)
        rows: list[Row] = []
        calls: dict[str, Call] = {}
        for c in model_contestants(problem, dtypes):
            if not settings.admits(c.name):
                continue
            row = Row(
                "model",
                f"{problem.name} {direction}",
                problem.name,
                c.name,
                direction,
                type_name(c.dtype),
                "channels_last" if c.operators is None else "nchw",
                settings.threads,
            )
            call, finding = model_check(problem, c, direction, want, settings.device)
            row = replace(row, deviation=finding.error, tolerance=finding.tolerance)
            if call is None or finding.outcome != "passed":
                rows.append(_failed(row, finding))
            else:
                calls[f"{c.name} {row.dtype}"] = call
                rows.append(row)
        count = models.model_operations(problem, direction)
        with same_random_numbers():
            rows = _timed(rows, calls, settings, None, count, torch.float32, model=True)
        calls.clear()

        def peak(row: Row, direction: ModelDirection = direction) -> int:
            return in_fresh_process(
                model_peak,
                problem,
                row.contestant,
                direction,
                row.dtype,
                settings.device,
                settings.threads,
            )

        yield from _with_memory(rows, settings, peak)


def model_check(
    problem: ModelProblem,
    contestant: ModelContestant,
    direction: ModelDirection,
    want: Mapping[str, Tensor],
    device: torch.device,
) -> tuple[Call | None, Finding]:
    try:
        with same_random_numbers(), _checking(contestant.name):
            prepared = prepare_model(problem, contestant, device)
            got = prepared.results(direction)
    except Exception as error:
        return None, Finding("error", detail=one_line(error))
    errors = {name: relative_rms(got[name], want[name]) for name in want}
    return prepared.call(direction), judged(errors, models.TOLERANCE[contestant.dtype])


def model_peak(
    problem: ModelProblem,
    name: str,
    direction: ModelDirection,
    dtype: str,
    device: torch.device,
    threads: int,
) -> int:
    """Peak memory of a contestant, in this process."""
    torch.set_num_threads(threads)
    of_type = getattr(torch, dtype)
    contestant = next(
        c for c in model_contestants(problem, [of_type]) if c.name == name and c.dtype == of_type
    )
    with same_random_numbers():
        call = prepare_model(problem, contestant, device).call(direction)
        return memory.peak_rise(call, device)


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """What torch.compile compiles draws the numbers that it would draw without."""
    from torch._inductor import config  # takes a second, and is private: there is no other way

    with config.patch(fallback_random=True):
        yield


def _with_memory(
    rows: Sequence[Row], settings: Settings, peak: Callable[[Row], int]
) -> Iterator[Row]:
    """The rows, each with its peak of memory, and that as a share of the textbook's, which comes first."""
    if not settings.memory or not memory.can_measure(settings.device):
        yield from rows
        return
    textbook: int | None = None
    for row in rows:
        if row.outcome != "timed" or row.contestant in settings.memory_but:
            yield row
            continue
        own = peak(row)
        if row.contestant == "textbook":
            textbook = own
        yield replace(row, memory=own, memory_ratio=own / textbook if textbook else None)


def _failed(row: Row, finding: Finding) -> Row:
    if finding.outcome == "error":
        return replace(row, outcome="failed", error=finding.detail)
    if finding.error is None:
        error = finding.detail
    else:
        error = f"{finding.detail} is wrong: error {finding.error:.1e}, tolerance {finding.tolerance:.1e}"
    return replace(
        row, outcome="failed", error=error, deviation=finding.error, tolerance=finding.tolerance
    )


def _timed(
    rows: Sequence[Row],
    calls: Mapping[str, Call],
    settings: Settings,
    moved: int | None,
    count: float | None,
    dtype: torch.dtype,
    model: bool = False,
) -> list[Row]:
    """The rows with their times, rates and ratios to the first one of the textbook's."""
    if not calls:
        return list(rows)
    yardsticks: dict[str, tuple[Call, float]] = {}
    if moved is not None:
        yardsticks[_COPY] = rates.large_copy(settings.device)
        yardsticks[_EQUAL_COPY] = rates.equal_copy(moved, settings.device)
    if count is not None:
        for of_type in dict.fromkeys([type_name(dtype), *(r.dtype for r in rows)]):
            product = rates.matmul(getattr(torch, of_type), settings.device)
            yardsticks[f"{_MATMUL} {of_type}"] = product
    every = {**calls, **{name: call for name, (call, _) in yardsticks.items()}}
    times = rounds(
        every, settings.seconds * len(calls), settings.timer(), settings.least_rounds(model)
    )
    fastest = {
        name: amount / statistics.median(times[name]) for name, (_, amount) in yardsticks.items()
    }

    def measured(row: Row) -> Row:
        own = times[f"{row.contestant} {row.dtype}" if model else row.contestant]
        reference = times.get("textbook float32" if model else "textbook")
        seconds = statistics.median(own)
        low, high = spread(own)
        compared = (None, None, None) if reference is None else ratios(reference, own)
        bandwidth = None if moved is None else moved / seconds
        rate = None if count is None else count / seconds
        copy, equal = fastest.get(_COPY), fastest.get(_EQUAL_COPY)
        product = fastest.get(f"{_MATMUL} {row.dtype}")
        return replace(
            row,
            times=own,
            seconds=seconds,
            seconds_low=low,
            seconds_high=high,
            ratio=compared[0],
            ratio_low=compared[1],
            ratio_high=compared[2],
            moved=moved,
            bandwidth=bandwidth,
            copy=copy,
            equal_copy=equal,
            of_copy=_share(bandwidth, copy),
            of_equal_copy=_share(bandwidth, equal),
            operations=count,
            rate=rate,
            matmul=product,
            of_matmul=_share(rate, product),
        )

    return [measured(row) if row.outcome == "timed" else row for row in rows]


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else part / whole

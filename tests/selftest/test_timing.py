"""The arithmetic of the benchmarks, and that what is timed is what was asked for; speed itself is not tested."""

import contextlib
import time
from unittest import mock

import pytest
import torch

from gpseg import backends, ops
from gpseg.selftest import timing
from gpseg.selftest.comparison import DOUBLE_BACKWARD, Reference, relative_rms
from gpseg.selftest.problems import by_name
from gpseg.selftest.timing import (
    Contestant,
    Parts,
    contestants,
    inputs,
    interleaved,
    on_cpu,
    on_gpu,
    prepare,
    spread,
)


def test_a_slowdown_of_the_machine_does_not_change_the_ratio() -> None:
    now, speed = 0.0, 1.0

    def work(duration: float) -> None:
        nonlocal now, speed
        now += duration * speed
        speed *= 1.01

    calls = {"textbook": lambda: work(8.0), "fast": lambda: work(2.0)}
    timings = interleaved(calls, 0, on_cpu(lambda: now), least_rounds=50)
    assert timings["textbook"].ratio == 1
    assert timings["fast"].ratio == pytest.approx(
        4 / 1.01**2
    )  # one more call lies between, which is not counted
    assert timings["fast"].low == pytest.approx(timings["fast"].high)
    assert timings["fast"].median > 2.5
    assert len(timings["fast"].times) == 50


def test_short_calls_are_timed_several_in_a_row() -> None:
    now, calls = 0.0, 0

    def call() -> None:
        nonlocal now, calls
        now, calls = now + timing.BLOCK / 8, calls + 1

    assert on_cpu(lambda: now)(call) == pytest.approx(timing.BLOCK / 8)
    assert calls in (9, 10)  # one that is not counted, then 8, but for rounding


def test_backends_that_only_serve_when_forced_do_not_compete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "_off", lambda name: "no GPU" if name == "cuda" else None)
    assert timing.serving_backends() == ["triton", "cpp", "eager"]
    own = ["triton", "cpp", "eager"]
    assert [c.name for c in contestants("filter2d")] == ["textbook", "compiled", *own]
    rivals = ["textbook", "compiled", "grouped"]
    assert [c.name for c in contestants("modulated_conv2d_act")] == [*rivals, *own]


@pytest.mark.parametrize("direction", ["forward", "backward", "forward+backward"])
def test_every_direction_gives_its_results(direction: timing.Direction) -> None:
    problem = by_name("layer")
    tensors = inputs(problem, torch.float32, channels_last=True)
    assert tensors["x"].is_contiguous(memory_format=torch.channels_last)
    others = [c for c in contestants(problem.op) if c.name != "compiled"]
    results = [prepare(problem, c, direction, tensors)() for c in others]
    for result in results:
        if direction == "forward":
            assert isinstance(result, torch.Tensor)
            assert not result.requires_grad
        else:
            assert isinstance(result, tuple)
            assert [g.shape for g in result] == [t.shape for t in tensors.values()]


def test_the_second_derivative_is_by_dy_and_every_tensor() -> None:
    problem = by_name("layer-swish")
    tensors = inputs(problem, torch.float64, channels_last=False)
    reference = Reference(problem, torch.float64)
    want = reference.answers(DOUBLE_BACKWARD)
    assert list(want) == ["dy", *tensors]
    for contestant in contestants(problem.op):
        if contestant.directions is None:
            call = prepare(problem, contestant, "double_backward", tensors, reference.dy)
            for name, got in zip(want, call(), strict=True):  # type: ignore[call-overload]
                assert relative_rms(got, want[name]) < 1e-6, (contestant.name, name)


def test_times_of_parts_are_weighted() -> None:
    now = 0.0

    def work(duration: float) -> None:
        nonlocal now
        now += duration

    parts = Parts([(lambda: work(2.0), 1.0), (lambda: work(8.0), 1 / 16)])
    assert on_cpu(lambda: now)(parts) == 2.5


def test_percentiles_lie_within_the_values() -> None:
    assert spread([1.0, 2.0]) == pytest.approx((1.2, 1.8))


def test_a_contestant_runs_on_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = type(backends.get("eager"))
    monkeypatch.setattr(eager, "upfirdn2d", lambda self, x, *_: torch.full_like(x, 7.0))
    problem = by_name("filter2d")
    call = prepare(
        problem, Contestant("e", ops, "eager"), "forward", problem.tensors(torch.float32)
    )
    result = call()
    assert isinstance(result, torch.Tensor)
    assert (result == 7).all()


class HostEvent:
    """An event of a device that does everything at once."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self, stream: object) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "HostEvent") -> float:
        return 1e3 * (end.at - self.at)


def test_a_gpu_begins_when_calls_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", HostEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", mock.Mock)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    taken = on_gpu(torch.device("cpu"), repeats=3)(lambda: time.sleep(0.01))
    assert taken >= 0.01
    assert len(slept) == 1 and slept[0] >= 3 * 0.01 * 1e9  # cycles, at 1 GHz and more

"""Checks pass where operators are right, and planted faults are found."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpseg.backends import get, measured, routes
from gpseg.selftest import checks, problems
from gpseg.selftest.checks import CHECKS, Case, Finding, cases, rows
from gpseg.selftest.problems import by_name
from gpseg.selftest.timing import serving_backends

EAGER = type(get("eager"))
FIR = Case("textbook", "filter2d", "eager", "cpu", "f32", "nchw", "forward")
LAYER = replace(FIR, problem="layer-8", layout="channels_last", direction="forward")


def finding(case: Case) -> Finding:
    (row,) = rows(case)
    assert (row.case, row.route) == (case, "")
    return row.finding


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]) -> None:
    """Have a pass of the eager backend give something else."""
    right = getattr(EAGER, name)
    monkeypatch.setattr(EAGER, name, staticmethod(lambda *args: change(right(*args))))


@pytest.mark.parametrize("direction", ["forward", "backward", "double_backward"])
@pytest.mark.parametrize("dtype", ["f16", "f64"])
def test_right_operators_pass(direction: str, dtype: str) -> None:
    found = finding(replace(LAYER, dtype=dtype, direction=direction))
    assert found.outcome == "passed"
    assert found.error is not None
    assert found.tolerance is not None
    assert 0 < found.error <= found.tolerance


@pytest.mark.parametrize("check", ["autocast", "repeated"])
def test_right_operators_pass_in_other_situations(check: str) -> None:
    direction = "forward" if check == "autocast" else "forward+backward"
    assert finding(replace(FIR, check=check, direction=direction)).outcome == "passed"
    assert finding(replace(LAYER, check=check, direction=direction)).outcome == "passed"


@pytest.mark.parametrize("direction", ["forward", "backward", "double_backward"])
def test_a_wrong_result_fails(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "upfirdn2d", lambda y: y * 1.001)
    found = finding(replace(FIR, direction=direction))
    assert found.outcome == "failed"
    assert found.error == pytest.approx(1e-3, rel=0.1)


def test_a_result_that_is_not_finite_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "upfirdn2d", lambda y: y.index_fill(0, torch.tensor([0]), torch.nan))
    assert finding(FIR) == Finding("failed", None, 1e-5, "y is not finite")


def test_memory_that_is_not_written_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "upfirdn2d", torch.empty_like)
    assert finding(FIR).detail == "y is not finite"


def test_a_result_of_another_type_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "upfirdn2d", lambda y: y.double())
    assert finding(FIR) == Finding("failed", detail="y is torch.float64")
    assert finding(replace(FIR, check="autocast")).outcome == "failed"


def test_a_result_that_changes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "upfirdn2d", lambda y: y * (1 + 1e-6 * torch.rand(())))
    found = finding(replace(FIR, check="repeated", direction="forward+backward"))
    assert (found.outcome, found.tolerance) == ("failed", 0)
    assert finding(FIR).outcome == "passed"


def test_an_exception_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(y: Tensor) -> Tensor:
        raise RuntimeError("an illegal memory access\nwas encountered")

    spoil(monkeypatch, "upfirdn2d", crash)
    assert finding(FIR) == Finding(
        "error", detail="RuntimeError: an illegal memory access was encountered"
    )


def test_too_little_memory_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(y: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 4 GiB")

    spoil(monkeypatch, "upfirdn2d", fill)
    assert finding(FIR).outcome == "skipped"


def test_measured_choices_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def fastest(*_: object) -> str:
        asked.append(measured.benchmark)
        return routes.FUSED

    def fused_conv(self: Any, x: Tensor, w: Any, conv: Any, size: Any, *_: Any) -> Any:
        return x.new_zeros(size), x.new_zeros(size)

    monkeypatch.setattr(measured, "fastest", fastest)
    monkeypatch.setattr(EAGER, "fuses", lambda *_: True)
    monkeypatch.setattr(EAGER, "fused_conv", fused_conv)
    assert finding(replace(LAYER, check="measured")).outcome == "failed"
    assert asked == [True]


def test_both_routes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused_conv(self: Any, x: Tensor, w: Tensor, conv: Any, size: Any, *_: Any) -> Any:
        return x.new_zeros(size), None  # wrong

    monkeypatch.setattr(EAGER, "fuses", lambda *_: True)
    monkeypatch.setattr(EAGER, "fused_conv", fused_conv)
    outcomes = {row.route: row.finding.outcome for row in rows(LAYER)}
    assert outcomes == {"composed": "passed", "fused": "failed"}


def test_settings_are_as_before() -> None:
    def settings() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        return (
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            cudnn.allow_tf32,
            cudnn.deterministic,
        )

    before = settings()
    finding(FIR)
    assert settings() == before


class TestBeyondInt32:
    """With sizes for a CPU."""

    case = replace(FIR, check="beyond int32", problem="filter2d-large", dtype="bf16")

    @pytest.fixture(autouse=True)
    def less(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small = replace(by_name("filter2d-large"), sizes={"x": (6, 2, 8, 8)})
        monkeypatch.setitem(problems.BY_NAME, "filter2d-large", small)

    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    def test_passes(self, layout: str) -> None:
        assert finding(replace(self.case, layout=layout)).outcome == "passed"

    def test_a_sample_that_depends_on_its_place_fails(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forget_the_end(y: Tensor) -> Tensor:
            return y if len(y) == 1 else torch.cat([y[:-1], torch.zeros_like(y[-1:])])

        spoil(monkeypatch, "upfirdn2d", forget_the_end)
        assert finding(self.case).outcome == "failed"


class Stream:
    """Stands for a stream where there is no GPU."""

    def __init__(self, device: object = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, list[Tensor]]]]:
    """Streams that are none; gives the steps made and their results."""
    made: list[tuple[Any, list[Tensor]]] = []

    class Step(checks._Step):
        def __call__(self) -> list[Tensor]:
            made.append((self, super().__call__()))
            return made[-1][1]

    monkeypatch.setattr(checks, "_Step", Step)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    yield made


def test_side_stream(steps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(FIR, check="side stream", direction="forward+backward")
    assert finding(case).outcome == "passed"
    assert len(steps) == 2
    load = checks._Step.load

    def too_late(self: Any, values: dict[str, Tensor]) -> None:
        if values["x"].isnan().any():
            load(self, values)

    monkeypatch.setattr(checks._Step, "load", too_late)
    found = finding(case)
    assert (found.outcome, found.detail) == ("failed", "tensor 0 is not finite")


@pytest.mark.parametrize("replayed", [True, False])
def test_cuda_graph(replayed: bool, steps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def replay(self) -> None:
            step, captured = steps[-1]
            if replayed:
                for old, new in zip(captured, step(), strict=True):
                    old.copy_(new)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    found = finding(replace(FIR, check="CUDA graph", direction="forward+backward"))
    assert found.outcome == ("passed" if replayed else "failed"), found.detail


def test_cases_cover_what_each_device_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
        own = {"cuda": "cuda", "triton": "cuda", "cpp": "cpu"}.get(backend, device.type)
        return None if own == device.type else "elsewhere"

    monkeypatch.setattr(checks, "refusal", refuses)
    listed = cases(["cuda", "triton", "cpp", "eager"], ["cpu", "cuda:0", "cuda:1"])
    assert len(set(listed)) == len(listed)
    for backend in ("cuda", "triton"):
        on_first = [c for c in listed if (c.backend, c.device) == (backend, "cuda:0")]
        assert {c.check for c in on_first} == set(CHECKS)
    assert {c.check for c in listed if c.device == "cpu"} == {"textbook", "autocast", "repeated"}
    assert {c.check for c in listed if c.device == "cuda:1"} == {"textbook"}
    by_backend = Counter((c.backend, c.device) for c in listed if c.check == "textbook")
    assert by_backend["cuda", "cuda:0"] == by_backend["cpp", "cpu"] == by_backend["eager", "cpu"]
    assert 0 < by_backend["cuda", "cuda:1"] < by_backend["cuda", "cuda:0"]
    assert by_backend.keys() & {("cuda", "cpu"), ("cpp", "cuda:0")} == set()
    assert not [c for c in listed if c.check == "beyond int32" and c.backend == "eager"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("check", CHECKS)
def test_on_a_gpu(check: str) -> None:
    every = [c for c in cases(serving_backends(), ["cuda:0"]) if c.check == check]
    for backend in {c.backend for c in every}:
        case = next(c for c in every if c.backend == backend)
        assert {row.finding.outcome for row in rows(case)} <= {"passed", "skipped"}

"""The benchmark of the self-test: who competes, in what, and what a contestant's failure does to the others."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from gpseg.backends import get, measured, routes
from gpseg.backends.devices import H100
from gpseg.selftest import work
from gpseg.selftest.benchmark import Race, _row, races, rows
from gpseg.selftest.problems import LAYERS, NAMED, by_name
from gpseg.selftest.report import race_table
from gpseg.selftest.timing import Call, Timing, on_gpu, serving_backends

CPU = torch.device("cpu")
LAYER = Race(by_name("layer"), "f32", "nchw", "forward+backward")


def once(call: Call) -> float:
    """A timer that takes every call for a second."""
    call()
    return 1.0


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.delenv("GPSEG_ROUTES", raising=False)
    yield
    measured.forget()


def test_everyone_competes() -> None:
    results = rows(LAYER, ["cuda", "cpp", "eager"], CPU, once, 0)
    textbooks = ["textbook, nchw", "textbook, channels_last"]
    assert [r.contestant for r in results] == [*textbooks, "compiled", "grouped", "cpp", "eager"]
    assert all(r.timing is not None and r.timing.ratio == 1 for r in results)
    assert {r.bytes_per_second for r in results} == {
        work.bytes_moved(LAYER.problem, torch.float32, "forward+backward")
    }
    assert {r.of_bandwidth for r in results} == {None}


def test_a_choice_of_routes_makes_four_contestants(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused_conv(self: Any, x: Any, w: Any, conv: Any, size: Any, *_: Any) -> Any:
        return x.new_zeros(size), x.new_zeros(size)

    eager = type(get("eager"))
    monkeypatch.setattr(eager, "fuses", lambda *_: True)
    monkeypatch.setattr(eager, "fused_conv", fused_conv)
    for _ in range(2):  # what one race measures, the next one does not know
        results = rows(Race(by_name("layer"), "f32", "nchw", "forward"), ["eager"], CPU, once, 0)
        variants = {r.contestant: r.choices for r in results[-4:]}
        assert [*variants] == ["eager", "eager, fused", "eager, composed", "eager, measured"]
        assert [*variants.values()][:3] == [{}] * 3
        ((problem, route),) = variants["eager, measured"][f"cpu, torch {torch.__version__}"].items()
        assert problem.startswith("backend=eager direction=forward")
        assert route in (routes.FUSED, routes.COMPOSED)


def test_a_backend_that_fails_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(get("eager"), "demod_act", broken, raising=False)
    results = rows(LAYER, ["eager", "cpp"], CPU, once, 0)
    (failed,) = (r for r in results if r.error)
    assert (failed.contestant, failed.error) == ("eager", "RuntimeError: no such kernel")
    assert "cpp" in [r.contestant for r in results]


def test_who_fails_is_a_row_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def call(**_: Any) -> None:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    results = {r.contestant: r for r in rows(LAYER, ["cpp"], CPU, once, 0)}
    assert results["compiled"].timing is None
    assert results["compiled"].error == "RuntimeError: no compiler"
    assert all((r.timing is None) == (name == "compiled") for name, r in results.items())
    assert "compiled                RuntimeError: no compiler" in race_table([*results.values()])


def test_a_race_that_does_not_fit_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def timer(call: Call) -> float:
        raise torch.OutOfMemoryError("tried to allocate")

    (result,) = rows(LAYER, ["cpp"], CPU, timer, 0)
    assert (result.timing, result.error) == (None, "OutOfMemoryError: tried to allocate")


def test_shares_of_the_peak() -> None:
    race = Race(by_name("layer-256-batch-8"), "bf16", "channels_last", "forward")
    result = _row(race, "cuda", Timing([1e-3], 1e-3, 2.0, 1.5, 2.5), H100)
    assert result.bytes_per_second is not None
    assert result.of_bandwidth == pytest.approx(result.bytes_per_second / 3.35e12)
    assert result.operations_per_second == pytest.approx(2e3 * 8 * 256**2 * 128**2 * 9)
    assert result.of_peak == pytest.approx(2e3 * 8 * 256**2 * 128**2 * 9 / 989e12)
    (title, line) = race_table([result]).splitlines()
    assert title == "layer-256-batch-8 bf16 channels_last forward"
    assert line.split()[:5] == ["cuda", "1.000", "ms", "2.00x", "[1.50"]
    assert "TFLOP/s 16%" in line


def test_quick_is_less() -> None:
    every, few = races(quick=False), races(quick=True)
    assert all(race in every for race in few)
    assert len(few) < len(every) / 2
    assert {r.problem.name for r in every} == {p.name for p in (*NAMED, *LAYERS)}
    assert {r.dtype for r in few} == {"bf16"}
    assert {r.layout for r in every if r.dtype == "f32"} == {"nchw"}
    assert {r.layout for r in every if r.dtype != "f32"} == {"channels_last"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    device = torch.device("cuda:0")
    results = rows(LAYER, serving_backends(), device, on_gpu(device, 2), 0)
    assert all(r.timing is not None and r.timing.median > 0 for r in results)

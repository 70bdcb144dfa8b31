"""The choice between one fused kernel and torch's convolution between passes: same results, measured once, kept."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpseg import ops
from gpseg.backends import modulated_conv, routes
from gpseg.backends.contract import Epilogue
from gpseg.backends.convolution import conv2d, conv2d_input_grad
from gpseg.backends.devices import A100, B200, BY_CAPABILITY, H100, gpu_of
from gpseg.backends.eager import EagerBackend
from gpseg.backends.modulated_conv import Layer
from gpseg.backends.resampling import Convolution
from gpseg.backends.routes import COMPOSED, FUSED, Problem

CPU = torch.device("cpu")


class FusingBackend(EagerBackend):
    """The reference, with a fused convolution in its own words."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def fuses(self, *_: object) -> bool:
        return True

    def fused_conv(
        self,
        x: Tensor,
        w: Tensor,
        conv: Convolution,
        size: Sequence[int],
        s: Tensor,
        epilogue: Epilogue,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        self.calls.append("forward")
        stride = [conv.stride] * 2
        c = conv2d(self.scale_channels(x, s), w, stride, conv.padding, conv.transposed, [0, 0], 1)
        assert c.shape == torch.Size(size)
        return self.demod_act(c, epilogue), c if keep else None

    def fused_conv_input_grad(
        self, dc: Tensor, w: Tensor, conv: Convolution, x: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        self.calls.append("input_grad")
        stride = [conv.stride] * 2
        du = conv2d_input_grad(dc, w, x.shape, stride, conv.padding, conv.transposed, 1)
        return self.scale_channels_backward(x, s, du)


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GPSEG_ROUTES", raising=False)
    routes.forget()
    yield
    routes.forget()
    ops.benchmark = False


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("act", ["lrelu", "linear"])
@pytest.mark.parametrize("k", [1, 3])
def test_both_ways_agree(up: int, act: str, k: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    x, weight, styles, bias = draw(2, 3, 6, 5), draw(4, 3, k, k), draw(2, 3), draw(4)
    noise, dy = draw(6 * up, 5 * up), draw(2, 4, 6 * up, 5 * up)
    f = ops.setup_filter([1, 3, 3, 1]).double() if up > 1 else None
    layer = Layer(up, 1, (k // 2,) * 4, act == "lrelu", up == 1, act, 0.2, 1.0, -1.0)
    results = {}
    backends = {FUSED: FusingBackend(), COMPOSED: EagerBackend()}
    for name, backend in backends.items():
        y, c = modulated_conv.forward(backend, x, weight, styles, bias, noise, f, layer, True)
        gradients = modulated_conv.backward(
            backend, dy, x, weight, styles, bias, noise, f, c, layer, True, True
        )
        results[name] = (y, *gradients)
    for fused, composed in zip(results[FUSED], results[COMPOSED], strict=True):
        torch.testing.assert_close(fused, composed, rtol=1e-12, atol=1e-12)
    fusing = backends[FUSED]
    assert isinstance(fusing, FusingBackend)
    assert fusing.calls == ["forward", "input_grad"]


PROBLEM = Problem(
    "cuda", "forward", "torch.float16", 4, 64, 64, 64, 64, 64, 64, 9, 1, False, passes=2, keep=True
)


def ways(calls: list[str]) -> tuple[Callable[[], str], Callable[[], str]]:
    def fused() -> str:
        calls.append(FUSED)
        return FUSED

    def composed() -> str:
        calls.append(COMPOSED)
        return COMPOSED

    return fused, composed


def timer(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Have both ways take the given times; gives the list of ways that are timed."""
    timed: list[str] = []

    def took(device: torch.device, way: Callable[[], str]) -> float:
        timed.append(way())
        return seconds[timed[-1]]

    monkeypatch.setattr(routes, "_timed", took)
    return timed


@pytest.mark.parametrize("faster", [FUSED, COMPOSED])
def test_each_problem_is_measured_once(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = timer(monkeypatch, {FUSED: 2.0, COMPOSED: 2.0, faster: 1.0})
    ops.benchmark = True
    assert ops.benchmark
    assert routes.choose(PROBLEM, CPU, *ways([])) == faster
    assert set(timed) == {FUSED, COMPOSED}
    assert timed[0] != timed[1]  # they take turns
    count = len(timed)
    assert routes.choose(PROBLEM, CPU, *ways([])) == faster
    assert len(timed) == count
    routes.choose(replace(PROBLEM, n=5), CPU, *ways([]))
    assert len(timed) == 2 * count


def test_nothing_is_measured_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = timer(monkeypatch, {FUSED: 2.0, COMPOSED: 1.0})
    assert routes.choose(PROBLEM, CPU, *ways([])) == FUSED
    assert not timed


def test_a_measured_choice_is_kept_only_while_benchmark_is_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timer(monkeypatch, {FUSED: 2.0, COMPOSED: 1.0})
    ops.benchmark = True
    assert routes.choose(PROBLEM, CPU, *ways([])) == COMPOSED
    ops.benchmark = False
    assert routes.choose(PROBLEM, CPU, *ways([])) == FUSED


class TestForced:
    """`routes.forced`."""

    @pytest.mark.parametrize("route", [FUSED, COMPOSED])
    def test_wins_over_measurement_and_model(
        self, route: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timed = timer(monkeypatch, {FUSED: 1.0, COMPOSED: 2.0})
        for ops.benchmark in (False, True):
            with routes.forced(route) as problems:
                assert routes.choose(PROBLEM, CPU, *ways([])) == route
            assert problems == [PROBLEM]
        assert not timed

    def test_ends_with_its_block(self) -> None:
        with routes.forced(COMPOSED) as outer:
            with routes.forced(None) as inner:
                assert routes.choose(PROBLEM, CPU, *ways([])) == FUSED
            assert routes.choose(PROBLEM, CPU, *ways([])) == COMPOSED
        assert routes.choose(PROBLEM, CPU, *ways([])) == FUSED
        assert (len(outer), len(inner)) == (1, 0)

    def test_holds_in_every_thread(self) -> None:
        with ThreadPoolExecutor(1) as pool, routes.forced(COMPOSED):
            assert pool.submit(routes.choose, PROBLEM, CPU, *ways([])).result() == COMPOSED

    def test_refuses_an_unknown_route(self) -> None:
        with pytest.raises(ValueError, match="no route 'fast'"), routes.forced("fast"):
            pass


class TestFile:
    """GPSEG_ROUTES."""

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "new folder" / "routes.json"
        monkeypatch.setenv("GPSEG_ROUTES", str(path))
        ops.benchmark = True
        return path

    def test_remembers_across_processes(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        timed = timer(monkeypatch, {FUSED: 2.0, COMPOSED: 1.0})
        assert routes.choose(PROBLEM, CPU, *ways([])) == COMPOSED
        assert [*json.loads(path.read_text())] == [f"cpu, torch {torch.__version__}"]
        assert [p.name for p in path.parent.iterdir()] == ["routes.json"]
        count = len(timed)
        routes.forget()
        assert routes.choose(PROBLEM, CPU, *ways([])) == COMPOSED
        assert len(timed) == count

    def test_keeps_what_others_wrote(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        timer(monkeypatch, {FUSED: 2.0, COMPOSED: 1.0})
        routes.choose(PROBLEM, CPU, *ways([]))
        other = {"another GPU": {PROBLEM.key: FUSED}, **json.loads(path.read_text())}
        path.write_text(json.dumps(other))
        routes.choose(replace(PROBLEM, n=9), CPU, *ways([]))
        stored = json.loads(path.read_text())
        assert stored["another GPU"] == {PROBLEM.key: FUSED}
        assert len(stored[f"cpu, torch {torch.__version__}"]) == 2

    @pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"cpu": 3}', "\x00\x01"])
    def test_a_spoilt_file_is_replaced(
        self, path: Path, content: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path.parent.mkdir()
        path.write_text(content)
        timer(monkeypatch, {FUSED: 2.0, COMPOSED: 1.0})
        assert routes.choose(PROBLEM, CPU, *ways([])) == COMPOSED
        assert json.loads(path.read_text())

    def test_a_file_that_can_not_be_written_stops_nothing(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path.parent.write_text("a file where the folder should be")
        timer(monkeypatch, {FUSED: 2.0, COMPOSED: 1.0})
        assert routes.choose(PROBLEM, CPU, *ways([])) == COMPOSED


class TestModel:
    """Orderings that any sensible model has; the seconds themselves are not claims."""

    @pytest.mark.parametrize("gpu", BY_CAPABILITY.values(), ids=lambda gpu: gpu.name)
    @pytest.mark.parametrize("route", [FUSED, COMPOSED])
    def test_more_work_takes_longer(self, gpu: routes.Gpu, route: str) -> None:
        time = routes.modelled_time(PROBLEM, gpu, route)
        assert 0 < time < routes.modelled_time(replace(PROBLEM, n=400), gpu, route)

    @pytest.mark.parametrize("gpu", [A100, H100, B200], ids=lambda gpu: gpu.name)
    def test_few_channels_are_a_matter_of_traffic(self, gpu: routes.Gpu) -> None:
        wide = replace(PROBLEM, in_c=32, out_c=32, in_h=512, in_w=512, out_h=512, out_w=512)
        times = {r: routes.modelled_time(wide, gpu, r) for r in (FUSED, COMPOSED)}
        assert times[FUSED] < times[COMPOSED]

    def test_many_channels_are_a_matter_of_arithmetic(self) -> None:
        deep = replace(PROBLEM, n=32, in_c=512, out_c=512)
        assert routes.modelled_time(deep, B200, COMPOSED) < routes.modelled_time(deep, B200, FUSED)

    @pytest.mark.parametrize(
        ("capability", "gpu"),
        [((7, 5), A100), ((8, 0), A100), ((8, 9), A100), ((9, 0), H100), ((12, 0), B200)],
    )
    def test_the_nearest_gpu_below(self, capability: tuple[int, int], gpu: routes.Gpu) -> None:
        assert gpu_of(capability) == gpu

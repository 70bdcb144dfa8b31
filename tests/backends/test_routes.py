"""The choice between one fused kernel and torch's convolution between passes: same results, forced, modelled."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gpseg import ops
from gpseg.backends import measured, modulated_conv, routes
from gpseg.backends.contract import Epilogue
from gpseg.backends.convolution import conv2d, conv2d_input_grad, conv2d_weight_grad
from gpseg.backends.devices import A100, B200, BY_CAPABILITY, H100, Gpu, gpu_of
from gpseg.backends.eager import EagerBackend
from gpseg.backends.modulated_conv import Layer
from gpseg.backends.resampling import Convolution
from gpseg.backends.routes import COMPOSED, FUSED, Problem, modelled_time

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

    def fused_conv_weight_grad(
        self, dc: Tensor, w_size: Sequence[int], conv: Convolution, x: Tensor, s: Tensor
    ) -> Tensor:
        self.calls.append("weight_grad")
        u = self.scale_channels(x, s)
        pair = (dc, u) if conv.transposed else (u, dc)
        return conv2d_weight_grad(*pair, w_size, [conv.stride] * 2, conv.padding, 1)


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GPSEG_ROUTES", raising=False)
    measured.forget()
    yield
    measured.forget()
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
        y, *kept = modulated_conv.forward(backend, x, weight, styles, bias, noise, f, layer, True)
        gradients = modulated_conv.backward(
            backend, dy, x, weight, styles, bias, noise, f, *kept, layer, True, True
        )
        results[name] = (y, *gradients)
    for fused, composed in zip(results[FUSED], results[COMPOSED], strict=True):
        torch.testing.assert_close(fused, composed, rtol=1e-12, atol=1e-12)
    fusing = backends[FUSED]
    assert isinstance(fusing, FusingBackend)
    assert fusing.calls == ["forward", "weight_grad", "input_grad"]


PROBLEM = Problem(
    "cuda", "forward", "torch.float16", 4, 64, 64, 64, 64, 64, 64, 9, 1, False, passes=2, keep=True
)


def ways() -> tuple[Callable[[], str], Callable[[], str]]:
    return lambda: FUSED, lambda: COMPOSED


def timer(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Have both ways take the given times; gives the list of ways that are timed."""
    timed: list[str] = []

    def took(device: torch.device, way: Callable[[], str]) -> float:
        timed.append(way())
        return seconds[timed[-1]]

    monkeypatch.setattr(measured, "_timed", took)
    return timed


@pytest.mark.parametrize("faster", [FUSED, COMPOSED])
def test_a_measurement_goes_before_the_model(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = timer(monkeypatch, {FUSED: 2.0, COMPOSED: 2.0, faster: 1.0})
    ops.benchmark = True
    assert routes.choose(PROBLEM, CPU, *ways()) == faster
    count = len(timed)
    assert routes.choose(PROBLEM, CPU, *ways()) == faster
    assert len(timed) == count
    routes.choose(replace(PROBLEM, n=5), CPU, *ways())
    routes.choose(replace(PROBLEM, backend="triton"), CPU, *ways())
    assert len(timed) == 3 * count


def test_an_emulator_runs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = timer(monkeypatch, {FUSED: 2.0, COMPOSED: 1.0})
    assert routes.choose(PROBLEM, CPU, *ways()) == FUSED
    assert not timed


class TestForced:
    """`routes.forced`."""

    @pytest.mark.parametrize("route", [FUSED, COMPOSED])
    def test_wins_over_measurement_and_model(
        self, route: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timed = timer(monkeypatch, {FUSED: 1.0, COMPOSED: 2.0})
        for ops.benchmark in (False, True):
            with routes.forced(route) as problems:
                assert routes.choose(PROBLEM, CPU, *ways()) == route
            assert problems == [PROBLEM]
        assert not timed

    def test_ends_with_its_block(self) -> None:
        with routes.forced(COMPOSED) as outer:
            with routes.forced(None) as inner:
                assert routes.choose(PROBLEM, CPU, *ways()) == FUSED
            assert routes.choose(PROBLEM, CPU, *ways()) == COMPOSED
        assert routes.choose(PROBLEM, CPU, *ways()) == FUSED
        assert (len(outer), len(inner)) == (1, 0)

    def test_holds_in_every_thread(self) -> None:
        with ThreadPoolExecutor(1) as pool, routes.forced(COMPOSED):
            assert pool.submit(routes.choose, PROBLEM, CPU, *ways()).result() == COMPOSED

    def test_refuses_an_unknown_route(self) -> None:
        with pytest.raises(ValueError, match="no route 'fast'"), routes.forced("fast"):
            pass


class TestModel:
    """Orderings that any sensible model has; the seconds themselves are not claims."""

    @pytest.mark.parametrize("gpu", BY_CAPABILITY.values(), ids=lambda gpu: gpu.name)
    @pytest.mark.parametrize("route", [FUSED, COMPOSED])
    @pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
    @pytest.mark.parametrize("backend", ["cuda", "triton"])
    def test_more_work_takes_longer(
        self, gpu: Gpu, route: str, direction: str, backend: str
    ) -> None:
        problem = replace(PROBLEM, backend=backend, direction=direction)
        time = modelled_time(problem, gpu, route)
        assert 0 < time < modelled_time(replace(problem, n=400), gpu, route)

    @pytest.mark.parametrize("gpu", [A100, H100, B200], ids=lambda gpu: gpu.name)
    @pytest.mark.parametrize("direction", ["forward", "weight_grad"])
    def test_few_channels_are_a_matter_of_traffic(self, gpu: Gpu, direction: str) -> None:
        wide = replace(PROBLEM, in_c=32, out_c=32, in_h=512, in_w=512, out_h=512, out_w=512)
        problem = replace(wide, backend="triton", direction=direction, keep=False)
        assert modelled_time(problem, gpu, FUSED) < modelled_time(problem, gpu, COMPOSED)

    @pytest.mark.parametrize("direction", ["forward", "weight_grad"])
    def test_many_channels_are_a_matter_of_arithmetic(self, direction: str) -> None:
        deep = replace(PROBLEM, direction=direction, n=32, in_c=512, out_c=512)
        assert modelled_time(deep, B200, COMPOSED) < modelled_time(deep, B200, FUSED)

    def test_instructions_of_a_backend_count_where_arithmetic_rules(self) -> None:
        deep = replace(PROBLEM, n=32, in_c=512, out_c=512)
        by = {b: replace(deep, backend=b) for b in ("cuda", "triton")}
        for gpu in (H100, B200):
            assert modelled_time(by["triton"], gpu, FUSED) < modelled_time(by["cuda"], gpu, FUSED)
            composed = {modelled_time(problem, gpu, COMPOSED) for problem in by.values()}
            assert len(composed) == 1

    @pytest.mark.parametrize("route", [FUSED, COMPOSED])
    def test_types_are_ordered_by_what_they_cost(self, route: str) -> None:
        deep = replace(PROBLEM, backend="triton", n=32, in_c=512, out_c=512)
        dtypes = ["torch.bfloat16", "tf32", "torch.float32"]
        times = [modelled_time(replace(deep, dtype=t), H100, route) for t in dtypes]
        assert times == sorted(set(times))

    @pytest.mark.parametrize(
        ("capability", "gpu"),
        [((7, 5), A100), ((8, 0), A100), ((8, 9), A100), ((9, 0), H100), ((12, 0), B200)],
    )
    def test_the_nearest_gpu_below(self, capability: tuple[int, int], gpu: Gpu) -> None:
        assert gpu_of(capability) == gpu

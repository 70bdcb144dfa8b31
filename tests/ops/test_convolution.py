"""conv2d_resample against its definition, derivatives to the third order, no_weight_grad, bad arguments."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from comparison import BACKENDS, is_slow
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from gpseg import ops
from gpseg.ops.convolution import weight_grad
from gpseg.selftest import textbook
from gpseg.selftest.comparison import relative_rms
from gpseg.selftest.problems import BINOMIAL, UNEVEN

F64 = torch.float64


def by_definition(x: Tensor, w: Tensor, f: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Zero insertion, padding, filter, convolution, filter, decimation: each at the full, upsampled resolution."""
    up, down, padding = options["up"], options["down"], options["padding"]
    fh, fw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    pads = [padding] * 4 if isinstance(padding, int) else list(padding)
    pads = [pads[0], pads[0], pads[1], pads[1]] if len(pads) == 2 else pads
    if up > 1:
        own = ((fw + up - 1) // 2, (fw - up) // 2, (fh + up - 1) // 2, (fh - up) // 2)
        pads = [p + extra for p, extra in zip(pads, own, strict=True)]
    if down > 1:
        own = ((fw - down + 1) // 2, (fw - down) // 2, (fh - down + 1) // 2, (fh - down) // 2)
        pads = [p + extra for p, extra in zip(pads, own, strict=True)]
    flip_filter = options["flip_filter"]
    z = textbook.upfirdn2d(x, None, up=up)
    z = functional.pad(functional.pad(z, [max(p, 0) for p in pads]), [min(p, 0) for p in pads])
    if up > 1:
        z = textbook.upfirdn2d(z, f, flip_filter=flip_filter, gain=up**2)
    z = functional.conv2d(
        z, w if options["flip_weight"] else w.flip([2, 3]), groups=options["groups"]
    )
    if down > 1:
        z = textbook.upfirdn2d(z, f, flip_filter=flip_filter)
    return z[:, :, ::down, ::down]


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]:
    """Tensors and options for which conv2d_resample has a result."""
    groups = draw(st.integers(1, 2))
    n, i, o = (
        draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
    )
    size, kernel = st.integers(3, 7), st.integers(1, 4)
    h, width, kh, kw = draw(size), draw(size), draw(kernel), draw(kernel)
    up, down = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pad = st.integers(-2, 4)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    f = None
    if draw(st.booleans()):
        sides = draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))
        f = torch.randn(*sides, generator=generator, dtype=F64)
    options = {
        "up": up,
        "down": down,
        "padding": draw(st.one_of(pad, st.tuples(pad, pad), st.tuples(pad, pad, pad, pad))),
        "groups": groups,
        "flip_weight": draw(st.booleans()),
        "flip_filter": draw(st.booleans()),
    }
    x = torch.randn(n, i, h, width, generator=generator, dtype=F64)
    w = torch.randn(o, i // groups, kh, kw, generator=generator, dtype=F64)
    return x, w, f, options


def has_a_result(x: Tensor, w: Tensor, f: Tensor | None, options: dict[str, Any]) -> bool:
    try:
        return by_definition(x, w, f, options).numel() > 0
    except RuntimeError:
        return False


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=100)
@given(call=calls())
def test_definition(
    backend: str, call: tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]
) -> None:
    x, w, f, options = call
    assume(has_a_result(x, w, f, options))
    leaves = (x.requires_grad_(), w.requires_grad_())
    want = by_definition(x, w, f, options)
    dy = torch.randn(want.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    with ops.use_backend(backend):
        y = ops.conv2d_resample(x, w, f, **options)
        got = torch.autograd.grad(y, leaves, dy)
    assert relative_rms(y, want) < 1e-9
    for g, wanted in zip(got, torch.autograd.grad(want, leaves, dy), strict=True):
        assert relative_rms(g, wanted) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_gradients(up: int, down: int, kernel: int, backend: str) -> None:
    f = ops.setup_filter(UNEVEN)
    x = torch.randn(1, 2, 4, 3, dtype=F64, requires_grad=True)
    w = torch.randn(2, 1, kernel, kernel, dtype=F64, requires_grad=True)

    def call(x: Tensor, w: Tensor) -> Tensor:
        return ops.conv2d_resample(x, w, f, up=up, down=down, padding=kernel // 2, groups=2)

    fast = is_slow(backend)
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(call, (x, w), fast_mode=fast)
        assert torch.autograd.gradgradcheck(call, (x, w), fast_mode=fast)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_third_order(up: int, down: int, backend: str) -> None:
    f = ops.setup_filter(BINOMIAL)
    x = torch.randn(1, 1, 4, 4, dtype=F64, requires_grad=True)
    w = torch.randn(1, 1, 3, 3, dtype=F64, requires_grad=True)

    def second(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        y = ops.conv2d_resample(x, w, f, up=up, down=down, padding=1).pow(3).sum()
        firsts = torch.autograd.grad(y, (x, w), create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in firsts), (x, w), create_graph=True)

    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(second, (x, w), fast_mode=True)


def penalty(x: Tensor, w: Tensor, module: Any) -> Tensor:
    """A discriminator of two layers, and its score."""
    f = ops.setup_filter(BINOMIAL)
    y = module.conv2d_resample(x, w, f, down=2, padding=1)
    return module.conv2d_resample(module.bias_act(y, act="swish"), w, padding=1).square().sum()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_weight_grad(backend: str) -> None:
    x = torch.randn(2, 3, 6, 6, dtype=F64, requires_grad=True)
    w = torch.randn(3, 3, 3, 3, dtype=F64, requires_grad=True)
    (want_dx,) = torch.autograd.grad(penalty(x, w, textbook), x, create_graph=True)
    wanted = torch.autograd.grad(want_dx.square().sum(), (x, w))
    with ops.use_backend(backend):
        score = penalty(x, w, ops)
    with ops.no_weight_grad():
        dx, dw = torch.autograd.grad(score, (x, w), create_graph=True, allow_unused=True)
    assert dw is None
    got = torch.autograd.grad(dx.square().sum(), (x, w))  # R1's step: weights do take this one
    assert relative_rms(dx, want_dx) < 1e-9
    for g, want in zip(got, wanted, strict=True):
        assert relative_rms(g, want) < 1e-9
    score = penalty(x, w, ops)
    assert torch.autograd.grad(score, w)[0].any(), "weights take gradients again after the context"


@pytest.mark.parametrize("modulated", [False, True])
def test_no_weight_grad_leaves_no_trace_in_compiled_graphs(modulated: bool) -> None:
    torch.compiler.reset()
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    w, s = torch.randn(3, 4, 3, 3, requires_grad=True), torch.randn(2, 4)

    def layer(x: Tensor, w: Tensor) -> Tensor:
        if modulated:
            return ops.modulated_conv2d_act(x, w, s, padding=1)
        return ops.conv2d_resample(x, w, padding=1)

    compiled = torch.compile(layer, backend="aot_eager")
    with ops.no_weight_grad():
        compiled(x, w).sum().backward(inputs=x)
    got = torch.autograd.grad(compiled(x, w).sum(), (x, w))
    for g, want in zip(got, torch.autograd.grad(layer(x, w).sum(), (x, w)), strict=True):
        torch.testing.assert_close(g, want)


def test_no_weight_grad_ends_with_an_exception() -> None:
    x, w = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3, requires_grad=True)
    with pytest.raises(KeyError), ops.no_weight_grad():
        raise KeyError
    assert torch.autograd.grad(ops.conv2d_resample(x, w).sum(), w)[0].any()


def test_no_weight_grad_ends_with_the_last_of_several() -> None:
    """Those of several threads need not be nested."""
    first, second = ops.no_weight_grad(), ops.no_weight_grad()
    x, w = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3, requires_grad=True)

    def gradient() -> Tensor | None:
        return torch.autograd.grad(ops.conv2d_resample(x, w).sum(), w, allow_unused=True)[0]

    with first:
        second.__enter__()
        assert gradient() is None
    assert gradient() is None
    second.__exit__(None, None, None)
    assert gradient() is not None


def test_what_a_second_derivative_turns_on_is_on_in_its_thread_alone() -> None:
    x, w = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3, requires_grad=True)

    def gradient() -> Tensor | None:
        return torch.autograd.grad(ops.conv2d_resample(x, w).sum(), w, allow_unused=True)[0]

    with ops.no_weight_grad(), ThreadPoolExecutor(1) as other, weight_grad():
        assert gradient() is not None
        assert other.submit(gradient).result() is None


@pytest.mark.parametrize("options", [{}, {"up": 2}, {"down": 2}])
def test_tensors_without_memory(options: dict[str, int]) -> None:
    x, w = torch.randn(1, 4, 6, 6), torch.randn(2, 4, 3, 3)
    f = ops.setup_filter(BINOMIAL)
    want = ops.conv2d_resample(x, w, f, padding=1, **options)
    y = ops.conv2d_resample(x.to("meta"), w.to("meta"), f.to("meta"), padding=1, **options)
    assert (y.shape, y.device.type) == (want.shape, "meta")


X, W = torch.zeros(1, 4, 6, 6), torch.zeros(2, 4, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[0]}, ValueError, "x must be"),
        ({"w": W[0]}, ValueError, "weight must be"),
        ({"w": W.double()}, TypeError, "weight is torch.float64 but x is torch.float32"),
        ({"w": W[:, :3]}, ValueError, r"weight \[2, 3, 3, 3\] with groups=1 does not fit x"),
        ({"groups": 2}, ValueError, "groups=2 does not fit"),
        ({"groups": 0}, ValueError, "groups=0 does not fit"),
        ({"w": W[:1, :2], "groups": 2}, ValueError, "groups=2 does not fit"),
        ({"w": W.to("meta")}, ValueError, "weight is on meta but x on cpu"),
        ({"up": 0}, ValueError, "up must be an int of at least 1, got 0"),
        ({"down": 1.5}, ValueError, "down must be an int of at least 1, got 1.5"),
        ({"padding": -2}, ValueError, "smaller than the kernel"),
        ({"padding": -4}, ValueError, "conv2d_resample|the result would be"),
        ({"f": torch.ones(3, dtype=torch.int32)}, TypeError, "the filter must be"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.conv2d_resample(**{"x": X, "w": W, **arguments})


@pytest.mark.parametrize("options", [{}, {"up": 2}, {"down": 2}])
def test_gradients_come_in_the_layout_of_the_input(options: dict[str, int]) -> None:
    x = torch.randn(2, 5, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(4, 5, 3, 3, requires_grad=True)
    f = ops.setup_filter(BINOMIAL)
    for y in (
        ops.conv2d_resample(x, w, f, padding=1, **options),
        ops.modulated_conv2d(x, w, torch.randn(2, 5), resample_filter=f, padding=1, **options),
    ):
        dx, dw = torch.autograd.grad(y, (x, w), torch.randn(y.shape))
        assert dx.is_contiguous(memory_format=torch.channels_last)
        assert dw.shape == w.shape

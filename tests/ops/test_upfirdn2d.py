"""upfirdn2d, its helpers and setup_filter: definition, gradients, adjointness, bad arguments."""

from typing import Any

import pytest
import torch
from comparison import BACKENDS, is_slow
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpseg import ops
from gpseg.selftest import textbook
from gpseg.selftest.comparison import relative_rms
from gpseg.selftest.problems import BINOMIAL, SYM6, UNEVEN

F64 = torch.float64


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """An input, a filter and options for which upfirdn2d has a result."""
    n, c, h, w = (draw(st.integers(1, top)) for top in (2, 3, 7, 7))
    kind, fh, fw = (
        draw(st.sampled_from(["none", "1d", "2d"])),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    f = None
    if kind != "none":
        f = torch.randn((fw,) if kind == "1d" else (fh, fw), generator=generator, dtype=F64)
    fh, fw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    factor, pad = st.integers(1, 4), st.integers(-3, 6)
    up, down = draw(st.tuples(factor, factor)), draw(st.tuples(factor, factor))
    padding = draw(st.tuples(pad, pad, pad, pad))
    assume(w * up[0] + padding[0] + padding[1] >= fw and h * up[1] + padding[2] + padding[3] >= fh)
    options = {
        "up": up,
        "down": down,
        "padding": padding,
        "flip_filter": draw(st.booleans()),
        "gain": draw(st.sampled_from([1, 4, 0.3, -2.5])),
    }
    return torch.randn(n, c, h, w, generator=generator, dtype=F64), f, options


def by_definition(x: Tensor, f: Tensor | None, options: dict[str, Any]) -> Tensor:
    """The definition, one output sample after another."""
    (upx, upy), (downx, downy) = options["up"], options["down"]
    px0, px1, py0, py1 = options["padding"]
    taps = torch.ones(1, 1, dtype=F64) if f is None else f.outer(f) if f.ndim == 1 else f
    taps = taps if options["flip_filter"] else taps.flip([0, 1])
    fh, fw = taps.shape
    n, c, h, w = x.shape
    margin = 8  # more than any crop
    z = torch.zeros(
        n, c, h * upy + py0 + py1 + 2 * margin, w * upx + px0 + px1 + 2 * margin, dtype=F64
    )
    for i in range(h):
        for j in range(w):
            row, column = i * upy + py0 + margin, j * upx + px0 + margin
            if 0 <= row < z.shape[2] and 0 <= column < z.shape[3]:
                z[:, :, row, column] = x[:, :, i, j]
    z = z[:, :, margin:-margin, margin:-margin]
    rows = range(0, z.shape[2] - fh + 1, downy)
    columns = range(0, z.shape[3] - fw + 1, downx)
    y = [[(z[:, :, i : i + fh, j : j + fw] * taps).sum([2, 3]) for j in columns] for i in rows]
    return options["gain"] * torch.stack([torch.stack(row, -1) for row in y], -2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("size", "taps", "down", "padding"),
    [
        ((2, 2, 12, 3), (2,), 4, (2, -2, 5, 3)),
        ((2, 3, 12, 10), (2,), 3, (1, -1, 1, 2)),
        ((1, 8, 8, 7), (4, 1), 4, (2, -2, 0, 4)),
        ((2, 3, 11, 5), (2, 1), 4, (2, 0, 4, -1)),
    ],
)
def test_columns_that_no_output_depends_on(
    size: tuple[int, ...], taps: tuple[int, ...], down: int, padding: Any, backend: str
) -> None:
    """Fewer taps than the step, and pixels left over at the end of narrow rows."""
    x, f = torch.randn(size, dtype=torch.float64), torch.rand(taps, dtype=torch.float64)
    want = textbook.upfirdn2d(x, f, down=down, padding=padding)
    with ops.use_backend(backend):
        assert relative_rms(ops.upfirdn2d(x, f, down=down, padding=padding), want) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=60)
@given(call=calls())
def test_definition(backend: str, call: tuple[Tensor, Tensor | None, dict[str, Any]]) -> None:
    x, f, options = call
    with ops.use_backend(backend):
        y = ops.upfirdn2d(x, f, **options)
    fh, fw = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    (upx, upy), (downx, downy) = options["up"], options["down"]
    px0, px1, py0, py1 = options["padding"]
    assert y.shape == (
        *x.shape[:2],
        (x.shape[2] * upy + py0 + py1 - fh + downy) // downy,
        (x.shape[3] * upx + px0 + px1 - fw + downx) // downx,
    )
    assert relative_rms(y, by_definition(x, f, options)) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=60)
@given(call=calls())
def test_linear_and_its_gradient_is_the_adjoint(
    backend: str, call: tuple[Tensor, Tensor | None, dict[str, Any]]
) -> None:
    x, f, options = call
    x.requires_grad_()
    other = torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    with ops.use_backend(backend):
        y, y_other = ops.upfirdn2d(x, f, **options), ops.upfirdn2d(other, f, **options)
        combined = ops.upfirdn2d(2 * x - 3 * other, f, **options)
        dy = torch.randn(y.shape, dtype=F64, generator=torch.Generator().manual_seed(3))
        (dx,) = torch.autograd.grad(y, x, dy)
    scale = y.abs().sum() + y_other.abs().sum() + 1
    assert (combined - 2 * y + 3 * y_other).abs().max() < 1e-12 * scale
    assert abs((y * dy).sum() - (x * dx).sum()) < 1e-10 * scale
    assert abs((y_other * dy).sum() - (other * dx).sum()) < 1e-10 * scale


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("f", [None, UNEVEN, BINOMIAL, [[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]]])
@pytest.mark.parametrize(
    ("up", "down", "padding"),
    [(1, 1, 2), (2, 1, 1), (1, 2, (1, 2)), ((2, 3), (3, 2), (2, -1, 3, 1))],
)
def test_gradients(f: Any, up: Any, down: Any, padding: Any, backend: str) -> None:
    taps = None if f is None else torch.tensor(f, dtype=F64)
    x = torch.randn(1, 2, 4, 5, dtype=F64, requires_grad=True)

    def call(x: Tensor) -> Tensor:
        return ops.upfirdn2d(x, taps, up=up, down=down, padding=padding, gain=0.7)

    fast = is_slow(backend)
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(call, (x,), fast_mode=fast)
        assert torch.autograd.gradgradcheck(call, (x,), fast_mode=fast)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("f", [None, BINOMIAL, SYM6])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)])
def test_images_of_nothing(
    shape: tuple[int, ...], up: int, down: int, f: Any, backend: str
) -> None:
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    taps = None if f is None else ops.setup_filter(f)
    with ops.use_backend(backend):
        y = ops.upfirdn2d(x, taps, up=up, down=down, padding=6)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.shape[:2] == shape[:2] and not y.any()
    assert gradient.shape == shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_third_order(backend: str) -> None:
    x = torch.randn(1, 1, 4, 4, dtype=F64, requires_grad=True)
    f = ops.setup_filter(BINOMIAL)

    def second(x: Tensor) -> Tensor:
        y = ops.upsample2d(x, f).pow(4).sum()
        (dx,) = torch.autograd.grad(y, x, create_graph=True)
        return torch.autograd.grad(dx.pow(2).sum(), x, create_graph=True)[0]

    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(second, (x,), fast_mode=is_slow(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_a_sum(backend: str) -> None:
    """y.sum() hands the backward pass an expanded tensor, whose strides are 0."""
    x = torch.randn(2, 3, 6, 6, dtype=F64, requires_grad=True)
    f = ops.setup_filter(BINOMIAL)
    with ops.use_backend(backend):
        (dx,) = torch.autograd.grad(ops.downsample2d(x, f).sum(), x)
    (want,) = torch.autograd.grad(textbook.downsample2d(x, f).sum(), x)
    assert relative_rms(dx, want) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_gain_is_not_rounded_without_a_filter(backend: str) -> None:
    with ops.use_backend(backend):
        y = ops.upfirdn2d(torch.ones(1, 1, 1, 1, dtype=F64), None, gain=0.1)
    assert y.item() == 0.1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("separable", [True, False])
def test_negative_gain(separable: bool, backend: str) -> None:
    x, f = torch.randn(1, 2, 5, 5, dtype=F64), ops.setup_filter(UNEVEN, separable=separable)
    with ops.use_backend(backend):
        got, want = ops.filter2d(x, f, gain=-3.0), -3 * ops.filter2d(x, f)
    assert relative_rms(got, want) < 1e-6  # the gain is folded into the taps, in float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("taps", [[1.0], UNEVEN, BINOMIAL, SYM6])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_helpers_keep_sizes_and_the_mean(factor: int, taps: Any, backend: str) -> None:
    f = ops.setup_filter(taps)
    margin = 14
    x = torch.zeros(1, 1, 24 + 2 * margin, 36 + 2 * margin, dtype=F64)
    x[:, :, margin:-margin, margin:-margin] = torch.randn(24, 36, dtype=F64)
    h, w = x.shape[2:]
    with ops.use_backend(backend):
        up, same = ops.upsample2d(x, f, up=factor), ops.filter2d(x, f)
        down = ops.downsample2d(x, f, down=factor)
    assert up.shape[2:] == (h * factor, w * factor)
    assert same.shape == x.shape
    assert down.shape[2:] == (h // factor, w // factor)
    assert torch.isclose(up.sum(), x.sum() * factor**2, rtol=1e-5)
    assert torch.isclose(same.sum(), x.sum(), rtol=1e-5)


@given(
    taps=st.lists(st.floats(0.125, 4, width=32), min_size=1, max_size=12),
    gain=st.floats(0.25, 4),
    separable=st.sampled_from([True, False, None]),
)
def test_setup_filter(taps: list[float], gain: float, separable: bool | None) -> None:
    f = ops.setup_filter(taps, gain=gain, separable=separable)
    assert f.dtype == torch.float32
    assert f.ndim == (1 if separable or (separable is None and len(taps) >= 8) else 2)
    whole = f.outer(f) if f.ndim == 1 else f
    assert whole.sum().item() == pytest.approx(gain, rel=1e-4)
    t = torch.tensor(taps)
    torch.testing.assert_close(whole, gain * t.outer(t) / t.sum() ** 2, rtol=1e-4, atol=1e-6)
    mirrored = ops.setup_filter(taps, gain=gain, separable=separable, flip_filter=True)
    torch.testing.assert_close(mirrored, f.flip(list(range(f.ndim))), rtol=0, atol=0)
    raw = ops.setup_filter(taps, normalize=False, separable=True)
    torch.testing.assert_close(raw, t, rtol=0, atol=0)


def test_setup_filter_of_nothing_is_the_identity() -> None:
    x = torch.randn(1, 1, 3, 3)
    assert torch.equal(ops.upfirdn2d(x, ops.setup_filter(None)), x)


def test_setup_filter_where_nothing_has_values() -> None:
    with torch.device("meta"):
        assert ops.setup_filter([1, 3, 3, 1]).is_meta
        assert not ops.setup_filter([1, 3, 3, 1], device="cpu").is_meta


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"f": [[[1.0]]]}, "one or two dimensions"),
        ({"f": []}, "at least one tap"),
        ({"f": [1.0, -1.0]}, "normalize=False"),
        ({"f": [[1.0]], "separable": True}, "can't be separable"),
        ({"f": [1.0], "separable": True, "gain": -1}, "gain -1"),
    ],
)
def test_setup_filter_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.setup_filter(**arguments)


X = torch.zeros(1, 2, 6, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[0]}, ValueError, r"x must be \[N, C, H, W\], got \[2, 6, 6\]"),
        ({"x": X.int()}, TypeError, "x must be float16.*got torch.int32"),
        ({"x": X.tolist()}, TypeError, "x must be a tensor, got list"),
        ({"f": torch.ones(3).int()}, TypeError, "the filter must be float16"),
        ({"f": torch.ones(1, 1, 3)}, ValueError, "the filter must be"),
        ({"f": torch.ones(0)}, ValueError, "the filter must be"),
        ({"f": torch.ones(3, device="meta")}, ValueError, "the filter is on meta but x on cpu"),
        ({"up": 0}, ValueError, "up must be at least 1, got 0"),
        ({"up": 2.0}, ValueError, "up must be an int or 2 ints, got 2.0"),
        ({"down": (1, -2)}, ValueError, "down must be at least 1"),
        ({"down": (1, 2, 3)}, ValueError, "down must be an int or 2 ints"),
        ({"padding": (1, 2, 3)}, ValueError, "padding must be an int or 2 or 4 ints"),
        ({"padding": None}, ValueError, "padding must be an int or 2 or 4 ints, got None"),
        ({"padding": -3}, ValueError, "the result would be"),
        ({"f": torch.ones(7)}, ValueError, r"smaller than the filter of \(7, 7\) taps"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.upfirdn2d(**{"x": X, "f": None, **arguments})


@pytest.mark.parametrize("op", ["filter2d", "upsample2d", "downsample2d"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X.tolist()}, TypeError, "x must be a tensor, got list"),
        ({"f": [1, 3, 3, 1]}, TypeError, "the filter must be a tensor, got list"),
        ({"f": torch.tensor(1.0)}, ValueError, "the filter must be"),
        ({"padding": -6}, ValueError, "the result would be"),
    ],
)
def test_helpers_refuse_in_their_own_name(
    op: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"{op}: {message}"):
        getattr(ops, op)(**{"x": X, "f": None, **arguments})

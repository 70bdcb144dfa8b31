"""The C++ kernels against plain float64 formulas: values, first and second derivatives."""

import copy
import itertools
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from gpseg.backends import cpp as cpp_module
from gpseg.backends.contract import Epilogue
from gpseg.backends.cpp import BACKEND as cpp
from gpseg.backends.layout import accumulate_dtype
from gpseg.selftest.comparison import relative_rms

if cpp.available() is not None:
    pytest.skip(str(cpp.available()), allow_module_level=True)

import gpseg.ops
from gpseg import _C

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
}
DTYPES = list(TOLERANCE)
ISA_LEVELS = _C.build_info()["isa_compiled"]
ISA_LEVELS = ISA_LEVELS[: ISA_LEVELS.index(_C.build_info()["isa_supported"]) + 1]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z,
    "relu": functional.relu,
    "lrelu": lambda z: functional.leaky_relu(z, 0.3),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "selu": functional.selu,
    "softplus": lambda z: torch.logaddexp(z, torch.zeros_like(z)),
    "swish": functional.silu,
}


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that a kernel does not write shows as NaN."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(math.nan))
    pooled = cpp._empty
    monkeypatch.setattr(cpp, "_empty", lambda x, size: pooled(x, size).fill_(math.nan))


@pytest.fixture(params=ISA_LEVELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this processor has, in turn."""
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(ISA_LEVELS[-1])


def sample(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def sliced(x: Tensor) -> Tensor:
    room = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), math.nan, dtype=x.dtype)
    room[..., 1::2] = x
    return room[..., 1::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "sliced": sliced,
}


def assert_close(
    actual: Tensor | None,
    expected: Tensor | None,
    dtype: torch.dtype,
    summed: Tensor | None = None,
) -> None:
    """RMS error within what the element type allows, relative to the result.

    Where the result is a sum of terms as large as those of `summed`, which may cancel, it is relative to
    what such a sum would be with random signs.
    """
    assert (actual is None) == (expected is None)
    if actual is None or expected is None:
        return
    assert actual.shape == expected.shape
    error = (actual.double() - expected).square().mean().sqrt()
    scale = expected.square().mean().sqrt().clamp(min=1e-3)
    if summed is not None and actual.numel():
        terms = summed.numel() / actual.numel()
        scale = scale.maximum(terms**0.5 * summed.double().square().mean().sqrt())
    if actual.numel():
        assert error <= TOLERANCE[dtype] * scale, f"relative RMS error {error / scale:.2e}"


def assert_layout_of(y: Tensor, x: Tensor) -> None:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=wanted)
    assert y.dtype == x.dtype


def reference_upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """The definition, on an explicit grid with its inserted zeros."""
    n, c, h, w = x.shape
    grid = x.new_zeros(n, c, h * up[1], w * up[0])
    grid[:, :, :: up[1], :: up[0]] = x
    x0, x1, y0, y1 = padding
    grid = functional.pad(grid, [max(p, 0) for p in padding])
    grid = grid[:, :, max(-y0, 0) : grid.shape[2] - max(-y1, 0)]
    grid = grid[:, :, :, max(-x0, 0) : grid.shape[3] - max(-x1, 0)]
    taps = torch.ones(1, 1) if f is None else f if f.ndim == 2 else f.outer(f)
    taps = taps.to(x.dtype) if flip_filter else taps.to(x.dtype).flip(0, 1)
    y = x.new_zeros(n, c, grid.shape[2] - taps.shape[0] + 1, grid.shape[3] - taps.shape[1] + 1)
    for i, j in itertools.product(range(taps.shape[0]), range(taps.shape[1])):
        y += taps[i, j] * grid[:, :, i : i + y.shape[2], j : j + y.shape[3]]
    return gain * y[:, :, :: down[1], :: down[0]]


SMOOTH = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
FILTERS = {
    "none": None,
    "4 taps": SMOOTH,
    "4 x 4 product": SMOOTH.outer(SMOOTH),
    "12 taps": sample(12, seed=5),
    "4 x 4 full": sample(4, 4, seed=6),
    "3 x 5 full": sample(3, 5, seed=7),
    "7 x 2 product": sample(7, seed=8).outer(sample(2, seed=9)),
    "zeros": torch.zeros(2, 2),
}
GEOMETRIES = [
    ((2, 2), (1, 1), (2, 1, 2, 1)),
    ((1, 1), (2, 2), (1, 1, 1, 1)),
    ((1, 1), (1, 1), (2, 1, 2, 1)),
    ((3, 2), (2, 3), (5, 3, -1, 6)),
    ((1, 4), (4, 1), (6, 5, 7, -3)),
    ((4, 3), (3, 4), (-2, 6, 5, 4)),
    ((2, 2), (1, 1), (11, 10, 10, 11)),
    ((1, 1), (2, 2), (20, 15, 14, 19)),
]


class TestUpfirdn2d:
    @pytest.mark.parametrize("geometry", GEOMETRIES)
    @pytest.mark.parametrize("name", FILTERS)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_geometries(self, layout: str, name: str, geometry: tuple) -> None:
        x, f = sample(2, 3, 13, 17), FILTERS[name]
        for flip, gain in (False, 1.0), (True, -1.7):
            expected = reference_upfirdn2d(x, f, *geometry, flip, gain)
            given_x = LAYOUTS[layout](x)
            y = cpp.upfirdn2d(given_x, f, *geometry, flip, gain)
            assert_close(y, expected, torch.float64)
            assert_layout_of(y, given_x)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("name", ["4 taps", "12 taps", "4 x 4 full"])
    def test_types_at_each_isa_level(
        self, isa: str, name: str, layout: str, dtype: torch.dtype
    ) -> None:
        x, f = sample(1, 5, 23, 45, dtype=dtype), FILTERS[name]
        for geometry in GEOMETRIES[:4]:
            geometry = (*geometry[:2], (12, 12, 12, 12))
            expected = reference_upfirdn2d(x.double(), f, *geometry, False, 2.0)
            y = cpp.upfirdn2d(LAYOUTS[layout](x), f, *geometry, False, 2.0)
            assert_close(y, expected, dtype)

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_random_geometries(self, data: st.DataObject) -> None:
        size = st.integers(1, 9)
        factor, pad = st.integers(1, 4), st.integers(-3, 6)
        up, down = (tuple(data.draw(factor) for _ in range(2)) for _ in range(2))
        padding = tuple(data.draw(pad) for _ in range(4))
        h, w = data.draw(size), data.draw(size)
        taps = data.draw(st.one_of(st.tuples(size), st.tuples(size, size)))
        f = sample(*taps, seed=data.draw(st.integers(0, 99)))
        grid_h = h * up[1] + padding[2] + padding[3]
        grid_w = w * up[0] + padding[0] + padding[1]
        if grid_h < f.shape[0] or grid_w < f.shape[-1]:
            return
        x = LAYOUTS[data.draw(st.sampled_from(list(LAYOUTS)))](sample(2, 3, h, w))
        flip = data.draw(st.booleans())
        expected = reference_upfirdn2d(x, f, up, down, padding, flip, 0.5)
        y = cpp.upfirdn2d(x, f, up, down, padding, flip, 0.5)
        assert_close(y, expected, torch.float64)

    @pytest.mark.parametrize(
        ("size", "layout"),
        [((1, 700, 3, 50), "channels_last"), ((1, 1, 4, 17000), "nchw")],
    )
    @pytest.mark.parametrize("name", ["4 taps", "4 x 4 full"])
    @pytest.mark.parametrize("geometry", GEOMETRIES[:4])
    def test_rows_longer_than_a_tile(
        self, size: tuple, layout: str, name: str, geometry: tuple
    ) -> None:
        for dtype in torch.float32, torch.float16:
            x, f = sample(*size, dtype=dtype), FILTERS[name]
            expected = reference_upfirdn2d(x.double(), f, *geometry, False, 1.0)
            y = cpp.upfirdn2d(LAYOUTS[layout](x), f, *geometry, False, 1.0)
            assert_close(y, expected, dtype)

    @pytest.mark.parametrize(
        "size", [(2, 300, 4, 4), (1, 71, 9, 30), (2, 20, 6, 127), (1, 3, 3, 128)]
    )
    @pytest.mark.parametrize("geometry", GEOMETRIES[:4])
    def test_narrow_planes(self, isa: str, size: tuple, geometry: tuple) -> None:
        """Several planes are filtered as one."""
        for dtype, name in itertools.product(DTYPES, ["4 taps", "4 x 4 full"]):
            geometry = (*geometry[:2], (6, 5, 4, 3))
            x, f = sample(*size, dtype=dtype), FILTERS[name]
            filtered = reference_upfirdn2d(x.double(), f, *geometry, False, 2.0)
            assert_close(cpp.upfirdn2d(x, f, *geometry, False, 2.0), filtered, dtype)
            d, b = sample(*size[:2], seed=1), sample(size[1], seed=2)
            noise = sample(*filtered.shape[2:], seed=3)
            wide = torch.promote_types(dtype, torch.float32)
            expected = reference_demod_act(filtered, d, noise, b, "lrelu", 1.3, 1.1)
            side = (t.to(wide) for t in (d, noise, b))
            y, c = cpp.upfirdn2d_demod_act(
                x, f, *geometry, False, 2.0, Epilogue(*side, "lrelu", 0.3, 1.3, 1.1), True
            )
            assert_close(c, filtered, dtype)
            assert_close(y, expected, dtype)

    def test_a_cell_wider_than_what_is_read(self) -> None:
        x, f = sample(2, 3, 2, 1), sample(2, 1)
        geometry = ((1, 1), (2, 1), (1, 0, 0, 0))
        y = cpp.upfirdn2d(x, f, *geometry, False, 0.5)
        assert_close(y, reference_upfirdn2d(x, f, *geometry, False, 0.5), torch.float64)

    @pytest.mark.parametrize("size", [(0, 3, 5, 5), (2, 0, 5, 5), (2, 3, 0, 5), (2, 3, 5, 0)])
    def test_empty(self, size: tuple) -> None:
        for layout in "nchw", "channels_last":
            x = LAYOUTS[layout](sample(*size))
            y = cpp.upfirdn2d(x, SMOOTH, (2, 2), (1, 1), (4, 4, 4, 4), False, 1.0)
            assert_close(y, y.new_zeros(y.shape), torch.float64)

    def test_nan_reaches_its_neighbours_only(self) -> None:
        x = torch.zeros(1, 1, 9, 9)
        x[0, 0, 4, 4] = math.nan
        y = cpp.upfirdn2d(x, SMOOTH, (1, 1), (1, 1), (2, 1, 2, 1), False, 1.0)
        assert y.isnan().sum() == 16
        assert y[0, 0, 4, 4].isnan()


class TestBiasAct:
    SIZES = (2, 5, 7, 9), (3, 40, 4, 4), (1, 3, 40, 50), (1, 2, 150, 130)

    @pytest.mark.parametrize("clamp", [-1.0, 0.6])
    @pytest.mark.parametrize("act", ACTIVATIONS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_values_and_derivatives(
        self, isa: str, dtype: torch.dtype, act: str, clamp: float
    ) -> None:
        for size, layout in zip(self.SIZES, LAYOUTS, strict=True):
            self.check(LAYOUTS[layout], size, 1, dtype, act, clamp)

    @pytest.mark.parametrize(
        ("size", "dim"),
        [((6,), 0), ((3, 700), 1), ((700, 3), 0), ((4, 3, 5), 2), ((2, 3, 4, 5, 6), 2)]
        + [((2, 3, 4, 5), dim) for dim in range(4)]
        + [((2, 1500, 2, 2), 1), ((700, 1, 5, 5), 1), ((2, 3, 1, 1), 1)],
    )
    def test_dimensions(self, size: tuple, dim: int) -> None:
        layouts = LAYOUTS if len(size) == 4 else {"nchw": LAYOUTS["nchw"]}
        for layout in layouts.values():
            self.check(layout, size, dim, torch.float64, "swish", 1.5)

    def check(
        self,
        layout: Callable[[Tensor], Tensor],
        size: tuple,
        dim: int,
        dtype: torch.dtype,
        act: str,
        clamp: float,
    ) -> None:
        x, dy, ddx = (layout(2 * sample(*size, dtype=dtype, seed=i)) for i in range(3))
        # a bias finer than x, so that no x + b lies on a kink, where derivatives are a convention
        fine = torch.promote_types(dtype, torch.float32)
        for b in sample(size[dim], dtype=fine, seed=3), None:
            ddb = None if b is None else sample(size[dim], dtype=fine, seed=4)
            arguments = (dim, act, 0.3, 1.3, clamp)

            inputs = [None if t is None else t.double().requires_grad_() for t in (x, b, dy)]
            shape = [-1 if i == dim else 1 for i in range(len(size))]
            z = inputs[0] if b is None else inputs[0] + inputs[1].reshape(shape)
            y = 1.3 * ACTIVATIONS[act](z)
            y = y if clamp < 0 else y.clamp(-clamp, clamp)
            leaves = [t for t in inputs[:2] if t is not None]
            first = torch.autograd.grad(y, leaves, inputs[2], create_graph=True)

            actual_y = cpp.bias_act(x, b, *arguments)
            assert_close(actual_y, y, dtype)
            assert_layout_of(actual_y, x)
            actual_first = cpp.bias_act_backward(dy, x, b, *arguments)
            assert_close(actual_first[0], first[0], dtype)
            assert_close(actual_first[1], None if b is None else first[1], dtype, first[0])
            assert_layout_of(actual_first[0], x)

            for has_ddx, has_ddb in (True, True), (True, False), (False, True):
                cotangents = (ddx if has_ddx else None, ddb if has_ddb else None)
                if not has_ddx and b is None:
                    continue
                pairs = [(g, c) for g, c in zip(first, cotangents, strict=False) if c is not None]
                total = sum(((g * c.double()).sum() for g, c in pairs), torch.zeros(()))
                wanted = [inputs[2], *leaves]
                second = [
                    torch.zeros_like(t) if g is None else g
                    for t, g in zip(
                        wanted,
                        torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True),
                        strict=True,
                    )
                ]
                actual = cpp.bias_act_double_backward(*cotangents, dy, x, b, *arguments)
                assert_close(actual[0], second[0], dtype)
                assert_close(actual[1], second[1], dtype)
                assert_close(actual[2], None if b is None else second[2], dtype, second[1])

    @pytest.mark.parametrize("act", ACTIVATIONS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_large_and_small_arguments(self, isa: str, act: str, dtype: torch.dtype) -> None:
        magnitudes = torch.logspace(-12, 4, 1000, dtype=torch.float64)
        x = torch.cat([magnitudes, -magnitudes, torch.zeros(1)]).to(dtype)
        z = x.double().requires_grad_()
        y = ACTIVATIONS[act](z)
        (slope,) = torch.autograd.grad(y.sum(), z)
        if act in ("relu", "lrelu", "elu", "selu"):
            assert cpp.bias_act_backward(torch.ones(1), torch.zeros(1), None, 0, act, 0.3, 1, -1)[
                0
            ].item() == pytest.approx(slope[-1].item())
        arguments = (None, 0, act, 0.3, 1.0, -1.0)
        relative = 1e-12 if dtype == torch.float64 else 2e-6
        actual = cpp.bias_act(x, *arguments).double()
        assert ((actual - y).abs() <= relative * y.abs() + 1e-36).all()
        first, _ = cpp.bias_act_backward(torch.ones_like(x), x, *arguments)
        assert ((first.double() - slope).abs() <= relative * (slope.abs() + 1e-3)).all()

    @pytest.mark.parametrize("act", ACTIVATIONS)
    def test_nan_stays_nan(self, isa: str, act: str) -> None:
        x = torch.zeros(40)
        x[7] = math.nan
        for clamp in -1.0, 0.5:
            for dtype in DTYPES:
                y = cpp.bias_act(x.to(dtype), None, 0, act, 0.2, 1.0, clamp)
                assert y.isnan().nonzero().flatten().tolist() == [7]

    def test_gradient_at_the_clamp_is_one(self) -> None:
        x = torch.tensor([-1.0, 1.0, 1.5, -1.5, 0.5])
        for act, clamp in ("linear", 1.0), ("lrelu", 1.0):
            dx, _ = cpp.bias_act_backward(torch.ones(5), x, None, 0, act, 1.0, 1.0, clamp)
            assert dx.tolist() == [1, 1, 0, 0, 1]

    def test_empty(self) -> None:
        for size in (0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4):
            for layout in "nchw", "channels_last":
                x, b = LAYOUTS[layout](sample(*size)), sample(size[1])
                assert cpp.bias_act(x, b, 1, "relu", 0, 1, -1).shape == size
                dx, db = cpp.bias_act_backward(x, x, b, 1, "relu", 0, 1, -1)
                assert dx.shape == size
                assert db.tolist() == [0] * size[1]
                *_, d2b = cpp.bias_act_double_backward(x, None, x, x, b, 1, "relu", 0, 1, -1)
                assert d2b.tolist() == [0] * size[1]


HALF_PATTERNS = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)


class TestHalfTypes:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_every_number_survives(self, isa: str, dtype: torch.dtype) -> None:
        x = HALF_PATTERNS.view(dtype)
        y = cpp.bias_act(x, None, 0, "linear", 0, 1.0, -1)
        assert torch.equal(y.isnan(), x.isnan())
        assert torch.equal(y[~x.isnan()], x[~x.isnan()])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_rounding(self, isa: str, dtype: torch.dtype) -> None:
        """A bias of less than half a step, of half a step and of more, at every finite number."""
        x = HALF_PATTERNS.view(dtype)
        x = x[x.isfinite()]
        for factor in 0.4999, 0.5, 0.5001, 1.5:
            step = (HALF_PATTERNS.view(dtype)[1:2] - HALF_PATTERNS.view(dtype)[:1]).float().abs()
            b = (x.float().abs() * 2.0**-11).clamp(min=step.item()) * factor
            y = cpp.bias_act(x, b.contiguous(), 0, "linear", 0, 1.0, -1)
            assert torch.equal(y, (x.float() + b).to(dtype))

    def test_bfloat16_rounds_to_even(self, isa: str) -> None:
        """Every upper half of a float32, with lower halves around the middle; denormal numbers too."""
        upper = HALF_PATTERNS.to(torch.int32) << 16
        for lower in 0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF:
            bits = upper | lower
            wide = bits.view(torch.float32)
            y = cpp.bias_act(wide.new_zeros(2**16).bfloat16(), wide, 0, "linear", 0, 1.0, -1)
            rounded = (bits.long() + 0x7FFF + ((bits.long() >> 16) & 1)) >> 16
            expected = rounded.to(torch.int16).view(torch.bfloat16)
            assert torch.equal(y.isnan(), wide.isnan())
            assert torch.equal(y[~wide.isnan()], expected[~wide.isnan()])

    def test_float16_rounds_to_even(self, isa: str) -> None:
        """The middle between each two neighbours, and the float32 on either side of it."""
        x = torch.arange(0x7C01, dtype=torch.int16).view(torch.float16).double()
        middle = ((x[1:] + x[:-1]) / 2).float()
        middle[-1] = 65520  # from which on it is infinity
        for sign, side in itertools.product((1, -1), (0.0, math.inf, None)):
            wide = middle if side is None else middle.nextafter(torch.tensor(side))
            y = cpp.bias_act(wide.new_zeros(len(wide)).half(), sign * wide, 0, "linear", 0, 1.0, -1)
            assert torch.equal(y, (sign * wide).half())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_rows_of_any_length(self, isa: str, dtype: torch.dtype) -> None:
        for n in range(1, 70):
            room = sample(n + 3, dtype=dtype)
            for start in range(3):
                x = room[start : start + n]
                y = torch.full((n + 2,), -1.0, dtype=dtype)
                run_bias_act(x, y[1:-1])
                assert torch.equal(y[1:-1], 2 * x)
                assert y[0] == y[-1] == -1


def run_bias_act(x: Tensor, y: Tensor) -> None:
    """y = 2 x, both being one row."""
    size = (1, 1, x.numel())
    torch.ops.gpseg_cpp.bias_act.default(x, None, *size, "linear", 0.0, 2.0, -1.0, y)


class TestStreaming:
    """Results of 32 MiB and above go past the caches; they must be those that do not."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_rows_that_start_anywhere(self, isa: str, dtype: torch.dtype) -> None:
        n = (32 << 20) // dtype.itemsize + 37
        x = torch.arange(n, dtype=torch.int32).remainder(199).to(dtype)
        room = torch.full((n + 40,), -1.0, dtype=dtype)
        for start in 0, 1, 3, 16, 31:
            room.fill_(-1)
            run_bias_act(x, room[start : start + n])
            assert torch.equal(room[start : start + n], 2 * x)
            assert (room[:start] == -1).all()
            assert (room[start + n :] == -1).all()

    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_images(self, isa: str, dtype: torch.dtype, layout: str) -> None:
        c, h, w = 3, 1501, 4001 * 4 // dtype.itemsize
        x = LAYOUTS[layout](sample(1, c, 67, w, dtype=dtype).repeat(1, 1, 23, 1)[:, :, :h])
        dy, b = x.flip(2), sample(c).float()
        d, noise = sample(1, c).float(), sample(h, w, dtype=dtype)
        act = ("lrelu", 0.2, 1.4, 0.9)
        filtered = (SMOOTH, (1, 1), (1, 1), (2, 1, 2, 1), False, 1.0)

        def results(part: slice, rows: slice) -> list[Tensor]:
            """Of some rows: small enough, unless they are all, not to be streamed."""
            xs, dys = (LAYOUTS[layout](t[:, :, part]) for t in (x, dy))
            return [
                t[:, :, rows]
                for t in (
                    cpp.bias_act(xs, b, 1, *act),
                    cpp.bias_act_backward(dys, xs, b, 1, *act)[0],
                    *cpp.bias_act_double_backward(dys, b, dys, xs, b, 1, *act)[:2],
                    cpp.upfirdn2d(xs, *filtered),
                    cpp.demod_act(xs, Epilogue(d, noise[part], b, *act)),
                    *cpp.upfirdn2d_demod_act(
                        xs, *filtered, Epilogue(d, noise[part], b, *act), True
                    ),
                )
            ]

        assert x.nbytes >= 32 << 20
        both = [results(slice(0, h), slice(0, 500)), results(slice(0, 504), slice(0, 500))]
        for whole, part in zip(*both, strict=True):
            assert torch.equal(whole, part)


def reference_demod_act(
    c: Tensor,
    d: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    act: str,
    gain: float,
    clamp: float,
) -> Tensor:
    z = c if d is None else c * d[:, :, None, None]
    z = z if noise is None else z + noise
    z = z if b is None else z + b[:, None, None]
    y = gain * ACTIVATIONS[act](z)
    return y if clamp < 0 else y.clamp(-clamp, clamp)


NOISES: dict[str, Callable[[int, int, int], tuple | None]] = {
    "none": lambda n, h, w: None,
    "per sample": lambda n, h, w: (n, 1, h, w),
    "one sample": lambda n, h, w: (1, 1, h, w),
    "plane": lambda n, h, w: (h, w),
}


class TestModulatedConv:
    SIZES = (2, 5, 7, 9), (3, 40, 4, 4), (1, 3, 40, 50), (2, 2, 70, 30), (1, 300, 5, 13)

    def side_inputs(
        self, size: tuple, noise: str, dtype: torch.dtype, present: bool
    ) -> list[Tensor | None]:
        n, c, h, w = size
        noise_size = NOISES[noise](n, h, w)
        sums = torch.promote_types(dtype, torch.float32)
        return [
            sample(n, c, seed=11).to(sums) if present else None,
            None if noise_size is None else sample(*noise_size, seed=12).to(dtype),
            sample(c, seed=13).to(dtype) if present else None,
        ]

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("noise", NOISES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_demod_act(self, isa: str, dtype: torch.dtype, noise: str, layout: str) -> None:
        for size, present in itertools.product(self.SIZES, (True, False)):
            c, dy = (LAYOUTS[layout](sample(*size, dtype=dtype, seed=i)) for i in range(2))
            side = self.side_inputs(size, noise, dtype, present)
            act, clamp = ("lrelu", 1.1) if present else ("softplus", -1.0)
            arguments = (act, 0.3, 1.3, clamp)

            inputs = [None if t is None else t.double().requires_grad_() for t in (c, *side)]
            y = reference_demod_act(*inputs, act, 1.3, clamp)
            actual = cpp.demod_act(c, Epilogue(*side, *arguments))
            assert_close(actual, y, dtype)
            assert_layout_of(actual, c)

            leaves = [t for t in inputs if t is not None]
            gradients = iter(torch.autograd.grad(y, leaves, dy.double()))
            expected = [None if t is None else next(gradients) for t in inputs]
            actuals = cpp.demod_act_backward(dy, c, Epilogue(*side, *arguments))
            assert_layout_of(actuals[0], c)
            summed = [None, dy * c, dy, dy]
            for a, e, t, terms in zip(actuals, expected, (c, *side), summed, strict=True):
                assert_close(a, e, dtype, terms)
                assert t is None or a.dtype == t.dtype

    @pytest.mark.parametrize("act", ACTIVATIONS)
    def test_activations(self, act: str) -> None:
        c, dy = sample(2, 3, 5, 6), sample(2, 3, 5, 6, seed=1)
        side = self.side_inputs((2, 3, 5, 6), "per sample", torch.float64, True)
        inputs = [t.double().requires_grad_() for t in (c, *side)]
        y = reference_demod_act(*inputs, act, 1.3, -1)
        assert_close(cpp.demod_act(c, Epilogue(*side, act, 0.3, 1.3, -1.0)), y, torch.float64)
        expected = torch.autograd.grad(y, inputs, dy)
        actual = cpp.demod_act_backward(dy, c, Epilogue(*side, act, 0.3, 1.3, -1.0))
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, torch.float64)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_scale_channels(self, isa: str, layout: str, dtype: torch.dtype) -> None:
        for size in *self.SIZES, (1, 2, 200, 150), (2, 1300, 3, 3):
            x, dy = (LAYOUTS[layout](sample(*size, dtype=dtype, seed=i)) for i in range(2))
            s = sample(*size[:2], seed=2).to(torch.promote_types(dtype, torch.float32))
            wide = s.double()[:, :, None, None]
            y = cpp.scale_channels(x, s)
            assert_close(y, x.double() * wide, dtype)
            assert_layout_of(y, x)
            dx, ds = cpp.scale_channels_backward(x, s, dy)
            assert_close(dx, dy.double() * wide, dtype)
            assert_layout_of(dx, x)
            assert ds.dtype == s.dtype
            assert_close(ds, (x.double() * dy.double()).sum([2, 3]), dtype, x * dy)

    @pytest.mark.parametrize("keep", [False, True])
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_upfirdn2d_demod_act(
        self, isa: str, dtype: torch.dtype, layout: str, keep: bool
    ) -> None:
        x = LAYOUTS[layout](sample(2, 5, 7, 9, dtype=dtype))
        for geometry, noise, name in zip(
            GEOMETRIES[:4],
            NOISES,
            ["4 taps", "4 x 4 full", "4 taps", "4 x 4 product"],
            strict=True,
        ):
            filtered = reference_upfirdn2d(x.double(), FILTERS[name], *geometry, False, 4.0)
            side = self.side_inputs(tuple(filtered.shape), noise, dtype, True)
            wide = [None if t is None else t.double() for t in side]
            expected = reference_demod_act(filtered, *wide, "lrelu", 1.3, 1.1)
            y, c = cpp.upfirdn2d_demod_act(
                x,
                FILTERS[name],
                *geometry,
                False,
                4.0,
                Epilogue(*side, "lrelu", 0.3, 1.3, 1.1),
                keep,
            )
            assert_close(y, expected, dtype)
            assert_close(c, filtered if keep else None, dtype)
            assert_layout_of(y, x)

    def test_empty(self) -> None:
        for size in (0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4):
            for noise in "per sample", "one sample", "none":
                c = sample(*size)
                side = self.side_inputs(size, noise, torch.float64, True)
                assert cpp.demod_act(c, Epilogue(*side, "lrelu", 0.2, 1, -1)).shape == size
                gradients = cpp.demod_act_backward(c, c, Epilogue(*side, "lrelu", 0.2, 1, -1))
                for g, t in zip(gradients, (c, *side), strict=True):
                    assert_close(g, None if t is None else torch.zeros_like(t), torch.float64)
                y, _ = cpp.upfirdn2d_demod_act(
                    c, SMOOTH, (1, 1), (1, 1), (9, 9, 9, 9), False, 1.0, Epilogue(), False
                )
                assert not y.any()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x = sample(2, 24, 60, 70, dtype=torch.float32)
    noise, d, b = sample(60, 70).float(), sample(2, 24).float(), sample(24).float()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in 1, 2, 3:
            torch.set_num_threads(threads)
            for layout in "nchw", "channels_last":
                z = LAYOUTS[layout](x)
                results.append(
                    [
                        cpp.upfirdn2d(z, SMOOTH, (2, 2), (1, 1), (2, 1, 2, 1), False, 4.0),
                        *cpp.bias_act_backward(z, z, b, 1, "lrelu", 0.2, 1.4, 2.0),
                        *cpp.demod_act_backward(
                            z, z, Epilogue(d, noise, b, "lrelu", 0.2, 1.4, 2.0)
                        ),
                    ]
                )
    finally:
        torch.set_num_threads(before)
    for later in results[2::2]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], later, strict=True))
    for later in results[3::2]:
        assert all(torch.equal(a, b) for a, b in zip(results[1], later, strict=True))


def test_an_isa_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="sse9"):
        _C.set_isa("sse9")


def test_the_environment_can_lower_the_isa_level() -> None:
    code = "import torch, gpseg._C as c; print(c.build_info()['isa'])"
    environment = {**os.environ, "GPSEG_CPU_ISA": "baseline"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "baseline"


LARGE = (2 << 20, 2)  # 16 MiB of float32


@pytest.fixture
def empty_pool() -> Iterator[None]:
    cpp_module.empty_cache()
    yield
    cpp_module.empty_cache()


def filled(value: float, size: tuple[int, ...] = LARGE) -> Tensor:
    """A result of the pool's, or of malloc's if it is small."""
    return cpp.bias_act(torch.full(size, float(value)), None, 1, "linear", 0, 1.0, -1)


def in_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    prelude = "import torch; from gpseg import ops, _C; x = torch.ones(2 << 20, 2)\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.usefixtures("empty_pool")
class TestPool:
    def test_a_block_is_reused_once_its_storage_died(self) -> None:
        y = filled(1)
        view, at = y[5:], y.data_ptr()
        assert at % (2 << 20) == 0
        del y
        other = filled(2)
        assert other.data_ptr() != at
        assert (view == 1).all()
        del view
        assert _C.cached_bytes() == 16 << 20
        assert filled(3).data_ptr() == at
        assert (other == 2).all()

    def test_memory_serves_blocks_of_other_sizes(self) -> None:
        blocks = [filled(1) for _ in range(3)]
        at = min(block.data_ptr() for block in blocks)
        del blocks
        assert _C.cached_bytes() == 48 << 20
        larger = filled(1, (6 << 20, 2))  # where the three were
        assert (larger.data_ptr(), _C.cached_bytes()) == (at, 0)
        del larger
        smaller = [filled(i, (3 << 19, 2)) for i in range(4)]
        assert _C.cached_bytes() == 0
        assert all((block == i).all() for i, block in enumerate(smaller))

    def test_the_place_given_back_last_is_taken(self) -> None:
        blocks = [filled(i) for i in range(4)]
        at = blocks[2].data_ptr()
        blocks[0] = None
        blocks[2] = None
        assert filled(1).data_ptr() == at
        assert _C.cached_bytes() == 32 << 20

    def test_fewest_fresh_pages(self) -> None:
        blocks = [filled(i, (n << 20, 2)) for i, n in enumerate((2, 1, 4, 1))]
        at = blocks[2].data_ptr()
        blocks[0] = blocks[2] = blocks[3] = None
        larger = filled(7, (5 << 20, 2))  # where 40 MiB lie together
        assert larger.data_ptr() == at
        assert (blocks[1] == 1).all()

    def test_more_than_a_region(self) -> None:
        tensors = [filled(i, (20 << 20, 2)) for i in range(3)]  # 160 MiB each, of regions of 256
        huge = filled(7, (40 << 20, 2))
        assert all((t == i).all() for i, t in enumerate(tensors)) and (huge == 7).all()

    def test_small_results_are_mallocs(self) -> None:
        filled(1, (100, 2))
        assert _C.cached_bytes() == 0

    def test_it_can_be_emptied(self) -> None:
        filled(1)
        assert _C.cached_bytes() == 16 << 20
        gpseg.ops.empty_cpu_cache()
        assert _C.cached_bytes() == 0

    def test_by_default_it_keeps_a_sixteenth_of_the_memory_or_a_gibibyte(self) -> None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        code = "print(_C.cache_limit())"
        result = in_python(code)
        assert int(result.stdout) == min(memory // 16, 1 << 30)

    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_layouts_and_types(self, layout: str, dtype: torch.dtype) -> None:
        x = LAYOUTS[layout](torch.ones(2, 8, 512, 1024, dtype=dtype))
        y = cpp.bias_act(x, None, 1, "linear", 0, 2.0, -1)
        assert y.data_ptr() % (2 << 20) == 0
        assert y.stride() == x.stride()
        assert torch.equal(y, 2 * x)

    def test_its_tensors_are_like_others(self, tmp_path: Path) -> None:
        y = filled(3)
        torch.save(y, tmp_path / "y.pt")
        for same in torch.load(tmp_path / "y.pt"), copy.deepcopy(y), y.clone():
            assert torch.equal(same, torch.full(LARGE, 3.0))
        y.share_memory_()
        assert y.is_shared()
        assert torch.equal(y, torch.full(LARGE, 3.0))
        assert _C.cached_bytes() == 16 << 20
        y = filled(3)
        assert y.resize_(4).tolist() == [3.0] * 4
        with pytest.raises(RuntimeError, match="not resizable"):
            y.resize_(3 << 20, 2)
        y.set_()
        assert _C.cached_bytes() == 16 << 20

    def test_autograd(self) -> None:
        x = torch.full(LARGE, 2.0, requires_grad=True)
        y = gpseg.ops.bias_act(x, act="lrelu", gain=1.0)
        (y * y).sum().backward()
        assert torch.equal(x.grad, torch.full(LARGE, 4.0))

    def test_compiled(self) -> None:
        compiled = torch.compile(
            lambda x: gpseg.ops.bias_act(x, act="lrelu", gain=1.0) + 1,
            fullgraph=True,
            backend="aot_eager",
        )
        assert torch.equal(compiled(torch.ones(LARGE)), torch.full(LARGE, 2.0))

    def test_threads(self) -> None:
        right = []

        def work(value: int) -> None:
            for _ in range(20):
                right.append(bool((filled(value) == value).all()))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right == [True] * 80
        assert _C.cached_bytes() <= _C.cache_limit()

    def test_the_end_of_the_interpreter(self) -> None:
        result = in_python("import builtins; builtins.kept = ops.bias_act(x), ops.bias_act(x)[1:]")
        assert (result.returncode, result.stderr) == (0, "")

    def test_fork(self) -> None:
        result = in_python(
            "import os; torch.set_num_threads(1); y = ops.bias_act(x); z = ops.bias_act(x); del z\n"
            "child = os.fork()\n"
            "z = ops.bias_act(x + 1)\n"
            "assert (y == 1).all() and (z == 2).all()\n"
            "del y, z\n"
            "assert _C.cached_bytes() == 32 << 20\n"
            "if child: assert os.waitpid(child, 0)[1] == 0\n"
        )
        assert (result.returncode, result.stderr) == (0, "")

    def test_the_environment_sets_its_bound(self) -> None:
        code = "y, z = ops.bias_act(x), ops.bias_act(x); del y, z; print(_C.cached_bytes() >> 20)"
        for megabytes, kept in ("0", "0"), ("20", "20"), ("", "0"), ("64", "32"), ("32", "32"):
            result = in_python(code, GPSEG_CPU_CACHE_MB=megabytes)
            assert (result.stdout.strip(), result.stderr) == (kept, "")

    def test_with_none_kept_workspaces_are_malloc_s_too(self) -> None:
        result = in_python(
            "from pathlib import Path\n"
            "def mapped():\n"
            "    lines = Path('/proc/self/status').read_text().splitlines()\n"
            "    return next(int(l.split()[1]) >> 10 for l in lines if l.startswith('VmPeak'))\n"
            "image, w = torch.ones(1, 32, 16, 16), torch.ones(32, 32, 3, 3)\n"
            "ops.conv2d_resample(image[:, :3], w[:, :3], padding=1)\n"  # by torch's
            "before = mapped()\n"
            "y = ops.conv2d_resample(image, w, padding=1)\n"
            "assert abs(y[0, 0, 5, 5] - 9 * 32) < 0.01 and mapped() - before < 128\n",
            GPSEG_CPU_CACHE_MB="0",
        )
        assert (result.returncode, result.stderr) == (0, "")

    def test_where_memory_is_tight_it_takes_no_more_than_it_has_to(self) -> None:
        result = in_python(
            "import resource\n"
            "from pathlib import Path\n"
            "y = ops.bias_act(x[:8])\n"
            "mapped = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
            "room = mapped + (100 << 20)\n"
            "resource.setrlimit(resource.RLIMIT_AS, (room, room))\n"
            "y, z = ops.bias_act(x), ops.bias_act(x)\n"
            "assert (y == 1).all() and (z == 1).all()\n"
        )
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (
            "conv2d_weight_grad",
            (torch.ones(4, 32, 8, 8), torch.ones(1, 32, 8, 8), [32, 32, 3, 3], [1, 1], [1, 1], 1),
        ),
        (
            "conv2d_weight_grad",
            (torch.ones(4, 32, 8, 8), torch.ones(4, 32, 24, 24), [32, 32, 3, 3], [1, 1], [1, 1], 1),
        ),
        ("upfirdn2d", (torch.ones(1, 2, 8, 8), None, [0, 1], [1, 1], [8, 8, 0, 0], False, 1.0)),
        ("upfirdn2d", (torch.ones(1, 2, 8, 8), torch.ones(0), [1, 1], [1, 1], [0] * 4, False, 1.0)),
    ],
)
def test_registered_ops_refuse_what_does_not_fit(op: str, arguments: tuple[object, ...]) -> None:
    """They are what exported graphs call, past the checks of gpseg.ops."""
    with pytest.raises((RuntimeError, ValueError)):
        getattr(torch.ops.gpseg, op)(*arguments)


class TestSquaredNorms:
    """Σ weight² over the taps, of weights in any layout."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", [*LAYOUTS, "outputs last", "flipped"])
    @pytest.mark.parametrize("size", [(5, 7, 3, 3), (40, 33, 3, 3), (3, 64, 1, 1), (1, 1, 5, 2)])
    def test_values(self, size: tuple[int, ...], layout: str, dtype: torch.dtype, isa: str) -> None:
        weight = sample(*size, dtype=dtype)
        if layout == "outputs last":
            held = weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        elif layout == "flipped":
            held = (
                weight.transpose(0, 1).contiguous(memory_format=torch.channels_last).transpose(0, 1)
            )
        else:
            held = LAYOUTS[layout](weight)
        w2, _ = cpp.demodulation(held, torch.ones(1, size[1], dtype=accumulate_dtype(dtype)))
        wanted = weight.double().square().sum([2, 3])
        assert w2.shape == size[:2] and w2.is_contiguous()
        assert float((w2 - wanted).abs().max()) < (1e-12 if dtype == torch.float64 else 1e-5)

    def test_nothing(self) -> None:
        for o, i in (0, 3), (3, 0):
            w2, _ = cpp.demodulation(torch.ones(o, i, 3, 3), torch.ones(1, i))
            assert w2.shape == (o, i)


class TestLayout:
    """Images from one memory order to the other, to the bit."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("size", [(2, 16, 8, 8), (1, 33, 5, 7), (3, 2, 40, 1), (2, 64, 17, 17)])
    def test_there_and_back(self, size: tuple[int, ...], dtype: torch.dtype, isa: str) -> None:
        x = sample(*size, dtype=dtype)
        last = torch.empty_like(x, memory_format=torch.channels_last)
        torch.ops.gpseg_cpp.change_layout.default(x, last)
        assert last.equal(x)
        back = torch.empty_like(x)
        torch.ops.gpseg_cpp.change_layout.default(last, back)
        assert back.equal(x)

    def test_one_order_is_refused(self) -> None:
        x = torch.ones(2, 3, 4, 5)
        with pytest.raises(RuntimeError, match="one order to the other"):
            torch.ops.gpseg_cpp.change_layout.default(x, torch.empty_like(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(2, 5, 9, 7), (3, 64, 4, 4), (1, 3, 100, 33), (1, 40, 512, 512)])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_result_may_take_the_place_of_what_it_is_made_of(
    layout: str, size: tuple[int, ...], dtype: torch.dtype
) -> None:
    c = LAYOUTS[layout](sample(*size, dtype=dtype))
    noise = sample(size[0], 1, *size[2:], seed=1)
    epilogue = Epilogue(
        sample(*size[:2], seed=2), noise, sample(size[1], seed=3), "swish", 0, 1.3, 0.9
    )
    wanted = cpp.demod_act(c, epilogue)
    at = c.data_ptr()
    y = cpp.demod_act(c, epilogue, overwrites=True)
    assert y.data_ptr() == at
    assert y.equal(wanted)


class TestFewOutputs:
    """Both gradients of a 1×1 convolution with few outputs, in one sweep."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", ["nchw", "channels_last"])
    @pytest.mark.parametrize("out_c", [1, 2, 3, 4])
    @pytest.mark.parametrize("size", [(2, 16, 4, 4), (3, 37, 5, 7), (1, 33, 40, 51), (2, 64, 1, 1)])
    def test_values(
        self, size: tuple[int, ...], out_c: int, layout: str, dtype: torch.dtype, isa: str
    ) -> None:
        x = LAYOUTS[layout](sample(*size, dtype=dtype))
        dc = LAYOUTS[layout](sample(size[0], out_c, *size[2:], dtype=dtype, seed=1))
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        weights = sample(size[0], out_c, size[1], dtype=sums, seed=2)
        dx = torch.empty_like(x).fill_(math.nan)
        products = torch.full_like(weights, math.nan)
        torch.ops.gpseg_cpp.few_outputs_gradients.default(dc, x, weights, dx, products)
        wanted = torch.einsum("nohw,noi->nihw", dc.double(), weights.double())
        rounding = {torch.float64: 1e-13, torch.float32: 1e-6}.get(dtype, 1e-2)
        assert relative_rms(dx, wanted) < rounding
        wanted = torch.einsum("nohw,nihw->noi", dc.double(), x.double())
        assert relative_rms(products, wanted) < (1e-13 if dtype == torch.float64 else 1e-6)

    def test_sums_do_not_depend_on_threads(self) -> None:
        x, dc = sample(2, 32, 128, 128), sample(2, 3, 128, 128, seed=1)
        weights = sample(2, 3, 32, seed=2)
        found, before = [], torch.get_num_threads()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            dx, products = torch.empty_like(x), torch.empty_like(weights)
            torch.ops.gpseg_cpp.few_outputs_gradients.default(dc, x, weights, dx, products)
            found.append((dx, products))
        torch.set_num_threads(before)
        assert all(a.equal(b) for pair in found[1:] for a, b in zip(pair, found[0], strict=True))

    @pytest.mark.parametrize(
        "sizes", [((2, 5, 4, 4), (2, 32, 4, 4)), ((2, 3, 4, 5), (2, 32, 4, 4))]
    )
    def test_what_it_does_not_take(self, sizes: tuple[tuple[int, ...], ...]) -> None:
        dc, x = torch.ones(sizes[0]), torch.ones(sizes[1])
        weights = torch.ones(2, sizes[0][1], 32)
        with pytest.raises(RuntimeError, match="1 to 4"):
            torch.ops.gpseg_cpp.few_outputs_gradients.default(
                dc, x, weights, torch.empty_like(x), torch.empty_like(weights)
            )

"""Winograd's convolutions on the CPU against torch's in float64: every form, direction and part of the epilogue."""

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpseg import ops
from gpseg.backends import convolution
from gpseg.backends.contract import DIRECTIONS, Epilogue
from gpseg.backends.cpp import BACKEND as cpp
from gpseg.backends.eager import BACKEND as eager
from gpseg.backends.resampling import Convolution

if cpp.available() is not None:
    pytest.skip(str(cpp.available()), allow_module_level=True)

from gpseg import _C

TOLERANCE = 3e-6
"""Relative RMS error. Direct sums in float32 are at about 0.5e-6 here, these at 1e-6."""

ISA_LEVELS = _C.build_info()["isa_compiled"]
ISA_LEVELS = ISA_LEVELS[: ISA_LEVELS.index(_C.build_info()["isa_supported"]) + 1]

FORMS = {
    "plain": Convolution(1, (1, 1)),
    "valid": Convolution(1, (0, 0)),
    "wide padding": Convolution(1, (3, 2)),
    "transposed": Convolution(1, (1, 1), True),
    "transposed, cropped": Convolution(1, (3, 2), True),
    "down": Convolution(2, (0, 0)),
    "down, padded": Convolution(2, (1, 1)),
    "up": Convolution(2, (0, 0), True),
}


@dataclass(frozen=True)
class Size:
    n: int
    in_c: int
    out_c: int
    h: int
    w: int


SIZES = {
    "whole tiles": Size(2, 32, 32, 16, 16),
    "odd": Size(3, 16, 48, 17, 15),
    "few rows": Size(5, 48, 16, 9, 33),
    "many channels": Size(1, 256, 272, 18, 19),
    "more tiles than fit": Size(1, 16, 16, 120, 130),
}


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that a kernel does not write shows as NaN."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(math.nan))
    pooled = cpp._empty
    monkeypatch.setattr(cpp, "_empty", lambda *a: pooled(*a).fill_(math.nan))


@pytest.fixture
def isa_restored() -> Iterator[None]:
    yield
    _C.set_isa(ISA_LEVELS[-1])


def random(*size: int, seed: int) -> Tensor:
    t = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def output_size(x: Tensor, w: Tensor, conv: Convolution) -> list[int]:
    stride = [conv.stride] * 2
    return convolution.convolution_size(
        x.shape, w.shape, stride, conv.padding, conv.transposed, [0, 0], 1
    )


def problem(size: Size, conv: Convolution) -> tuple[Tensor, Tensor]:
    """x and w, of unit variance after the convolution."""
    x = random(size.n, size.in_c, size.h, size.w, seed=0)
    channels = (size.in_c, size.out_c) if conv.transposed else (size.out_c, size.in_c)
    return x, random(*channels, 3, 3, seed=1) / (9 * size.in_c) ** 0.5


def epilogue(n: int, out_c: int, pixels: list[int], shared_noise: bool) -> Epilogue:
    """One with everything that there is."""
    noise = random(*([] if shared_noise else [n, 1]), *pixels, seed=2)
    return Epilogue(
        1 + random(n, out_c, seed=3) / 4,
        noise,
        random(out_c, seed=4),
        act="lrelu",
        alpha=0.2,
        gain=2**0.5,
        clamp=1.5,
    )


def double(e: Epilogue) -> Epilogue:
    return e._replace(
        **{k: t.double() for k in ("d", "noise", "b") if (t := getattr(e, k)) is not None}
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("isa", ISA_LEVELS)
@pytest.mark.usefixtures("isa_restored")
class TestDirections:
    """All three directions of a convolution with its style and epilogue, at every instruction set."""

    def test_forward(self, form: str, size: str, isa: str) -> None:
        conv = FORMS[form]
        x, w = problem(SIZES[size], conv)
        s = random(*x.shape[:2], seed=5)
        size_out = output_size(x, w, conv)
        e = epilogue(size_out[0], size_out[1], size_out[2:], shared_noise=form != "plain")
        _C.set_isa(isa)
        y, c = cpp.fused_conv(x, w, conv, size_out, s, e, True)
        u = x.double() * s[:, :, None, None].double()
        stride = [conv.stride] * 2
        wanted = convolution.conv2d(u, w.double(), stride, conv.padding, conv.transposed, [0, 0], 1)
        assert c is not None
        assert error(c, wanted) < TOLERANCE
        assert error(y, eager.demod_act(wanted, double(e))) < TOLERANCE

    def test_input_grad(self, form: str, size: str, isa: str) -> None:
        conv = FORMS[form]
        x, w = problem(SIZES[size], conv)
        size_out = output_size(x, w, conv)
        whole = [2 * pixels + 1 for pixels in size_out[2:]] == [*x.shape[2:]]
        if conv.stride == 2 and not conv.transposed and not (whole and conv.padding == (0, 0)):
            assert not cpp.fuses(x, w, conv, "input_grad")
            return
        s, dc = random(*x.shape[:2], seed=5), random(*size_out, seed=6)
        _C.set_isa(isa)
        dx, ds = cpp.fused_conv_input_grad(dc, w, conv, x, s)
        stride = [conv.stride] * 2
        du = convolution.conv2d_input_grad(
            dc.double(), w.double(), x.shape, stride, conv.padding, conv.transposed, 1
        )
        assert error(dx, du * s[:, :, None, None]) < TOLERANCE
        assert error(ds, (du * x).sum([2, 3])) < TOLERANCE

    def test_weight_grad(self, form: str, size: str, isa: str) -> None:
        conv = FORMS[form]
        x, w = problem(SIZES[size], conv)
        s, dc = random(*x.shape[:2], seed=5), random(*output_size(x, w, conv), seed=6)
        _C.set_isa(isa)
        dw = cpp.fused_conv_weight_grad(dc, w.shape, conv, x, s)
        u = x.double() * s[:, :, None, None]
        pair = (dc.double(), u) if conv.transposed else (u, dc.double())
        stride = [conv.stride] * 2
        wanted = convolution.conv2d_weight_grad(*pair, w.shape, stride, conv.padding, 1)
        assert error(dw, wanted) < TOLERANCE


@pytest.mark.parametrize("form", [name for name, conv in FORMS.items() if conv.stride == 1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("isa", ISA_LEVELS)
@pytest.mark.usefixtures("isa_restored")
def test_bfloat16_is_rounded_once(form: str, size: str, isa: str) -> None:
    """Sums, style and epilogue are in float32: what is left is the rounding of what was computed."""
    conv, low = FORMS[form], torch.bfloat16
    x, w = (t.to(low) for t in problem(SIZES[size], conv))
    s = random(*x.shape[:2], seed=5)
    size_out = output_size(x, w, conv)
    dc = random(*size_out, seed=6).to(low)
    e = epilogue(size_out[0], size_out[1], size_out[2:], shared_noise=False)
    _C.set_isa(isa)
    found = [
        *cpp.fused_conv(x, w, conv, size_out, s, e, True),
        *cpp.fused_conv_input_grad(dc, w, conv, x, s),
        cpp.fused_conv_weight_grad(dc, w.shape, conv, x, s),
    ]
    precise = [t.float() for t in (x, w, dc)]
    wanted = [
        *cpp.fused_conv(precise[0], precise[1], conv, size_out, s, e, True),
        *cpp.fused_conv_input_grad(precise[2], precise[1], conv, precise[0], s),
        cpp.fused_conv_weight_grad(precise[2], w.shape, conv, precise[0], s),
    ]
    for got, want in zip(found, wanted, strict=True):
        assert got is not None and want is not None
        assert got.equal(want.to(got.dtype))


def test_bfloat16_keeps_infinity_and_nan() -> None:
    x = random(2, 32, 16, 16, seed=0).to(torch.bfloat16)
    w = torch.zeros(32, 32, 3, 3, dtype=torch.bfloat16)
    for value in (math.inf, -math.inf, math.nan):
        bias = torch.full((32,), value)
        y, _ = cpp.fused_conv(x, w, FORMS["plain"], x.shape, None, Epilogue(b=bias), False)
        assert y.float().equal(torch.full_like(y, value).float()) or (
            math.isnan(value) and bool(y.isnan().all())
        )


def test_input_gradients_are_served_where_training_needs_them() -> None:
    for form in ("plain", "transposed", "up"):
        conv = FORMS[form]
        x, w = problem(SIZES["whole tiles"], conv)
        assert [cpp.fuses(x, w, conv, direction) for direction in DIRECTIONS] == [True] * 3
    conv = FORMS["down"]
    x, w = problem(
        Size(2, 32, 32, 33, 33), conv
    )  # as a filter before it leaves an image of 32 x 32
    assert [cpp.fuses(x, w, conv, direction) for direction in DIRECTIONS] == [True] * 3
    _, w = problem(Size(2, 32, 32, 34, 33), conv)
    assert not cpp.fuses(random(2, 32, 34, 33, seed=0), w, conv, "input_grad")


@pytest.mark.parametrize(
    "changed",
    [
        "float16",
        "float64",
        "nchw with few channels",
        "channels",
        "5x5",
        "3x1",
        "stride 3",
        "few pixels",
        "cropped up",
    ],
)
def test_what_is_not_declared_is_left_to_torch(changed: str) -> None:
    conv = FORMS["up" if changed == "cropped up" else "plain"]
    x, w = problem(SIZES["whole tiles"], conv)
    assert cpp.fuses(x, w, conv, "forward")
    match changed:
        case "float16" | "float64":
            dtype = getattr(torch, changed)
            x, w = x.to(dtype), w.to(dtype)
        case "nchw with few channels":
            x, w = x[:, :16].contiguous(), w[:, :16]
        case "channels":
            x, w = x[:, :24].contiguous(memory_format=torch.channels_last), w[:, :24]
        case "5x5":
            w = random(32, 32, 5, 5, seed=1)
        case "3x1":
            w = w[..., :1]
        case "stride 3":
            conv = replace(conv, stride=3)
        case "few pixels":
            x = x[:1, :, :12, :12].contiguous(memory_format=torch.channels_last)
        case "cropped up":
            conv = replace(conv, padding=(1, 1))
    assert not cpp.fuses(x, w, conv, "forward")
    stride = [conv.stride] * 2
    arguments = stride, conv.padding, conv.transposed, [0, 0], 1
    assert cpp.conv2d(x, w, *arguments).equal(convolution.conv2d(x, w, *arguments))


def test_groups_are_left_to_torch() -> None:
    x, w = random(2, 32, 16, 16, seed=0), random(32, 16, 3, 3, seed=1)
    arguments = [1, 1], [1, 1], False, [0, 0], 2
    assert cpp.conv2d(x, w, *arguments).equal(convolution.conv2d(x, w, *arguments))
    assert (
        error(cpp.conv2d(x, w, *arguments), convolution.conv2d(x.double(), w.double(), *arguments))
        < 1e-6
    )


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_and_written_in_any_layout(form: str) -> None:
    conv = FORMS[form]
    x, w = problem(SIZES["odd"], conv)
    size = output_size(x, w, conv)
    wanted, _ = cpp.fused_conv(x, w, conv, size, None, Epilogue(), False)
    room = torch.full((*w.shape[:3], 7), math.nan)
    room[..., 1::2] = w
    for held in (
        w.contiguous(),
        room[..., 1::2],
        w.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    ):
        y, _ = cpp.fused_conv(x, held, conv, size, None, Epilogue(), False)
        assert y.equal(wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nchw_is_served_by_way_of_channels_last(form: str, dtype: torch.dtype) -> None:
    conv = FORMS[form]
    if dtype == torch.bfloat16 and conv.stride == 2:
        return
    x, w = (t.to(dtype) for t in problem(SIZES["whole tiles"], conv))
    s, size = random(*x.shape[:2], seed=5), output_size(x, w, conv)
    dc, e = random(*size, seed=6).to(dtype), Epilogue(b=random(size[1], seed=4), act="lrelu")

    gives_input_grad = cpp.fuses(x, w, conv, "input_grad")

    def everything(x: Tensor, dc: Tensor) -> list[Tensor]:
        y, c = cpp.fused_conv(x, w, conv, size, s, e, True)
        assert c is not None
        found = [y, c, cpp.fused_conv_weight_grad(dc, w.shape, conv, x, s)]
        if gives_input_grad:
            found += cpp.fused_conv_input_grad(dc, w, conv, x, s)
        return found

    for got, wanted in zip(
        everything(x.contiguous(), dc.contiguous()), everything(x, dc), strict=True
    ):
        assert got.equal(wanted)
        assert got.ndim != 4 or got.shape == w.shape or got.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_few_outputs_of_one_tap(layout: torch.memory_format, dtype: torch.dtype) -> None:
    """ToRGB: x is read once, by a product with a weight for each sample."""
    conv = Convolution()
    x = random(3, 24, 7, 9, seed=0).to(dtype).contiguous(memory_format=layout)
    w, s = (
        random(4, 24, 1, 1, seed=1).to(dtype),
        random(3, 24, seed=2).to(torch.promote_types(dtype, torch.float32)),
    )
    dc = random(3, 4, 7, 9, seed=3).to(dtype)
    e = Epilogue(b=random(4, seed=4), clamp=2.0)
    assert [cpp.fuses(x, w, conv, direction) for direction in DIRECTIONS] == [True] * 3
    assert not cpp.fuses(x[:, :15], w[:, :15], conv, "forward")
    y, c = cpp.fused_conv(x, w, conv, dc.shape, s, e, True)
    dx, ds = cpp.fused_conv_input_grad(dc, w, conv, x, s)
    dw = cpp.fused_conv_weight_grad(dc, w.shape, conv, x, s)
    u = x.double() * s[:, :, None, None].double()
    want_c = convolution.conv2d(u, w.double(), [1, 1], [0, 0], False, [0, 0], 1)
    du = convolution.conv2d_input_grad(dc.double(), w.double(), x.shape, [1, 1], [0, 0], False, 1)
    assert c is not None
    wanted = [
        (c, want_c),
        (y, eager.demod_act(want_c, double(e))),
        (dx, du * s[:, :, None, None]),
        (ds, (du * x).sum([2, 3])),
        (dw, convolution.conv2d_weight_grad(u, dc.double(), w.shape, [1, 1], [0, 0], 1)),
    ]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    for got, want in wanted:
        assert got.shape == want.shape and error(got, want) < tolerance
    for images in (y, c, dx):
        assert images.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("form", ["plain", "down", "up"])
def test_results_do_not_depend_on_the_number_of_threads(form: str) -> None:
    conv = FORMS[form]
    for size in SIZES.values():
        x, w = problem(size, conv)
        s, dc = random(*x.shape[:2], seed=5), random(*output_size(x, w, conv), seed=6)
        results = []
        before = torch.get_num_threads()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, _ = cpp.fused_conv(
                x, w, conv, dc.shape, s, Epilogue(d=random(*dc.shape[:2], seed=3)), False
            )
            found = [y, cpp.fused_conv_weight_grad(dc, w.shape, conv, x, s)]
            if cpp.fuses(x, w, conv, "input_grad"):
                found += cpp.fused_conv_input_grad(dc, w, conv, x, s)
            results.append(found)
        torch.set_num_threads(before)
        for others in results[1:]:
            for one, other in zip(results[0], others, strict=True):
                assert one.equal(other)


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMS)),
    n=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    pixels=st.tuples(st.integers(3, 30), st.integers(3, 30)),
)
def test_any_size(form: str, n: int, channels: tuple[int, int], pixels: tuple[int, int]) -> None:
    conv = FORMS[form]
    x, w = problem(Size(n, 16 * channels[0], 16 * channels[1], *pixels), conv)
    size = output_size(x, w, conv)
    if min(size[2:]) < 1:
        return
    y, _ = cpp.fused_conv(x, w, conv, size, None, Epilogue(), False)
    stride = [conv.stride] * 2
    arguments = stride, conv.padding, conv.transposed, [0, 0], 1
    wanted = convolution.conv2d(x.double(), w.double(), *arguments)
    assert y.shape == wanted.shape
    assert float((y - wanted).abs().max()) < 2e-5 * float(1 + wanted.abs().max())


def test_nothing_comes_of_nothing() -> None:
    conv = FORMS["plain"]
    w = random(32, 32, 3, 3, seed=1)
    x = random(0, 32, 16, 16, seed=0)
    y, c = cpp.fused_conv(x, w, conv, x.shape, None, Epilogue(), True)
    assert c is not None and y.shape == c.shape == x.shape
    dx, ds = cpp.fused_conv_input_grad(x, w, conv, x, random(0, 32, seed=2))
    assert dx.shape == x.shape and ds.shape == (0, 32)
    assert not cpp.fused_conv_weight_grad(x, w.shape, conv, x, random(0, 32, seed=2)).any()


def test_infinity_and_nan_stay_near_where_they_were() -> None:
    """A tile mixes its pixels, so that what is not finite spreads over it, but no further."""
    x, w = random(1, 32, 24, 24, seed=0), random(32, 32, 3, 3, seed=1)
    x[0, 3, 9, 9] = math.nan
    y = cpp.conv2d(x, w, [1, 1], [1, 1], False, [0, 0], 1)
    assert y[..., 8:11, 8:11].isnan().all()
    assert y[..., :4, :].isfinite().all() and y[..., 16:, :].isfinite().all()


def test_forced_backends_and_gradients_of_any_order_agree() -> None:
    """conv2d_resample, whose convolutions and their gradients are Winograd's on cpp and torch's on eager."""
    f = ops.setup_filter([1, 3, 3, 1])
    for up, down in itertools.product((1, 2), (1, 2)):
        found = {}
        for backend, dtype in (("cpp", torch.float32), ("eager", torch.float64)):
            x = random(2, 32, 16, 16, seed=0).to(dtype).requires_grad_()
            w = random(48, 32, 3, 3, seed=1).to(dtype).div(17).requires_grad_()
            with ops.use_backend(backend):
                y = ops.conv2d_resample(x, w, f if up * down > 1 else None, up, down, padding=1)
                first = torch.autograd.grad(y.square().sum(), [x, w], create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, w])
            found[backend] = [y, *first, *second]
        for got, wanted in zip(found["cpp"], found["eager"], strict=True):
            assert error(got.detach(), wanted.detach()) < TOLERANCE


def test_threads_share_the_memory_that_is_kept() -> None:
    script = (
        "import threading, torch; from gpseg import ops\n"
        "x = torch.randn(4, 64, 64, 64).contiguous(memory_format=torch.channels_last)\n"
        "w = torch.randn(64, 64, 3, 3)\n"
        "def run():\n"
        "    for _ in range(5): results.append(ops.conv2d_resample(x, w, padding=1))\n"
        "results = []\n"
        "threads = [threading.Thread(target=run) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert len(results) == 20 and all(r.equal(results[0]) for r in results)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr

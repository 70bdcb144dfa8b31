"""The CUDA kernels against the reference in float64: on a GPU where there is one, and on the CPU under the emulator."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpseg import backends
from gpseg.backends.contract import Backend, Epilogue
from gpseg.backends.convolution import conv2d, conv2d_input_grad, convolution_size
from gpseg.backends.eager import BACKEND as reference
from gpseg.backends.layout import memory_format_of
from gpseg.backends.resampling import Convolution, filter_taps, filtered_size

ON = [name for name in ("cuda", "simt") if backends.backends()[name] is None]
if not ON:
    pytest.skip(f"simt {backends.backends()['simt']}", allow_module_level=True)

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
}
"""Relative RMS error; half types are rounded once, in the store."""

DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])


@dataclass
class Kernels:
    """A backend that runs the CUDA kernels, and where its tensors live."""

    name: str
    backend: Backend
    device: str

    def draw(self, *size: int, dtype: torch.dtype = torch.float64, last: bool = False) -> Tensor:
        """Normal numbers, the same for every backend and type but rounded."""
        seed = sum(s * 31**i for i, s in enumerate(size))
        made = torch.randn(*size, generator=torch.Generator().manual_seed(seed % 2**31)).to(dtype)
        made = made.to(self.device)
        return made.contiguous(memory_format=torch.channels_last) if last else made


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory is NaN, so that an output a kernel did not write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=ON)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    yield Kernels(
        request.param,
        backends.get(request.param),
        "cuda" if request.param == "cuda" else "cpu",
    )


def assert_close(got: Tensor | None, want: Tensor | None, dtype: torch.dtype) -> None:
    assert (got is None) == (want is None)
    if got is None or want is None:
        return
    assert got.shape == want.shape
    error = (got.double() - want.double()).norm()
    assert float(error) <= TOLERANCE[dtype] * float(want.double().norm()), float(
        error / want.double().norm()
    )


def wide(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


SIZES = [
    (2, 8, 16, 16),
    (2, 7, 5, 3),
    (3, 64, 1, 1),
    (3, 16, 4, 4),
    (1, 3, 33, 65),
    (2, 40, 9, 8),
    (1, 3, 1, 7),
    (1, 264, 3, 2),
]
SIZE = pytest.mark.parametrize("size", SIZES, ids=str)
ACTS = pytest.mark.parametrize("act", ["linear", "lrelu", "relu", "swish", "softplus"])


@DTYPES
@LAYOUTS
@SIZE
@ACTS
class TestBiasAct:
    @pytest.mark.parametrize("clamp", [-1.0, 0.7])
    @pytest.mark.parametrize("biased", [True, False])
    def test_all_directions(
        self,
        kernels: Kernels,
        size: tuple[int, ...],
        dtype: torch.dtype,
        channels_last: bool,
        act: str,
        clamp: float,
        biased: bool,
    ) -> None:
        x, dy, ddx = (
            kernels.draw(*size, dtype=dtype, last=channels_last) * k for k in (1.0, -0.5, 2.0)
        )
        b = kernels.draw(size[1], dtype=dtype) if biased else None
        ddb = kernels.draw(size[1], dtype=dtype) if biased else None
        arguments = (1, act, 0.3, 1.25, clamp)
        y = kernels.backend.bias_act(x, b, *arguments)
        assert_close(y, reference.bias_act(x.double(), wide(b), *arguments), dtype)
        assert memory_format_of(y) == memory_format_of(x)
        got = kernels.backend.bias_act_backward(dy, x, b, *arguments)
        want = reference.bias_act_backward(dy.double(), x.double(), wide(b), *arguments)
        for g, w in zip(got, want, strict=True):
            assert_close(g, w, dtype)
        got3 = kernels.backend.bias_act_double_backward(ddx, ddb, dy, x, b, *arguments)
        want3 = reference.bias_act_double_backward(
            wide(ddx), wide(ddb), dy.double(), x.double(), wide(b), *arguments
        )
        for g, w in zip(got3, want3, strict=True):
            assert_close(g, w, dtype)


class TestDemodAct:
    @DTYPES
    @LAYOUTS
    @SIZE
    @pytest.mark.parametrize("noise", ["none", "shared", "per sample"])
    @pytest.mark.parametrize("act", ["lrelu", "swish"])
    def test_forward_and_backward(
        self,
        kernels: Kernels,
        size: tuple[int, ...],
        dtype: torch.dtype,
        channels_last: bool,
        noise: str,
        act: str,
    ) -> None:
        n, o, h, w = size
        c, dy = (kernels.draw(*size, dtype=dtype, last=channels_last) * k for k in (1.0, -0.5))
        noises = {
            "none": None,
            "shared": kernels.draw(h, w, dtype=dtype),
            "per sample": kernels.draw(n, 1, h, w, dtype=dtype),
        }
        sides = kernels.draw(n, o, dtype=dtype), noises[noise], kernels.draw(o, dtype=dtype)
        activation = (act, 0.3, 1.25, 1.5)
        epilogue = Epilogue(*sides, *activation)
        exact = Epilogue(*map(wide, sides), *activation)
        y = kernels.backend.demod_act(c, epilogue)
        assert_close(y, reference.demod_act(c.double(), exact), dtype)
        got = kernels.backend.demod_act_backward(dy, c, epilogue)
        want = reference.demod_act_backward(dy.double(), c.double(), exact)
        for g, wanted in zip(got, want, strict=True):
            assert_close(g, wanted, dtype)

    @DTYPES
    @LAYOUTS
    @SIZE
    def test_scale_channels(
        self, kernels: Kernels, size: tuple[int, ...], dtype: torch.dtype, channels_last: bool
    ) -> None:
        x, dy = (kernels.draw(*size, dtype=dtype, last=channels_last) * k for k in (1.0, -0.5))
        s = kernels.draw(*size[:2], dtype=dtype)
        y = kernels.backend.scale_channels(x, s)
        assert_close(y, reference.scale_channels(x.double(), s.double()), dtype)
        got = kernels.backend.scale_channels_backward(x, s, dy)
        want = reference.scale_channels_backward(x.double(), s.double(), dy.double())
        for g, w in zip(got, want, strict=True):
            assert_close(g, w, dtype)

    @LAYOUTS
    @pytest.mark.parametrize("size", [(0, 8, 4, 4), (2, 0, 4, 4), (2, 8, 0, 4)], ids=str)
    def test_nothing(self, kernels: Kernels, size: tuple[int, ...], channels_last: bool) -> None:
        c = kernels.draw(*size, last=channels_last)
        n, o, h, w = size
        epilogue = Epilogue(kernels.draw(n, o), kernels.draw(h, w), kernels.draw(o), "lrelu", 0.2)
        assert kernels.backend.demod_act(c, epilogue).shape == size
        gradients = kernels.backend.demod_act_backward(c, c, epilogue)
        for g, t in zip(gradients, (c, *epilogue[:3]), strict=True):
            assert g is not None and t is not None
            assert g.shape == t.shape
            assert not g.any()


TAPS = {
    "4x4": torch.tensor([1.0, 3.0, -3.0, 0.5]).outer(torch.tensor([0.5, 2.0, 1.0, -1.0])),
    "4": torch.tensor([1.0, 3.0, -3.0, 0.5]),
    "12": torch.linspace(-1, 2, 12),
    "3x5": torch.arange(15.0).reshape(3, 5) - 6,
    "none": None,
}
IMAGES = [(2, 16, 37, 70), (1, 5, 4, 4), (3, 8, 16, 24), (9, 3, 8, 8), (1, 24, 65, 34)]


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("size", IMAGES, ids=str)
@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (1, 2)], ids=["filter", "up", "down"])
@pytest.mark.parametrize("flip", [False, True], ids=["convolution", "correlation"])
class TestUpfirdn2d:
    def test_instances(
        self,
        kernels: Kernels,
        size: tuple[int, ...],
        dtype: torch.dtype,
        channels_last: bool,
        taps: str,
        factors: tuple[int, int],
        flip: bool,
    ) -> None:
        f = TAPS[taps]
        f = None if f is None else f.to(kernels.device)
        up, down = factors
        fh, fw = filter_taps(f)
        padding = (fw - 1, fw // 2, fh // 2, fh - 1)
        x = kernels.draw(*size, dtype=dtype, last=channels_last)
        arguments = ((up, up), (down, down), padding, flip, 1.5)
        y = kernels.backend.upfirdn2d(x, f, *arguments)
        assert_close(y, reference.upfirdn2d(x.double(), wide(f), *arguments), dtype)
        assert memory_format_of(y) == memory_format_of(x)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("factors", [(1, 1), (2, 1)], ids=["filter", "up"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_upfirdn2d_demod_act(
    kernels: Kernels,
    dtype: torch.dtype,
    channels_last: bool,
    taps: str,
    factors: tuple[int, int],
    keep: bool,
    act: str,
) -> None:
    f = TAPS[taps]
    f = None if f is None else f.to(kernels.device)
    up, down = factors
    for n, o, h, w in ((2, 16, 17, 18), (3, 5, 8, 8)):
        x = kernels.draw(n, o, h, w, dtype=dtype, last=channels_last)
        geometry = ((up, up), (down, down), (2, 3, 3, 2))
        size = filtered_size(x.shape, filter_taps(f), *geometry)
        for noise in None, kernels.draw(*size[2:]), kernels.draw(n, 1, *size[2:]):
            sides = kernels.draw(n, o), noise, kernels.draw(o)
            epilogue = Epilogue(*sides, act, 0.3, 1.25, 20.0)
            got = kernels.backend.upfirdn2d_demod_act(x, f, *geometry, False, 4.0, epilogue, keep)
            want = reference.upfirdn2d_demod_act(
                x.double(), wide(f), *geometry, False, 4.0, epilogue, keep
            )
            for g, wanted in zip(got, want, strict=True):
                assert_close(g, wanted, dtype)


TALL = [
    ("4x4", 2, (1, 1, 130, 64), False),
    ("4x4", 2, (1, 1, 130, 32), False),
    ("4x4", 2, (1, 1, 514, 2), False),
    ("4x4", 1, (1, 1, 513, 8), False),
    ("12", 2, (1, 1, 514, 16), False),
    ("4x4", 2, (1, 24, 130, 4), True),
    ("4x4", 1, (1, 24, 129, 2), True),
]


@DTYPES
@pytest.mark.parametrize(("taps", "down", "size", "channels_last"), TALL)
def test_upfirdn2d_of_tall_images(
    kernels: Kernels,
    dtype: torch.dtype,
    taps: str,
    down: int,
    size: tuple[int, ...],
    channels_last: bool,
) -> None:
    """Narrow tiles, tall enough that all the threads a block may have would overfill its shared memory."""
    f = TAPS[taps]
    assert f is not None
    f = f.to(kernels.device)
    margin = f.shape[-1] - down  # so that sizes are divided by down
    padding = ((margin + 1) // 2, margin // 2) * 2
    x = kernels.draw(*size, dtype=dtype, last=channels_last)
    arguments = ((1, 1), (down, down), padding, False, 1.0)
    y = kernels.backend.upfirdn2d(x, f, *arguments)
    assert_close(y, reference.upfirdn2d(x.double(), f.double(), *arguments), dtype)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_upfirdn2d_of_any_geometry(data: st.DataObject) -> None:
    name = ON[-1]
    kernels = Kernels(name, backends.get(name), "cuda" if name == "cuda" else "cpu")
    draw = data.draw
    size = [draw(st.integers(1, most)) for most in (2, 9, 12, 12)]
    up, down = ((draw(st.integers(1, 4)), draw(st.integers(1, 4))) for _ in range(2))
    shape = draw(st.sampled_from([(), (1,), (4,), (7,), (1, 1), (4, 4), (2, 5), (6, 1)]))
    f = kernels.draw(*shape, dtype=torch.float32) if shape else None
    padding = tuple(draw(st.integers(-2, 5)) for _ in range(4))
    out = filtered_size(size, filter_taps(f), up, down, padding)
    if min(out[2:]) < 1:
        return
    dtype = draw(st.sampled_from([*TOLERANCE]))
    x = kernels.draw(*size, dtype=dtype, last=draw(st.booleans()))
    arguments = (up, down, padding, draw(st.booleans()), 0.75)
    y = kernels.backend.upfirdn2d(x, f, *arguments)
    want = reference.upfirdn2d(x.double(), wide(f), *arguments)
    assert_close(y, want, dtype)


CONVOLUTIONS = [
    Convolution(1, (1, 1), False),
    Convolution(1, (0, 2), False),
    Convolution(2, (1, 0), False),
    Convolution(2, (0, 0), True),
    Convolution(2, (1, 1), True),
    Convolution(1, (1, 1), True),
]
CHANNELS = [(8, 8), (72, 40), (16, 136), (32, 64), (64, 128)]


def torch_weight(
    kernels: Kernels, conv: Convolution, i: int, o: int, k: int, dtype: torch.dtype
) -> Tensor:
    """A kernel as torch's (transposed) convolution wants it, of unit gain."""
    size = (i, o, k, k) if conv.transposed else (o, i, k, k)
    return kernels.draw(*size, dtype=torch.float64).div((i * k * k) ** 0.5).to(dtype)


class TestDemodulation:
    """W2, d, and what d's gradient adds to others, whatever lies where in memory."""

    @DTYPES
    @pytest.mark.parametrize("memory", ["nchw", "channels_last", "inputs first"])
    @pytest.mark.parametrize(
        "size",
        [(5, 7, 3, 3), (40, 33, 3, 3), (3, 300, 1, 1), (2, 264, 3, 2), (1, 1, 1, 1)],
        ids=str,
    )
    @pytest.mark.parametrize("n", [0, 1, 11])
    def test_both_directions(
        self, kernels: Kernels, n: int, size: tuple[int, ...], memory: str, dtype: torch.dtype
    ) -> None:
        weight, dweight = (self._weight(kernels, size, memory, dtype) * k for k in (1.0, 0.5))
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        s, ds = (kernels.draw(n, size[1], dtype=sums) * k for k in (1.0, -2.0))
        w2, d = kernels.backend.demodulation(weight, s)
        for got, want in zip((w2, d), reference.demodulation(wide(weight), wide(s)), strict=True):
            assert got.is_contiguous() and got.dtype == sums
            assert_close(got, want, sums)
        dd = kernels.draw(n, size[0], dtype=sums) * 3
        want_ds, want_dw = wide(ds).clone(), wide(dweight).clone()
        given = (wide(weight), wide(s), wide(w2), wide(d), wide(dd))
        reference.demodulation_backward(*given, want_ds, want_dw)
        for asks_ds, asks_dw in (True, True), (True, False), (False, True):
            own_ds, own_dw = ds.clone(), dweight.clone()
            kernels.backend.demodulation_backward(
                weight, s, w2, d, dd, own_ds if asks_ds else None, own_dw if asks_dw else None
            )
            assert_close(own_ds, want_ds if asks_ds else wide(ds), sums)
            assert_close(own_dw, want_dw if asks_dw else wide(dweight), dtype)

    @staticmethod
    def _weight(kernels: Kernels, size: tuple[int, ...], memory: str, dtype: torch.dtype) -> Tensor:
        if memory == "inputs first":
            return kernels.draw(size[1], size[0], *size[2:], dtype=dtype).transpose(0, 1)
        return kernels.draw(*size, dtype=dtype, last=memory == "channels_last")

    def test_styles_in_any_layout(self, kernels: Kernels) -> None:
        weight, s = kernels.draw(4, 6, 3, 3), kernels.draw(6, 2).t()
        w2, d = kernels.backend.demodulation(weight, s)
        assert_close(d, reference.demodulation(weight, s)[1], torch.float64)
        ds, dd = kernels.draw(2, 6), kernels.draw(2, 4)
        want = ds.clone()
        reference.demodulation_backward(weight, s, w2, d, dd, want, None)
        kernels.backend.demodulation_backward(weight, s, w2, d, dd, ds, None)
        assert_close(ds, want, torch.float64)


@HALVES
@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("k", [1, 3])
class TestFusedConv:
    def test_forward(
        self,
        kernels: Kernels,
        dtype: torch.dtype,
        conv: Convolution,
        channels: tuple[int, int],
        k: int,
    ) -> None:
        if k == 1 and conv.transposed and max(conv.padding) > 0:
            return  # would crop the image away
        (i, o), stride = channels, [conv.stride] * 2
        x = kernels.draw(2, i, 9, 11, dtype=dtype, last=True)
        w = torch_weight(kernels, conv, i, o, k, dtype)
        s = kernels.draw(2, i, dtype=torch.float32)
        assert kernels.backend.fuses(x, w, conv, "forward")
        size = convolution_size(x.shape, w.shape, stride, conv.padding, conv.transposed, [0, 0], 1)
        u = (x.float() * s[:, :, None, None]).to(dtype)
        c = conv2d(u.double(), w.double(), stride, conv.padding, conv.transposed, [0, 0], 1)
        h, width = size[2:]
        sides = (
            kernels.draw(2, o).float(),
            kernels.draw(2, 1, h, width).float(),
            kernels.draw(o).float(),
        )
        for epilogue, keep in (
            (Epilogue(*sides, "lrelu", 0.2, 1.4, 2.0), True),
            (Epilogue(None, sides[1][0, 0], None, "swish", 0.0, 1.4, -1.0), False),
            (Epilogue(), False),
        ):
            y, kept = kernels.backend.fused_conv(x, w, conv, size, s, epilogue, keep)
            exact = Epilogue(*map(wide, epilogue[:3]), *epilogue[3:])
            assert_close(y, reference.demod_act(c, exact), dtype)
            assert_close(kept, c if keep else None, dtype)
            assert memory_format_of(y) == torch.channels_last

    def test_input_gradient(
        self,
        kernels: Kernels,
        dtype: torch.dtype,
        conv: Convolution,
        channels: tuple[int, int],
        k: int,
    ) -> None:
        if k == 1 and conv.transposed and max(conv.padding) > 0:
            return
        (i, o), stride = channels, [conv.stride] * 2
        for size in (2, i, 9, 11), (1, i, 8, 6):
            x = kernels.draw(*size, dtype=dtype, last=True)
            w = torch_weight(kernels, conv, i, o, k, dtype)
            s = kernels.draw(*size[:2], dtype=torch.float32)
            out = convolution_size(
                x.shape, w.shape, stride, conv.padding, conv.transposed, [0, 0], 1
            )
            dc = kernels.draw(*out, dtype=dtype, last=True)
            du = conv2d_input_grad(
                dc.double(), w.double(), x.shape, stride, conv.padding, conv.transposed, 1
            )
            got = kernels.backend.fused_conv_input_grad(dc, w, conv, x, s)
            want = reference.scale_channels_backward(x.double(), s.double(), du)
            for g, wanted in zip(got, want, strict=True):
                assert_close(g, wanted, dtype)


@HALVES
@pytest.mark.parametrize("k", [1, 3])
def test_fused_conv_of_a_weight_that_starts_anywhere(
    kernels: Kernels, dtype: torch.dtype, k: int
) -> None:
    """As a view of a flat buffer of all parameters may."""
    x = kernels.draw(1, 16, 4, 6, dtype=dtype, last=True)
    s = kernels.draw(1, 16).float()
    aligned = kernels.draw(16, 16, k, k, dtype=dtype, last=True)
    flat = kernels.draw(aligned.numel() + 1, dtype=dtype)
    w = flat.as_strided(aligned.shape, aligned.stride(), 1).copy_(aligned)
    conv = Convolution(1, (k // 2, k // 2))
    for direction in (
        lambda w: kernels.backend.fused_conv(x, w, conv, x.shape, s, Epilogue(), False)[0],
        lambda w: kernels.backend.fused_conv_input_grad(x, w, conv, x, s)[0],
    ):
        assert torch.equal(direction(w), direction(aligned))


def test_fused_conv_of_as_many_channels_as_fit(kernels: Kernels) -> None:
    """A block keeps the styles of a sample in shared memory."""
    x = kernels.draw(1, 8192, 2, 2, dtype=torch.float16, last=True)
    w = kernels.draw(8, 8192, 1, 1).div(8192**0.5).half()
    s = kernels.draw(1, 8192).float()
    conv, size = Convolution(), (1, 8, 2, 2)
    assert kernels.backend.fuses(x, w, conv, "forward")
    y, _ = kernels.backend.fused_conv(x, w, conv, size, s, Epilogue(), False)
    u = (x.float() * s[:, :, None, None]).half()
    want = conv2d(u.double(), w.double(), [1, 1], [0, 0], False, [0, 0], 1)
    assert_close(y, want, torch.float16)
    more, w = (torch.cat([t, t[:, :8]], 1) for t in (x, w))
    assert not kernels.backend.fuses(more, w, conv, "forward")
    assert kernels.backend.fuses(more, w, conv, "input_grad")  # which reads no styles
    with pytest.raises(RuntimeError, match="styles of up to 8192 channels"):
        s = torch.ones(1, 8200, device=x.device)
        kernels.backend.fused_conv(more, w, conv, size, s, Epilogue(), False)


def test_fused_conv_of_no_pixels(kernels: Kernels) -> None:
    x = kernels.draw(2, 8, 0, 4, dtype=torch.float16, last=True)
    w = kernels.draw(8, 8, 3, 3, dtype=torch.float16)
    conv = Convolution(1, (1, 1))
    dx, ds = kernels.backend.fused_conv_input_grad(x, w, conv, x, torch.ones(2, 8).to(x.device))
    assert dx.shape == x.shape
    assert not ds.any()


class TestWhatFuses:
    def test_refusals(self, kernels: Kernels) -> None:
        conv = Convolution(1, (1, 1))

        def fuses(
            x: Tensor,
            i: int = 16,
            o: int = 8,
            k: int = 3,
            stride: int = 1,
            direction: str = "forward",
        ) -> bool:
            w = kernels.draw(o, i, k, k, dtype=x.dtype)
            return kernels.backend.fuses(x, w, Convolution(stride, conv.padding), direction)

        x = kernels.draw(2, 16, 8, 8, dtype=torch.float16, last=True)
        assert fuses(x)
        assert fuses(x, stride=2)
        assert fuses(x, direction="input_grad")
        assert not fuses(x, direction="weight_grad")
        assert not fuses(x.contiguous())  # NCHW: torch's convolution serves it
        assert not fuses(x.float())
        assert not fuses(x, i=12)
        assert not fuses(x, o=3)
        assert not fuses(x, k=5)
        assert not fuses(x, stride=3)
        spare = kernels.draw(x.numel() + 1, dtype=x.dtype)
        assert not fuses(torch.as_strided(spare, x.shape, x.stride(), 1))  # starts at 2 bytes

    def test_others_never_fuse(self) -> None:
        x = torch.zeros(2, 16, 8, 8, dtype=torch.float16).contiguous(
            memory_format=torch.channels_last
        )
        for name in "cpp", "eager":
            assert not backends.get(name).fuses(
                x, torch.zeros(8, 16, 3, 3), Convolution(), "forward"
            )


@pytest.mark.skipif("simt" not in ON, reason="the emulator is not built")
class TestEmulated:
    """What only the emulator can show: nothing depends on the order of threads and blocks; every block's addresses."""

    @pytest.mark.parametrize("seed", ["1", "2"])
    @LAYOUTS
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["f16", "f32"])
    def test_no_order_of_threads_changes_a_bit(
        self, seed: str, channels_last: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kernels = Kernels("simt", backends.get("simt"), "cpu")
        results = []
        for value in ("0", seed):
            monkeypatch.setenv("SIMT_SEED", value)
            results.append([*_everything(kernels, dtype, channels_last)])
        for first, second in zip(*results, strict=True):
            assert torch.equal(first, second)

    def test_a_launch_that_fails_says_what_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Kernel, shape and configuration, for each launcher."""
        kernels = Kernels("simt", backends.get("simt"), "cpu")
        results = _everything(kernels, torch.float16, last=True)
        monkeypatch.setenv("SIMT_REFUSE", "launch")
        with pytest.raises(
            RuntimeError,
            match=r"gpseg: kernel demod_act_kernel on float16 \[1, 24, 720\] channels_last did not launch with"
            r" \d+ blocks of \d+ threads and \d+ bytes of shared memory: invalid configuration argument",
        ):
            next(results)
        x = kernels.draw(1, 8, 4, 4, dtype=torch.float16, last=True)
        w, conv = kernels.draw(8, 8, 1, 1, dtype=torch.float16), Convolution()
        with pytest.raises(RuntimeError, match=r"kernel fused_conv_kernel on float16 \[1, 8, 16\]"):
            kernels.backend.fused_conv_input_grad(x, w, conv, x, torch.ones(1, 8))
        with pytest.raises(RuntimeError, match=r"kernel upfirdn2d\w* on float16 \[1, 8, 16\]"):
            kernels.backend.upfirdn2d(x, None, (1, 1), (1, 1), (0, 0, 0, 0), False, 1.0)
        with pytest.raises(
            RuntimeError, match=r"kernel bias_act_double_backward_kernel on float16"
        ):
            kernels.backend.bias_act_double_backward(x, None, x, x, None, 1, "lrelu", 0.2, 1.0, -1)

    def test_shared_memory_that_is_refused_is_no_failed_launch(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kernels = Kernels("simt", backends.get("simt"), "cpu")
        monkeypatch.setenv("SIMT_REFUSE", "shared")
        x = kernels.draw(1, 8, 4, 4, dtype=torch.float16, last=True)
        w, conv = kernels.draw(8, 8, 1, 1, dtype=torch.float16), Convolution()
        told = r"gpseg: kernel {} may not have \d+ bytes of shared memory: invalid argument"
        with pytest.raises(RuntimeError, match=told.format("fused_conv_kernel")):
            kernels.backend.fused_conv_input_grad(x, w, conv, x, torch.ones(1, 8))
        with pytest.raises(RuntimeError, match=told.format("upfirdn2d_kernel")):
            kernels.backend.upfirdn2d(x, TAPS["4x4"], (1, 1), (1, 1), (0,) * 4, False, 1.0)
        kernels.backend.bias_act(x, None, 1, "lrelu", 0.2, 1.0, -1.0)  # isn't blamed for it

    @LAYOUTS
    def test_more_than_two_to_the_31_elements(
        self, channels_last: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last blocks alone: the rest of the memory is never touched."""
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        backend = backends.get("simt")
        n, c, h, w = 33, 64, 1024, 1024
        assert n * c * h * w > 2**31
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(n, c, h, w, dtype=torch.float16, memory_format=layout)
        tail = x[-1, :, -4:, :].copy_(torch.randn(c, 4, w))
        monkeypatch.setenv("SIMT_BLOCKS", "-400:400")
        y = backend.bias_act(x, None, 1, "lrelu", 0.5, 2.0, -1.0)
        want = torch.where(tail > 0, tail * 2, tail)
        assert torch.equal(y[-1, -1, -1, -500:], want[-1, -1, -500:])
        for taps in 2, 4:  # the generic kernel, and one with vectors
            f = torch.zeros(taps, taps)
            f[-1, -1] = 1.0  # shifts by taps - 1 pixels
            padding = (taps - 1, 0, taps - 1, 0)
            z = backend.upfirdn2d(x, f, (1, 1), (1, 1), padding, False, 1.0)
            assert torch.equal(z[-1, -1, -1, -100:], tail[-1, -taps, -99 - taps : 1 - taps])
        if channels_last:
            w = torch.eye(c, dtype=torch.float16)[:, :, None, None]
            y, _ = backend.fused_conv(x, w, Convolution(), x.shape, None, Epilogue(), False)
            assert torch.equal(y[-1, :, -1, -500:], tail[:, -1, -500:])


def _everything(kernels: Kernels, dtype: torch.dtype, last: bool) -> Iterator[Tensor]:
    """Results of every kernel."""
    backend = kernels.backend
    x, dy = (kernels.draw(2, 24, 18, 20, dtype=dtype, last=last) * k for k in (1.0, -0.5))
    d, noise, b = kernels.draw(2, 24).float(), kernels.draw(18, 20).float(), kernels.draw(24)
    activation = ("lrelu", 0.3, 1.25, 1.5)
    epilogue = Epilogue(d, noise, b, *activation)
    yield backend.bias_act(x, b, 1, *activation)
    second = backend.bias_act_double_backward(dy, b, dy, x, b, 1, *activation)
    for t in itertools.chain(
        backend.bias_act_backward(dy, x, b, 1, *activation),
        second,
        backend.demod_act_backward(dy, x, epilogue),
    ):
        assert t is not None
        yield t
    yield backend.demod_act(x, epilogue)
    w, dw = (kernels.draw(17, 24, 3, 3, dtype=dtype, last=last) * k for k in (1.0, -0.5))
    w2, root = backend.demodulation(w, d)
    ds = d.clone()
    backend.demodulation_backward(w, d, w2, root, 1 + root, ds, dw)
    yield from (w2, root, ds, dw)
    for taps, (up, down) in itertools.product(TAPS.values(), [(1, 1), (2, 1), (1, 2), (3, 2)]):
        yield backend.upfirdn2d(x, taps, (up, up), (down, down), (6, 5, 5, 6), False, 1.0)
    if last and dtype == torch.float16:
        for conv in CONVOLUTIONS:
            w = torch_weight(kernels, conv, 24, 24, 3, dtype)
            size = convolution_size(
                x.shape, w.shape, [conv.stride] * 2, conv.padding, conv.transposed, [0, 0], 1
            )
            y, c = backend.fused_conv(x, w, conv, size, d, Epilogue(d, None, b), True)
            assert c is not None
            yield from (y, c, *backend.fused_conv_input_grad(c, w, conv, x, d))

"""Triton's convolution and its gradients, emulated: every geometry, tile and part of the epilogue against float64."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpseg.backends import eager, ttsem
from gpseg.backends.contract import DIRECTIONS, Epilogue
from gpseg.backends.resampling import Convolution
from gpseg.backends.triton import configurations
from gpseg.backends.triton.configurations import Configuration, Row

EAGER, TTSEM = eager.BACKEND, ttsem.BACKEND

pytestmark = pytest.mark.skipif(TTSEM.available() is not None, reason=str(TTSEM.available()))

kernels = pytest.importorskip("gpseg.backends.triton.modulated_conv", reason="needs triton")

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
PRODUCTS = ("modulated_conv_fwd_kernel", "modulated_conv_bwd_kernel", "modulated_conv_wgrad_kernel")


@dataclass(frozen=True)
class Geometry:
    kernel: tuple[int, int]
    conv: Convolution
    longer: int = 0
    """How many rows and columns the output has beyond the usual ones."""

    def size(self, h: int, w: int) -> tuple[int, int]:
        along = zip((h, w), self.kernel, self.conv.padding, strict=True)
        if self.conv.transposed:
            usual = [(n - 1) * self.conv.stride + k - 2 * p for n, k, p in along]
        else:
            usual = [(n - k + 2 * p) // self.conv.stride + 1 for n, k, p in along]
        return usual[0] + self.longer, usual[1] + self.longer


GEOMETRIES = {
    "1x1": Geometry((1, 1), Convolution()),
    "3x3": Geometry((3, 3), Convolution(padding=(1, 1))),
    "3x3 valid": Geometry((3, 3), Convolution()),
    "3x3 wide padding": Geometry((3, 3), Convolution(padding=(2, 2))),
    "3x1": Geometry((3, 1), Convolution(padding=(1, 0))),
    "1x1 stride 2": Geometry((1, 1), Convolution(2)),
    "3x3 stride 2": Geometry((3, 3), Convolution(2, (1, 1))),
    "3x3 stride 2 longer": Geometry((3, 3), Convolution(2), longer=1),
    "1x1 transposed": Geometry((1, 1), Convolution(1, (0, 0), True)),
    "3x3 transposed": Geometry((3, 3), Convolution(1, (1, 1), True)),
    "1x1 transposed stride 2": Geometry((1, 1), Convolution(2, (0, 0), True)),
    "2x2 transposed stride 2": Geometry((2, 2), Convolution(2, (0, 0), True)),
    "3x3 transposed stride 2": Geometry((3, 3), Convolution(2, (0, 0), True)),
    "3x3 transposed stride 2 cropped": Geometry((3, 3), Convolution(2, (1, 2), True)),
    "3x3 transposed stride 2 longer": Geometry((3, 3), Convolution(2, (1, 1), True), longer=1),
}


class Problem(NamedTuple):
    """A convolution with its side inputs; `w` is as torch's (transposed) convolution wants it."""

    x: Tensor
    w: Tensor
    s: Tensor
    dc: Tensor
    epilogue: Epilogue
    conv: Convolution

    @property
    def u(self) -> Tensor:
        """s · x, rounded as a pass of its own would round it."""
        return EAGER.scale_channels(self.x, self.s)

    def convolved(self, u: Tensor, w: Tensor) -> Tensor:
        """c of the output's size, in the type of the arguments."""
        (h, width), (py, px), beyond = self.dc.shape[2:], self.conv.padding, 8
        if self.conv.transposed:
            c = F.conv_transpose2d(u, w, stride=self.conv.stride)
            return F.pad(c, (0, beyond, 0, beyond))[:, :, py : py + h, px : px + width]
        padded = F.pad(u, (px, px + beyond, py, py + beyond))
        return F.conv2d(padded, w, stride=self.conv.stride)[:, :, :h, :width]


def problem(
    geometry: Geometry,
    dtype: torch.dtype,
    n: int = 2,
    channels: tuple[int, int] = (16, 24),
    image: tuple[int, int] = (5, 7),
    parts: str = "d noise b",
) -> Problem:
    """Channels are (in, out); `noise` gives each sample its own, `shared` all of them the same."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def images(*size: int) -> Tensor:
        return drawn(*size).to(dtype).contiguous(memory_format=torch.channels_last)

    i, o = channels
    h, w = geometry.size(*image)
    weight = drawn(o, i, *geometry.kernel) / (i * geometry.kernel[0] * geometry.kernel[1]) ** 0.5
    noise = drawn(n, 1, h, w) if "noise" in parts else drawn(h, w) if "shared" in parts else None
    epilogue = Epilogue(
        drawn(n, o) if "d" in parts.split() else None,
        noise,
        drawn(o) if "b" in parts.split() else None,
        *("lrelu", 0.2, 2**0.5, 1.5),
    )
    return Problem(
        images(n, i, *image),
        (weight.transpose(0, 1) if geometry.conv.transposed else weight).to(dtype),
        drawn(n, i),
        images(n, o, h, w),
        epilogue,
        geometry.conv,
    )


def forward(p: Problem, keep: bool = True) -> tuple[Tensor, Tensor | None]:
    return TTSEM.fused_conv(p.x, p.w, p.conv, p.dc.shape, p.s, p.epilogue, keep)


def assert_rounded(got: Tensor, exact: Tensor) -> None:
    """No further from the exact result than its rounding, and a little for sums in float32."""
    half_a_unit = torch.finfo(got.dtype).eps / 2
    torch.testing.assert_close(got.double(), exact, rtol=1.01 * half_a_unit, atol=2e-5)


def check_forward(p: Problem) -> None:
    y, c = forward(p)
    assert c is not None
    assert_rounded(c, p.convolved(p.u.double(), p.w.double()))
    wide = Epilogue(*(t.double() if isinstance(t, Tensor) else t for t in p.epilogue))
    assert_rounded(y, EAGER.demod_act(c.double(), wide))


def check_input_grad(p: Problem) -> None:
    dx, ds = TTSEM.fused_conv_input_grad(p.dc, p.w, p.conv, p.x, p.s)
    u = p.u.double().requires_grad_()
    (du,) = torch.autograd.grad(p.convolved(u, p.w.double()), u, p.dc.double())
    # du is rounded as a pass of its own would: at most one rounding apart from the exact one's
    eps = torch.finfo(dx.dtype).eps
    want = du * p.s.double()[:, :, None, None]
    torch.testing.assert_close(dx.double(), want, rtol=1.01 * eps, atol=5e-5)
    terms = du * p.x.double()
    error = (ds.double() - terms.sum((2, 3))).abs()
    assert (error <= 1e-5 * terms.abs().sum((2, 3))).all()


def check_weight_grad(p: Problem) -> None:
    dw = TTSEM.fused_conv_weight_grad(p.dc, p.w.shape, p.conv, p.x, p.s)
    w = p.w.double().requires_grad_()
    (want,) = torch.autograd.grad(p.convolved(p.u.double(), w), w, p.dc.double())
    assert dw.shape == p.w.shape
    assert dw.dtype == p.w.dtype
    assert_rounded(dw, want)


CHECKS = {
    "forward": check_forward,
    "input_grad": check_input_grad,
    "weight_grad": check_weight_grad,
}


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of 16 × 16 and steps of 16, so that small problems have several along each axis, and sums that are split."""
    configurations.configuration.cache_clear()
    smallest = Configuration({"BM": 16, "BN": 16, "BK": 16}, warps=4, stages=2)
    monkeypatch.setattr(configurations, "TABLE", [Row(kernel, smallest) for kernel in PRODUCTS])
    monkeypatch.setattr(kernels, "_multiprocessors", lambda device: 8)
    monkeypatch.setattr(kernels, "_LEAST_STEPS", 1)
    yield
    configurations.configuration.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_geometry(direction: str, geometry: Geometry, dtype: torch.dtype) -> None:
    CHECKS[direction](problem(geometry, dtype))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2", "3x3 transposed stride 2"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_several_tiles_along_each_axis(direction: str, name: str, dtype: torch.dtype) -> None:
    CHECKS[direction](problem(GEOMETRIES[name], dtype, channels=(24, 40)))


@pytest.mark.parametrize("o", [3, 20])
@pytest.mark.parametrize("name", ["1x1", "3x3 transposed stride 2"])
@pytest.mark.parametrize("direction", ["forward", "weight_grad"])
def test_any_number_of_output_channels(direction: str, name: str, o: int) -> None:
    CHECKS[direction](problem(GEOMETRIES[name], torch.float16, channels=(16, o)))


@pytest.mark.parametrize("image", [(1, 1), (1, 20), (20, 1)])
@pytest.mark.parametrize("name", ["3x3", "1x1 transposed stride 2"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_narrow_images(direction: str, name: str, image: tuple[int, int]) -> None:
    """A phase of a transposed convolution may have no pixels."""
    CHECKS[direction](problem(GEOMETRIES[name], torch.float16, image=image))


@pytest.mark.parametrize("parts", ["", "d shared", "b", "noise"])
def test_parts_of_the_epilogue(parts: str) -> None:
    check_forward(problem(GEOMETRIES["3x3"], torch.float16, parts=parts))


def test_without_styles() -> None:
    p = problem(GEOMETRIES["3x3"], torch.float32)
    y, _ = TTSEM.fused_conv(p.x, p.w, p.conv, p.dc.shape, None, Epilogue(), False)
    assert_rounded(y, p.convolved(p.x.double(), p.w.double()))


def test_same_result_whether_or_not_c_is_kept() -> None:
    p = problem(GEOMETRIES["3x3"], torch.bfloat16)
    y, c = forward(p, keep=False)
    assert c is None
    assert torch.equal(y, forward(p, keep=True)[0])


@pytest.mark.usefixtures("small_tiles")
def test_sums_are_the_same_each_time() -> None:
    p = problem(GEOMETRIES["3x3"], torch.float16)
    results = [
        (
            *TTSEM.fused_conv_input_grad(p.dc, p.w, p.conv, p.x, p.s),
            TTSEM.fused_conv_weight_grad(p.dc, p.w.shape, p.conv, p.x, p.s),
        )
        for _ in range(2)
    ]
    assert all(torch.equal(once, again) for once, again in zip(*results, strict=True))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_nan_comes_out(direction: str) -> None:
    p = problem(GEOMETRIES["1x1"], torch.float16)
    p.x[1, 3, 2, 2] = torch.nan
    if direction == "forward":
        missing = forward(p)[0].isnan()
        assert missing[1, :, 2, 2].all()
        assert missing.sum() == missing.shape[1]
    elif direction == "input_grad":
        dx, ds = TTSEM.fused_conv_input_grad(p.dc, p.w, p.conv, p.x, p.s)
        assert not dx.isnan().any()
        assert ds.isnan().nonzero().tolist() == [[1, 3]]
    else:
        missing = TTSEM.fused_conv_weight_grad(p.dc, p.w.shape, p.conv, p.x, p.s).isnan()
        assert missing[:, 3].all()
        assert missing.sum() == missing.shape[0]


def test_an_empty_batch() -> None:
    p = problem(GEOMETRIES["3x3"], torch.float16)
    x, dc, s = p.x[:0], p.dc[:0], p.s[:0]
    y, c = TTSEM.fused_conv(x, p.w, p.conv, dc.shape, s, Epilogue(), True)
    dx, ds = TTSEM.fused_conv_input_grad(dc, p.w, p.conv, x, s)
    assert y.shape == dc.shape
    assert c is not None
    assert c.shape == dc.shape
    assert (dx.shape, ds.shape) == (x.shape, s.shape)
    dw = TTSEM.fused_conv_weight_grad(dc, p.w.shape, p.conv, x, s)
    assert torch.equal(dw, torch.zeros_like(p.w))


def serves(
    direction: str = "forward",
    dtype: torch.dtype = torch.float16,
    i: int = 16,
    o: int = 16,
    k: int = 3,
    conv: Convolution | None = None,
    layout: torch.memory_format = torch.channels_last,
) -> bool:
    conv = conv or Convolution()
    x = torch.zeros(2, i, 5, 5, dtype=dtype).contiguous(memory_format=layout)
    w = torch.zeros(*((i, o) if conv.transposed else (o, i)), k, k, dtype=dtype)
    return TTSEM.fuses(x, w, conv, direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_is_served(direction: str) -> None:
    assert serves(direction)
    assert serves(direction, torch.float32, 4, 4)
    assert serves(direction, conv=Convolution(2, (1, 1), True))
    assert not serves(direction, torch.float64)
    assert not serves(direction, layout=torch.contiguous_format)
    assert not serves(direction, k=5)
    assert not serves(direction, conv=Convolution(3))


@pytest.mark.parametrize("transposed", [False, True])
def test_only_the_image_that_a_product_reads_must_have_channels_in_eights(transposed: bool) -> None:
    conv = Convolution(transposed=transposed)
    assert [serves(direction, o=3, conv=conv) for direction in DIRECTIONS] == [True, False, True]
    assert [serves(direction, i=12, conv=conv) for direction in DIRECTIONS] == [False, True, False]

"""The tensor-core convolution under the emulator: every geometry, tile and part of the epilogue against float64."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpseg.backends import simt

pytestmark = pytest.mark.skipif(
    simt.BACKEND.available() is not None, reason=str(simt.BACKEND.available())
)

DTYPES = [torch.float16, torch.bfloat16]
GAIN, ALPHA, CLAMP = 2**0.5, 0.2, 1.5


@dataclass(frozen=True)
class Geometry:
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    transposed: bool = False
    longer: int = 0
    """How many rows and columns the output has beyond the usual ones."""

    def size(self, h: int, w: int) -> tuple[int, int]:
        if self.transposed:
            full = [(n - 1) * self.stride + k for n, k in zip((h, w), self.kernel, strict=True)]
        else:
            full = [n - k + self.stride for n, k in zip((h, w), self.kernel, strict=True)]
        sign = -1 if self.transposed else 1
        grown = [n + sign * 2 * p for n, p in zip(full, self.padding, strict=True)]
        divisor = 1 if self.transposed else self.stride
        return grown[0] // divisor + self.longer, grown[1] // divisor + self.longer


GEOMETRIES = {
    "1x1": Geometry((1, 1)),
    "3x3": Geometry((3, 3), padding=(1, 1)),
    "3x3 valid": Geometry((3, 3)),
    "3x3 wide padding": Geometry((3, 3), padding=(2, 2)),
    "3x1": Geometry((3, 1), padding=(1, 0)),
    "1x1 stride 2": Geometry((1, 1), stride=2),
    "3x3 stride 2": Geometry((3, 3), stride=2, padding=(1, 1)),
    "3x3 stride 2 longer": Geometry((3, 3), stride=2, longer=1),
    "1x1 transposed": Geometry((1, 1), transposed=True),
    "3x3 transposed": Geometry((3, 3), padding=(1, 1), transposed=True),
    "1x1 transposed stride 2": Geometry((1, 1), stride=2, transposed=True),
    "2x2 transposed stride 2": Geometry((2, 2), stride=2, transposed=True),
    "3x3 transposed stride 2": Geometry((3, 3), stride=2, transposed=True),
    "3x3 transposed stride 2 cropped": Geometry((3, 3), stride=2, padding=(1, 2), transposed=True),
    "3x3 transposed stride 2 longer": Geometry(
        (3, 3), stride=2, padding=(1, 1), transposed=True, longer=1
    ),
}


class Problem(NamedTuple):
    x: Tensor
    weight: Tensor
    style: Tensor | None
    scale: Tensor | None
    noise: Tensor | None
    bias: Tensor | None
    factor: Tensor | None
    geometry: Geometry
    size: tuple[int, ...]


class Result(NamedTuple):
    y: Tensor
    c: Tensor | None
    product: Tensor | None


def problem(
    geometry: Geometry,
    dtype: torch.dtype,
    n: int = 2,
    channels: tuple[int, int] = (40, 72),
    image: tuple[int, int] = (7, 5),
    parts: str = "style scale noise bias factor",
    seed: int = 0,
) -> Problem:
    """Channels are (in, out); `noise` gives each sample its own, `shared` all of them the same."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def images(*size: int) -> Tensor:
        return drawn(*size).to(dtype).contiguous(memory_format=torch.channels_last)

    i, o = channels
    size = (n, o, *geometry.size(*image))
    weight = drawn(o, i, *geometry.kernel) / (i * geometry.kernel[0] * geometry.kernel[1]) ** 0.5
    return Problem(
        images(n, i, *image),
        weight.to(dtype).contiguous(memory_format=torch.channels_last),
        drawn(n, i) if "style" in parts else None,
        drawn(n, o) if "scale" in parts else None,
        drawn(n if "noise" in parts else 1, 1, *size[2:])
        if "noise" in parts or "shared" in parts
        else None,
        drawn(o) if "bias" in parts else None,
        images(*size) if "factor" in parts else None,
        geometry,
        size,
    )


def run(p: Problem, act: str = "lrelu", clamp: float = CLAMP, keep: bool = True) -> Result:
    y = torch.empty(p.size, dtype=p.x.dtype, memory_format=torch.channels_last)
    c = torch.empty_like(y) if keep else None
    product = torch.empty(p.size[:2]) if p.factor is not None else None
    geometry = p.geometry
    torch.ops.gpseg_simt.fused_conv(
        p.x,
        p.weight,
        p.style,
        geometry.stride,
        geometry.padding,
        geometry.transposed,
        p.scale,
        p.noise,
        p.bias,
        act,
        ALPHA,
        GAIN,
        clamp,
        y,
        c,
        p.factor,
        product,
    )
    return Result(y, c, product)


def convolved(p: Problem) -> Tensor:
    """c in float64; what the kernel rounds on its way to it, style · x, is rounded here too."""
    u, w = p.x, p.weight.double()
    if p.style is not None:
        u = (u.float() * p.style[:, :, None, None]).to(u.dtype)
    (h, width), (py, px), beyond = p.size[2:], p.geometry.padding, 8
    if p.geometry.transposed:
        c = F.conv_transpose2d(u.double(), w.transpose(0, 1), stride=p.geometry.stride)
        return F.pad(c, (0, beyond, 0, beyond))[:, :, py : py + h, px : px + width]
    padded = F.pad(u.double(), (px, px + beyond, py, py + beyond))
    return F.conv2d(padded, w, stride=p.geometry.stride)[:, :, :h, :width]


ACTIVATIONS = {
    "linear": lambda u: u,
    "relu": F.relu,
    "lrelu": lambda u: F.leaky_relu(u, ALPHA),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "swish": F.silu,
}


def finished(p: Problem, c: Tensor, act: str, clamp: float) -> Tensor:
    u = c.double()
    if p.scale is not None:
        u = u * p.scale.double()[:, :, None, None]
    if p.noise is not None:
        u = u + p.noise.double()
    if p.bias is not None:
        u = u + p.bias.double()[:, None, None]
    y = GAIN * ACTIVATIONS[act](u)
    return y if clamp < 0 else y.clamp(-clamp, clamp)


def assert_rounded(got: Tensor, exact: Tensor) -> None:
    """No further from the exact result than its rounding, and a little for sums in float32."""
    half_a_unit = torch.finfo(got.dtype).eps / 2
    torch.testing.assert_close(got.double(), exact, rtol=1.01 * half_a_unit, atol=2e-5)


def check(p: Problem, act: str = "lrelu", clamp: float = CLAMP) -> None:
    result, c = run(p, act, clamp), convolved(p)
    assert result.c is not None
    assert_rounded(result.c, c)
    assert_rounded(result.y, finished(p, result.c, act, clamp))
    if p.factor is not None:
        assert result.product is not None
        terms = c * p.factor.double()
        error = (result.product.double() - terms.sum((2, 3))).abs()
        assert (error <= 1e-5 * terms.abs().sum((2, 3))).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_geometry(geometry: Geometry, dtype: torch.dtype) -> None:
    check(problem(geometry, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("o", [8, 64, 136])
@pytest.mark.parametrize("i", [8, 32, 72])
def test_channels(i: int, o: int, dtype: torch.dtype) -> None:
    check(problem(GEOMETRIES["3x3"], dtype, channels=(i, o), seed=i + o))


@pytest.mark.parametrize("parts", ["", "style", "scale shared", "bias", "noise factor", "factor"])
def test_parts_of_the_epilogue(parts: str) -> None:
    check(problem(GEOMETRIES["3x3"], torch.float16, parts=parts), clamp=-1)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activation(act: str) -> None:
    check(problem(GEOMETRIES["3x3"], torch.bfloat16), act)


# The emulator says it has 132 multiprocessors: that many tiles of 128 pixels, and the wide ones are chosen.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("o", [32, 64, 128])
def test_wide_tiles(o: int, dtype: torch.dtype) -> None:
    for parts in ("style scale noise bias factor", "shared"):
        p = problem(
            GEOMETRIES["1x1"], dtype, n=1, channels=(72, o), image=(128, 132), parts=parts, seed=o
        )
        check(p)


@pytest.mark.parametrize("name", ["3x3", "3x3 transposed stride 2"])
def test_widest_tile_with_taps(name: str) -> None:
    h = 65 if "transposed" in name else 130
    check(problem(GEOMETRIES[name], torch.float16, n=1, channels=(8, 128), image=(h, 132)))


def test_same_result_whether_or_not_c_is_kept() -> None:
    p = problem(GEOMETRIES["3x3"], torch.bfloat16)
    assert torch.equal(run(p, keep=True).y, run(p, keep=False).y)


@pytest.mark.parametrize(
    ("kernel", "stride", "channels", "message"),
    [
        ((5, 5), 1, (8, 8), "up to 3x3"),
        ((3, 3), 3, (8, 8), "stride 1 or 2"),
        ((1, 1), 1, (12, 8), "multiples of 8"),
        ((1, 1), 1, (8, 12), "multiples of 8"),
    ],
)
def test_refusals(
    kernel: tuple[int, int], stride: int, channels: tuple[int, int], message: str
) -> None:
    p = problem(Geometry(kernel, stride), torch.float16, channels=channels, parts="", image=(9, 9))
    with pytest.raises(RuntimeError, match=message):
        run(p)

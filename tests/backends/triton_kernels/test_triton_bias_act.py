"""The elementwise Triton kernels against the reference in float64: every activation, odd sizes, walks, and all sides."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gpseg import backends
from gpseg.backends.contract import Epilogue
from gpseg.backends.eager import BACKEND as reference
from gpseg.backends.layout import accumulate_dtype, memory_format_of
from gpseg.backends.triton import launch
from gpseg.backends.triton.configurations import Configuration
from gpseg.ops.bias_act import ACTIVATIONS
from gpseg.selftest.comparison import TOLERANCE, relative_rms

if backends.backends()["ttsem"] is not None:
    pytest.skip(f"ttsem {backends.backends()['ttsem']}", allow_module_level=True)

kernels = backends.get("ttsem")

LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])

SMOOTH: dict[str, Any] = {"act": "swish", "gain": 1.3, "clamp": 0.9}

CURVED: tuple[Any, ...] = ("swish", 0.0, 1.3, 0.9)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory is NaN, so that an output a kernel did not write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 32 elements, and walks of up to three of them: few elements make many programs."""
    tile = {"elements": 32, "columns": 8, "walk": 3, "programs": 4}
    monkeypatch.setattr(launch, "configuration", lambda *_: Configuration(tile))


def draw(*size: int, dtype: torch.dtype = torch.float64, last: bool = False) -> Tensor:
    seed = sum(s * 31**i for i, s in enumerate(size))
    drawn = torch.randn(*size, generator=torch.Generator().manual_seed(seed % 2**31)).to(dtype)
    return drawn.contiguous(memory_format=torch.channels_last) if last else drawn


def agree(got: Any, want: Any, tolerance: float = 1e-12) -> None:
    """Two results, or tuples of them, of which the second is the reference's."""
    got, want = ((t,) if isinstance(t, Tensor) else t for t in (got, want))
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if w is not None:
            assert relative_rms(g, w) < tolerance


def epilogue(
    n: int, o: int, h: int, w: int, sides: str = "dnb", noise: str = "sample", **options: Any
) -> Epilogue:
    """The named side inputs, d, noise and b, and an activation."""
    noises = {"sample": (n, 1, h, w), "shared": (1, 1, h, w), "plane": (h, w)}
    return Epilogue(
        d=draw(n, o) if "d" in sides else None,
        noise=draw(*noises[noise]) if "n" in sides else None,
        b=draw(o) if "b" in sides else None,
        **options,
    )


def check_epilogue(
    c: Tensor, wanted: Epilogue, dy: Tensor, tolerance: float = TOLERANCE[torch.float64]
) -> None:
    agree(kernels.demod_act(c, wanted), reference.demod_act(c, wanted), tolerance)
    got = kernels.demod_act_backward(dy, c, wanted)
    agree(got, reference.demod_act_backward(dy, c, wanted), tolerance)
    assert memory_format_of(got[0]) == memory_format_of(c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("clamp", [-1.0, 0.6], ids=["free", "clamped"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation(act: str, clamp: float, dtype: torch.dtype) -> None:
    x, dy, ddx = (3 * draw(size, 7, dtype=dtype) for size in (5, 6, 7))
    dy, ddx, b, ddb = dy[:5], ddx[:5], draw(7, dtype=dtype), draw(7, dtype=dtype).flip(0)
    arguments = (1, act, 0.2, -1.3, clamp)
    exact = [t.double() for t in (ddx, ddb, dy, x, b)]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    agree(kernels.bias_act(x, b, *arguments), reference.bias_act(*exact[3:], *arguments), tolerance)
    for name, inputs, wanted in (
        ("bias_act_backward", (dy, x, b), exact[2:]),
        ("bias_act_double_backward", (ddx, ddb, dy, x, b), exact),
    ):
        got = getattr(kernels, name)(*inputs, *arguments)
        agree(got, getattr(reference, name)(*wanted, *arguments), tolerance)


@LAYOUTS
@pytest.mark.parametrize("noise", ["sample", "shared", "plane"])
@pytest.mark.parametrize("size", [(2, 11, 3, 7), (3, 8, 6, 8)], ids=["odd", "vectors"])
def test_walks_over_many_tiles(
    size: tuple[int, int, int, int], noise: str, channels_last: bool, small_tiles: None
) -> None:
    c, dy = draw(*size, last=channels_last), draw(*size).flip(0)
    check_epilogue(c, epilogue(*size, noise=noise, **SMOOTH), dy)


@LAYOUTS
@pytest.mark.parametrize(
    "sides", ["".join(s) for r in range(4) for s in itertools.combinations("dnb", r)]
)
def test_any_side_input_may_be_missing(sides: str, channels_last: bool, small_tiles: None) -> None:
    size = (2, 5, 4, 3)
    c, dy = draw(*size, last=channels_last), draw(*size).flip(0)
    check_epilogue(c, epilogue(*size, sides, **SMOOTH), dy)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_half_types(dtype: torch.dtype, channels_last: bool) -> None:
    """Rows of whole vectors, of which there are few and many."""
    for size in ((2, 16, 4, 4), (2, 3, 40, 16)):
        c, dy = (draw(*size, dtype=dtype, last=channels_last) for _ in range(2))
        d, noise, b, *activation = epilogue(*size, **SMOOTH)
        sides = [t if t is None else t.to(accumulate_dtype(dtype)) for t in (d, noise, b)]
        exact = Epilogue(*(t if t is None else t.double() for t in sides), *activation)
        given = Epilogue(*sides, *activation)
        tolerance = TOLERANCE[dtype]
        want = reference.demod_act(c.double(), exact)
        agree(kernels.demod_act(c, given), want, tolerance)
        wanted = reference.demod_act_backward(dy.double(), c.double(), exact)
        agree(kernels.demod_act_backward(dy, c, given), wanted, tolerance)


@pytest.mark.parametrize("size", [(2, 3, 8, 4), (1, 1, 4, 4), (2, 6, 3, 3), (4, 3, 1, 1)])
def test_few_channels_in_channels_last(size: tuple[int, int, int, int], small_tiles: None) -> None:
    """Several pixels make a row where that makes whole vectors."""
    for dtype in (torch.float32, torch.float64):
        c, dy = draw(*size, dtype=dtype, last=True), draw(*size, dtype=dtype).flip(0)
        for sides in ("b", "db"):
            d, _, b, *activation = epilogue(*size, sides, act="lrelu", alpha=0.2)
            wanted = Epilogue(
                d if d is None else d.to(dtype),
                None,
                None if b is None else b.to(dtype),
                *activation,
            )
            check_epilogue(c, wanted, dy, 2e-6 if dtype == torch.float32 else 1e-12)


@LAYOUTS
@pytest.mark.parametrize("dim", range(4))
def test_bias_along_any_dimension(dim: int, channels_last: bool, small_tiles: None) -> None:
    size = (3, 6, 5, 4)
    x, ddx, dy = draw(*size, last=channels_last), draw(*size).flip(0), draw(*size).flip(1)
    b, ddb = draw(size[dim]), draw(size[dim]).flip(0)
    for wanted, given in ((ddx, ddb), (None, ddb), (ddx, None)):
        for act in (CURVED, ("lrelu", 0.2, 1.4, 0.9)):
            arguments = (wanted, given, dy, x, b, dim, *act)
            got = kernels.bias_act_double_backward(*arguments)
            agree(got, reference.bias_act_double_backward(*arguments))
    got = kernels.bias_act_backward(dy, x, b, dim, *CURVED)
    agree(got, reference.bias_act_backward(dy, x, b, dim, *CURVED))
    agree(kernels.bias_act(x, b, dim, *CURVED), reference.bias_act(x, b, dim, *CURVED))


def test_without_bias(small_tiles: None) -> None:
    x, dy, ddx = draw(3, 37), draw(3, 37).flip(0), draw(3, 37).flip(1)
    agree(kernels.bias_act(x, None, 1, *CURVED), reference.bias_act(x, None, 1, *CURVED))
    got = kernels.bias_act_backward(dy, x, None, 1, *CURVED)
    agree(got, reference.bias_act_backward(dy, x, None, 1, *CURVED))
    got = kernels.bias_act_double_backward(ddx, None, dy, x, None, 1, *CURVED)
    agree(got, reference.bias_act_double_backward(ddx, None, dy, x, None, 1, *CURVED))


@LAYOUTS
def test_scale_channels(channels_last: bool, small_tiles: None) -> None:
    x, s, dy = draw(3, 5, 4, 6, last=channels_last), draw(3, 5), draw(3, 5, 4, 6).flip(0)
    agree(kernels.scale_channels(x, s), reference.scale_channels(x, s))
    got = kernels.scale_channels_backward(x, s, dy)
    agree(got, reference.scale_channels_backward(x, s, dy))


@pytest.mark.parametrize("clamp", [-1.0, 2.0], ids=["free", "clamped"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_what_is_not_finite(act: str, clamp: float) -> None:
    nan, inf = torch.nan, torch.inf
    x = torch.tensor([[nan, inf, -inf, 0.0, -0.0, 1e300, -1e300]], dtype=torch.float64)
    dy = torch.ones_like(x)
    arguments = (None, 1, act, 0.2, 1.0, clamp)
    y, want = kernels.bias_act(x, *arguments), reference.bias_act(x, *arguments)
    torch.testing.assert_close(y, want, equal_nan=True)
    got, _ = kernels.bias_act_backward(dy, x, *arguments)
    wanted, _ = reference.bias_act_backward(dy, x, *arguments)
    torch.testing.assert_close(got, wanted, equal_nan=True)
    dx, _ = kernels.bias_act_backward(dy * nan, draw(1, 7), *arguments)
    assert dx.isnan().all()


@LAYOUTS
def test_nan_stays_where_it_belongs(channels_last: bool, small_tiles: None) -> None:
    """One NaN spoils its channel's and its pixel's sums, no others."""
    size = (2, 5, 3, 3)
    c, dy = draw(*size, last=channels_last), draw(*size).flip(0)
    dy[1, 2, 0, 1] = torch.nan
    wanted = epilogue(*size)
    got, want = (b.demod_act_backward(dy, c, wanted) for b in (kernels, reference))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, equal_nan=True)


@LAYOUTS
def test_the_same_in_every_run(channels_last: bool, small_tiles: None) -> None:
    size = (3, 11, 4, 6)
    c, dy = (draw(*size, dtype=torch.float32, last=channels_last) for _ in range(2))
    wanted = epilogue(*size, noise="plane", act="lrelu", alpha=0.2)
    wanted = Epilogue(*(None if t is None else t.float() for t in wanted[:3]), *wanted[3:])
    first, second = (kernels.demod_act_backward(dy, c, wanted) for _ in range(2))
    assert all(map(torch.equal, first, second))


@LAYOUTS
@pytest.mark.parametrize("size", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_nothing_to_do(size: tuple[int, int, int, int], channels_last: bool) -> None:
    """Sums over nothing are 0."""
    c, dy = draw(*size, last=channels_last), draw(*size)
    for noise in ("sample", "plane"):
        wanted = epilogue(*size, noise=noise)
        assert kernels.demod_act(c, wanted).shape == size
        for got, want in zip(
            kernels.demod_act_backward(dy, c, wanted),
            reference.demod_act_backward(dy, c, wanted),
            strict=True,
        ):
            assert torch.equal(got, want)
    for act in (CURVED, ("linear", 0.0, 1.0, -1.0)):
        _, _, d2b = kernels.bias_act_double_backward(dy, None, dy, c, draw(size[1]), 1, *act)
        assert torch.equal(d2b, torch.zeros(size[1], dtype=c.dtype))

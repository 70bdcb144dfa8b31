"""upfirdn2d's Triton kernels against the reference in float64: every instance, strips and tiles, paddings, epilogues."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpseg import backends
from gpseg.backends.contract import Epilogue
from gpseg.backends.eager import BACKEND as reference
from gpseg.backends.layout import memory_format_of
from gpseg.backends.triton import launch
from gpseg.backends.triton.configurations import Configuration
from gpseg.selftest.comparison import TOLERANCE, relative_rms

if backends.backends()["ttsem"] is not None:
    pytest.skip(f"ttsem {backends.backends()['ttsem']}", allow_module_level=True)

kernels = backends.get("ttsem")

F64 = torch.float64

SLIDING, GENERIC = "upfirdn2d_fwd_kernel", "upfirdn2d_generic_kernel"

FACTORS = {"blur": (1, 1), "up": (2, 1), "down": (1, 2)}

TAPS = {"4": (4, 4), "4-separable": (4,), "12-separable": (12,)}

FACTOR = pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
LAYOUT = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
INSTANCE = pytest.mark.parametrize("taps", TAPS.values(), ids=TAPS)
DTYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))

LAYER = Epilogue(act="lrelu", alpha=0.2, gain=1.4, clamp=1.3)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory is NaN, so that an output a kernel did not write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 4 × 8 outputs and strips of 3 rows: few elements make many programs."""
    tile = {"elements": 32, "neighbours": 8, "vector_bytes": 16}
    strip = {"rows": 3, "least_rows": 1, "programs": 1}
    small = Configuration({**tile, **strip}, warps=1)
    monkeypatch.setattr(launch, "configuration", lambda *_: small)


def draw(*size: int, dtype: torch.dtype = F64, last: bool = False) -> Tensor:
    seed = sum(s * 31**i for i, s in enumerate(size))
    drawn = torch.randn(*size, generator=torch.Generator().manual_seed(seed % 2**31)).to(dtype)
    return drawn.contiguous(memory_format=torch.channels_last) if last else drawn


def check(
    x: Tensor, f: Tensor | None, up: Any, down: Any, padding: Any, flip: bool = False
) -> None:
    """The kernels' result is the reference's, in x's type and layout."""
    got = kernels.upfirdn2d(x, f, up, down, padding, flip, 0.7)
    wide = None if f is None else f.double()
    want = reference.upfirdn2d(x.double(), wide, up, down, padding, flip, 0.7)
    assert got.dtype == x.dtype
    assert got.shape == want.shape
    assert got.is_contiguous(memory_format=memory_format_of(x))
    assert relative_rms(got, want) < TOLERANCE[x.dtype]


@DTYPE
@LAYOUT
@INSTANCE
@FACTOR
def test_instances(
    factor: tuple[int, int], taps: tuple[int, ...], channels_last: bool, dtype: torch.dtype
) -> None:
    up, down = factor
    x = draw(2, 5, 15, 13, dtype=dtype, last=channels_last)
    check(x, draw(*taps, dtype=dtype), (up, up), (down, down), (5, 6, 6, 5))


@LAYOUT
@INSTANCE
@FACTOR
def test_strips_and_tiles(
    factor: tuple[int, int], taps: tuple[int, ...], channels_last: bool, small_tiles: None
) -> None:
    up, down = factor
    x = draw(1, 10, 8, 6, last=True) if channels_last else draw(3, 2, 8, 9)
    before, after = taps[0] // 2, taps[0] // 2 - 1
    padding = (before, after, after, before)
    check(x, draw(*taps), (up, up), (down, down), padding, flip=len(taps) == 1)


@pytest.mark.parametrize(
    "padding", [(0, 1, 2, 3), (1, 0, 3, 2), (2, 2, -1, 4), (-3, 5, -2, 3), (6, -4, 5, -3)]
)
@LAYOUT
@FACTOR
def test_paddings(
    factor: tuple[int, int], channels_last: bool, padding: tuple[int, ...], small_tiles: None
) -> None:
    up, down = factor
    check(draw(1, 4, 5, 6, last=channels_last), draw(4, 4), (up, up), (down, down), padding, True)


@LAYOUT
@pytest.mark.parametrize("channels", [8, 12, 7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])
def test_vectors(dtype: torch.dtype, channels: int, channels_last: bool) -> None:
    """Rows of whole vectors, of halves of them, and of none."""
    x = draw(1, channels, 6, channels, dtype=dtype, last=channels_last)
    check(x, draw(4, 4, dtype=dtype), (1, 1), (1, 1), (2, 1, 2, 1))


@LAYOUT
@pytest.mark.parametrize("size", [(40, 3, 4, 4), (2, 3, 1, 1), (1, 1, 5, 1), (1, 33, 1, 6)])
def test_small_images(size: tuple[int, ...], channels_last: bool) -> None:
    check(draw(*size, last=channels_last), draw(4, 4), (2, 2), (1, 1), (2, 1, 2, 1))


@LAYOUT
@pytest.mark.parametrize("f", [draw(4, 4), draw(3, 5)], ids=["sliding", "generic"])
def test_unaligned_memory(f: Tensor, channels_last: bool) -> None:
    """An input that starts in the midst of a vector."""
    x = draw(3, 7, 6, 5, last=channels_last)[1:]
    check(x, f, (1, 1), (1, 1), (2, 2, 2, 2))


SIDES = {
    "none": {},
    "d": {"d": draw(2, 3)},
    "shared-noise": {"noise": draw(5, 9)},
    "one-noise": {"noise": draw(1, 1, 5, 9)},
    "noise": {"noise": draw(2, 1, 5, 9)},
    "b": {"b": draw(3)},
    "all": {"d": draw(2, 3), "noise": draw(2, 1, 5, 9), "b": draw(3)},
}


@LAYOUT
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("f", [draw(4, 4), draw(3, 4), None], ids=["sliding", "generic", "none"])
def test_epilogue(
    f: Tensor | None, sides: dict[str, Tensor], channels_last: bool, small_tiles: None
) -> None:
    height, width = (1, 1) if f is None else f.shape
    x = draw(2, 3, 5 + height - 1, 9 + width - 1, last=channels_last)
    arguments = (x, f, (1, 1), (1, 1), (0, 0, 0, 0), False, 1.2, LAYER._replace(**sides))
    y, c = kernels.upfirdn2d_demod_act(*arguments, True)
    alone, nothing = kernels.upfirdn2d_demod_act(*arguments, False)
    want_y, want_c = reference.upfirdn2d_demod_act(*arguments, True)
    assert nothing is None
    assert torch.equal(y, alone)
    assert c is not None and want_c is not None
    assert relative_rms(y, want_y) < TOLERANCE[F64]
    assert relative_rms(c, want_c) < TOLERANCE[F64]


@DTYPE
@LAYOUT
def test_epilogue_of_the_rounded_result(channels_last: bool, dtype: torch.dtype) -> None:
    """What follows the filter sees its result as memory would hold it, whether it is held there or not."""
    x, f = draw(2, 8, 8, 8, dtype=dtype, last=channels_last), draw(4, 4, dtype=dtype)
    fir = (x, f, (2, 2), (1, 1), (2, 1, 2, 1), False, 4.0)
    filtered = kernels.upfirdn2d(*fir)
    epilogue = LAYER._replace(d=draw(2, 8, dtype=dtype), b=draw(8, dtype=dtype))
    y, c = kernels.upfirdn2d_demod_act(*fir, epilogue, True)
    alone, _ = kernels.upfirdn2d_demod_act(*fir, epilogue, False)
    assert c is not None
    assert torch.equal(c, filtered)
    assert torch.equal(y, alone)
    assert relative_rms(y, reference.demod_act(filtered, epilogue)) < TOLERANCE[dtype]


@LAYOUT
@pytest.mark.parametrize("f", [draw(4, 4), draw(3, 3)], ids=["sliding", "generic"])
def test_nan_stays_where_it_belongs(f: Tensor, channels_last: bool) -> None:
    x = draw(1, 2, 8, 8, last=channels_last)
    x[0, 1, 3, 4] = torch.nan
    arguments = (f, (1, 1), (1, 1), (1, 2, 1, 2), False, 1.0)
    want = reference.upfirdn2d(x, *arguments)
    assert torch.equal(kernels.upfirdn2d(x, *arguments).isnan(), want.isnan())
    y, _ = kernels.upfirdn2d_demod_act(x, *arguments, LAYER._replace(act="relu"), False)
    assert torch.equal(y.isnan(), want.isnan())


@LAYOUT
def test_empty_batch(channels_last: bool) -> None:
    x = draw(0, 3, 5, 5, last=channels_last)
    y, c = kernels.upfirdn2d_demod_act(
        x, draw(4, 4), (2, 2), (1, 1), (2, 1, 2, 1), False, 1.0, LAYER, True
    )
    assert c is not None
    assert y.shape == c.shape == (0, 3, 10, 10)


@st.composite
def calls(draw_from: st.DrawFn) -> tuple[Any, ...]:
    """Images, a filter and options for which upfirdn2d has a result."""
    size = [draw_from(st.integers(1, top)) for top in (2, 3, 7, 7)]
    f = draw_from(st.sampled_from([None, draw(1), draw(5), draw(12), draw(2, 3), draw(6, 1)]))
    height, width = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    factor, pad = st.integers(1, 4), st.integers(-3, 6)
    up, down = draw_from(st.tuples(factor, factor)), draw_from(st.tuples(factor, factor))
    padding = draw_from(st.tuples(pad, pad, pad, pad))
    assume(size[3] * up[0] + padding[0] + padding[1] >= width)
    assume(size[2] * up[1] + padding[2] + padding[3] >= height)
    return (
        draw(*size, last=draw_from(st.booleans())),
        f,
        up,
        down,
        padding,
        draw_from(st.booleans()),
    )


@settings(deadline=None, max_examples=30)
@given(call=calls())
def test_anything_else(call: tuple[Any, ...]) -> None:
    x, f, up, down, padding, flip = call
    got = kernels.upfirdn2d(x, f, up, down, padding, flip, -0.3)
    want = reference.upfirdn2d(x, f, up, down, padding, flip, -0.3)
    assert relative_rms(got, want) < TOLERANCE[F64]


@pytest.mark.parametrize(
    ("size", "up", "down", "kernel"),
    [
        *[(taps, (up,) * 2, (down,) * 2, SLIDING)
          for taps in TAPS.values() for up, down in FACTORS.values()],
        (None, (1, 1), (1, 1), GENERIC),
        ((3,), (1, 1), (1, 1), GENERIC),
        ((12, 12), (1, 1), (1, 1), GENERIC),
        ((4, 3), (1, 1), (1, 1), GENERIC),
        ((3, 4), (1, 1), (1, 1), GENERIC),
        ((4, 4), (2, 1), (1, 1), GENERIC),
        ((4, 4), (2, 2), (2, 2), GENERIC),
        ((4, 4), (3, 3), (1, 1), GENERIC),
    ],
)  # fmt: skip
def test_which_kernel_serves(
    size: tuple[int, ...] | None,
    up: tuple[int, int],
    down: tuple[int, int],
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = []
    monkeypatch.setattr(launch, "emulate", lambda k, *_, **__: served.append(k.__name__))
    f = None if size is None else draw(*size)
    kernels.upfirdn2d(draw(1, 1, 16, 16), f, up, down, (0, 0, 0, 0), False, 1.0)
    assert served == [kernel]

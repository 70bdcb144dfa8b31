"""upfirdn2d in one launch, and what follows it in the same pass over memory.

Along an axis, output o meets tap k of a correlation at o · down − pad + k on the upsampled grid: a pixel if `up`
divides that, else an inserted zero. So the outputs of one phase, o mod up, are a plain FIR with every up-th tap, and no
inserted zero is ever touched.

A program has a tile [Q, V] of the outputs of a row. Along V lie neighbours in memory: the channels of Q columns where
images are channels_last, else columns, of Q planes (sample, channel).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpseg.backends.contract import Epilogue, Pair
from gpseg.backends.layout import (
    empty_in_layout_of,
    for_sums,
    in_layout_of,
    memory_format_of,
)
from gpseg.backends.resampling import Padding, filter_taps, filtered_size
from gpseg.backends.triton.activation import accumulated, finished
from gpseg.backends.triton.configurations import Configuration
from gpseg.backends.triton.launch import configured, launch

_VARYING = [
    *("flip", "samples", "channels", "height", "width", "out_height", "out_width"),
    *("noise_stride", "pad_x", "pad_y", "channel_tiles", "column_tiles", "strips", "rows"),
    *("up_x", "up_y", "down_x", "down_y", "taps_x", "taps_y"),
]
"""Arguments that no version of a kernel is compiled for: what the compiler must know of them is in VEC."""


@triton.jit
def _place(
    samples,
    channels,
    channel_tiles,
    column_tiles,
    strips,
    CHANNELS_LAST: tl.constexpr,
    Q: tl.constexpr,
    V: tl.constexpr,
):
    """A program's strip of rows, and the samples, channels and columns of its tile."""
    index = tl.program_id(0)
    channel_tile = index % channel_tiles
    index //= channel_tiles
    column_tile = index % column_tiles
    index //= column_tiles
    strip = index % strips
    index //= strips
    q = tl.arange(0, Q)[:, None]
    v = tl.arange(0, V)[None, :]
    if CHANNELS_LAST:
        sample = index
        channel = channel_tile * V + v
        column = column_tile * Q + q
    else:
        plane = index * Q + q
        sample = plane // channels
        channel = plane % channels
        column = column_tile * V + v
    return strip, sample, channel, column


@triton.jit
def _in_first_row(sample, channel, column, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """Where elements of an image's first row are in the tensor."""
    if CHANNELS_LAST:
        at = (sample.to(tl.int64) * height * width + column) * channels + channel
    else:
        at = (sample.to(tl.int64) * channels + channel) * height * width + column
    return at


@triton.jit
def _first_tap(at, up):
    """The first tap that meets a pixel, of those that lie from position `at` of the upsampled grid on."""
    tap = (-at) % up  # has the sign of −at
    return tl.where(tap < 0, tap + up, tap)


@triton.jit
def _tap(f_ptr, k, count, flip):
    """Tap k of the correlation: those of a convolution read backwards."""
    return tl.load(f_ptr + tl.where(flip, k, count - 1 - k))


@triton.jit
def _side_input(ptr, at, inside):
    """An epilogue's numbers for the channels of a tile; None where there are none."""
    if ptr is None:  # noqa: SIM108  Triton 3.6 compiles no conditional expression that may be None
        values = None
    else:
        values = tl.load(ptr + at, mask=inside, other=0.0)
    return values


@triton.jit
def _slide(
    begun,
    tiles,
    taps,
    CHAIN: tl.constexpr,
    FIRST: tl.constexpr,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Add `COUNT` tiles of pixels to `LENGTH` sums, the last of which is done: that one, and the others as a tuple.

    The first sum is new, the others are begun[CHAIN], begun[CHAIN + 1] …; taps[FIRST] is the first sum's for the first
    tile, and the next sum's are `STRIDE` further on.
    """
    rest: tl.tuple = ()
    for t in tl.static_range(LENGTH):
        total = tl.zeros_like(tiles[0]) if t == 0 else begun[CHAIN + t - 1]
        for i in tl.static_range(COUNT):
            total += tiles[i] * taps[FIRST + STRIDE * t + i]
        if t < LENGTH - 1:
            rest += (total,)
    return total, rest


@triton.jit
def _store(
    total,
    pixel_mask,
    channel_mask,
    at,
    c_ptr,
    y_ptr,
    d,
    noise_ptr,
    noise_at,
    b,
    alpha,
    act_gain,
    clamp,
    ACT: tl.constexpr,
    CLAMPED: tl.constexpr,
):
    """Write the filter's result to c_ptr and what follows it to y_ptr; either may be None."""
    element: tl.constexpr = (y_ptr if c_ptr is None else c_ptr).dtype.element_ty
    mask = pixel_mask & channel_mask
    c = total.to(element)  # rounded as if the epilogue were a pass of its own
    if c_ptr is not None:
        tl.store(c_ptr + at, c, mask=mask)
    if y_ptr is not None:
        z = c.to(total.dtype)
        if d is not None:
            z *= d
        if noise_ptr is not None:
            z += tl.load(noise_ptr + noise_at, mask=pixel_mask, other=0.0)
        if b is not None:
            z += b
        A: tl.constexpr = total.dtype
        y = finished(z, alpha.to(A), act_gain.to(A), clamp.to(A), ACT, CLAMPED)
        tl.store(y_ptr + at, y.to(element), mask=mask)


@triton.jit(do_not_specialize=_VARYING)
def upfirdn2d_fwd_kernel(
    x_ptr,
    f_ptr,
    c_ptr,
    y_ptr,
    d_ptr,
    noise_ptr,
    b_ptr,
    noise_stride,
    gain: tl.float64,
    alpha: tl.float64,
    act_gain: tl.float64,
    clamp: tl.float64,
    flip,
    samples,
    channels,
    height,
    width,
    out_height,
    out_width,
    channel_tiles,
    column_tiles,
    pad_x,
    pad_y,
    strips,
    rows,
    ACT: tl.constexpr,
    CLAMPED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VEC: tl.constexpr,
    Q: tl.constexpr,
    V: tl.constexpr,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    TAPS: tl.constexpr,
    SEPARABLE: tl.constexpr,
    PHASE: tl.constexpr,
):
    """upfirdn2d for factors and taps known to the compiler: a tile slides down its strip of rows.

    Each row of pixels is read once and added to the sums of all rows of outputs that it is part of, which stay in
    registers until their last row of pixels has come. What lies `UP` outputs apart makes a chain of such sums; taps of
    one chain and one row of pixels are `STRIDE` apart. Columns read the row at each tap's shift: from the L1 cache,
    after the first time.

    Args:
        x_ptr: `[samples, channels, height, width]`; with `CHANNELS_LAST` the channels are the last in memory.
        f_ptr: the taps in the type of the sums, `[TAPS]` if `SEPARABLE`, else `[TAPS, TAPS]`.
        c_ptr, y_ptr: `[samples, channels, out_height, out_width]` for the filter's result and for what follows it.
        d_ptr, noise_ptr, b_ptr: `[samples, channels]`, `[1 or samples, out_height, out_width]`, `[channels]` or None.
        noise_stride: from one sample's noise to the next one's.
        flip: the taps are a correlation's.
        channels, out_width: in units of `VEC`, the former with `CHANNELS_LAST`, the latter without.
        pad_x, pad_y: zeros before the pixels, on the upsampled grid; along y it is `UP` · pad_y + `PHASE`.
        rows: of a strip, each `UP` rows of outputs.
    """
    A: tl.constexpr = accumulated(x_ptr.dtype.element_ty)
    STRIDE: tl.constexpr = UP * DOWN  # one of them is 1
    LENGTH: tl.constexpr = TAPS // STRIDE
    ACROSS: tl.constexpr = TAPS // UP
    TILES: tl.constexpr = 1 if SEPARABLE else ACROSS  # of a row of pixels: one for each tap across
    DELAY: tl.constexpr = (2 * UP - 2 - PHASE) // UP  # steps, of the last phase's chain
    tl.static_assert(LENGTH * STRIDE == TAPS)
    if CHANNELS_LAST:
        channels = channels * VEC
        pixel = channels
    else:
        out_width = out_width * VEC
        pixel = 1
    strip, sample, channel, column = _place(
        samples, channels, channel_tiles, column_tiles, strips, CHANNELS_LAST, Q, V
    )
    inside = (sample < samples) & (channel < channels)
    d = _side_input(d_ptr, sample * channels + channel, inside)
    b = _side_input(b_ptr, channel, inside)
    there_out = (sample < samples) & (column < out_width)
    at = _in_first_row(sample, channel, column, channels, out_height, out_width, CHANNELS_LAST)
    noise_at = sample.to(tl.int64) * noise_stride + column

    # along x, phases are data: each column has the taps that it meets
    first_x = column * DOWN - pad_x
    tap_x = 0 if UP == 1 else _first_tap(first_x, UP)
    from_x = (first_x + tap_x) // UP
    from_at = _in_first_row(sample, channel, from_x, channels, height, width, CHANNELS_LAST)
    of_row: tl.tuple = ()
    of_column: tl.tuple = ()
    for t in tl.static_range(ACROSS if SEPARABLE else 0):
        of_row += (_tap(f_ptr, tap_x + UP * t, TAPS, flip) * gain.to(A),)
    for k in tl.static_range(TAPS):
        if SEPARABLE:
            of_column += (_tap(f_ptr, k, TAPS, flip),)
        else:
            for t in tl.static_range(ACROSS):
                tap = _tap(f_ptr, k * TAPS + tap_x + UP * t, TAPS * TAPS, flip)
                of_column += (tap * gain.to(A),)

    # along y, they are code: at each step, DOWN rows of pixels come and one row of each phase is done
    begun: tl.tuple = ()
    for _ in tl.static_range(UP * (LENGTH - 1)):
        begun += (tl.zeros((Q, V), A),)
    start = strip * rows
    end = start + rows
    for step in range(start, end + LENGTH - 1 + DELAY):
        tiles: tl.tuple = ()
        for r in tl.static_range(DOWN):
            row = step * DOWN + r - pad_y
            row_ptr = x_ptr + row.to(tl.int64) * width * pixel
            there = inside & (row >= 0) & (row < height)
            across = tl.zeros((Q, V), A)
            for t in tl.static_range(ACROSS):
                mask = there & (from_x + t >= 0) & (from_x + t < width)
                value = tl.load(row_ptr + (from_at + t * pixel), mask=mask, other=0.0).to(A)
                if SEPARABLE:
                    across += value * of_row[t]
                else:
                    tiles += (value,)
            if SEPARABLE:
                tiles += (across,)
        still_begun: tl.tuple = ()
        for phase in tl.static_range(UP):
            total, chain = _slide(
                begun,
                tiles,
                of_column,
                phase * (LENGTH - 1),
                (PHASE + UP - phase) % UP * TILES,
                LENGTH,
                STRIDE * TILES,
                DOWN * TILES,
            )
            still_begun += chain
            done = step - (LENGTH - 1) - (phase - PHASE + UP - 1) // UP
            out_row = done * UP + phase
            there = there_out & (done >= start) & (done < end) & (out_row < out_height)
            row_at = out_row.to(tl.int64) * out_width
            _store(
                total,
                there,
                channel < channels,
                row_at * pixel + at,
                c_ptr,
                y_ptr,
                d,
                noise_ptr,
                row_at + noise_at,
                b,
                alpha,
                act_gain,
                clamp,
                ACT,
                CLAMPED,
            )
        begun = still_begun


@triton.jit(do_not_specialize=_VARYING)
def upfirdn2d_generic_kernel(
    x_ptr,
    f_ptr,
    c_ptr,
    y_ptr,
    d_ptr,
    noise_ptr,
    b_ptr,
    noise_stride,
    gain: tl.float64,
    alpha: tl.float64,
    act_gain: tl.float64,
    clamp: tl.float64,
    flip,
    samples,
    channels,
    height,
    width,
    out_height,
    out_width,
    channel_tiles,
    column_tiles,
    pad_x,
    pad_y,
    up_x,
    up_y,
    down_x,
    down_y,
    taps_x,
    taps_y,
    ACT: tl.constexpr,
    CLAMPED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VEC: tl.constexpr,
    Q: tl.constexpr,
    V: tl.constexpr,
    SEPARABLE: tl.constexpr,
):
    """upfirdn2d for any factors and taps: a tile of one row, its phases worked out and its taps read as it runs.

    Args:
        f_ptr: the taps in the type of the sums, `[taps_x]` if `SEPARABLE`, else `[taps_y, taps_x]`; None: one tap, 1.
        pad_x, pad_y: zeros before the pixels, on the upsampled grid.
        others: as `upfirdn2d_fwd_kernel` has them.
    """
    A: tl.constexpr = accumulated(x_ptr.dtype.element_ty)
    if CHANNELS_LAST:
        channels = channels * VEC
        pixel = channels
    else:
        out_width = out_width * VEC
        pixel = 1
    out_row, sample, channel, column = _place(
        samples, channels, channel_tiles, column_tiles, out_height, CHANNELS_LAST, Q, V
    )
    inside = (sample < samples) & (channel < channels)
    d = _side_input(d_ptr, sample * channels + channel, inside)
    b = _side_input(b_ptr, channel, inside)
    first_x, first_y = column * down_x - pad_x, out_row * down_y - pad_y
    tap_x, tap_y = _first_tap(first_x, up_x), _first_tap(first_y, up_y)
    from_x = (first_x + tap_x) // up_x
    from_at = _in_first_row(sample, channel, from_x, channels, height, width, CHANNELS_LAST)
    total = tl.zeros((Q, V), A)
    for ky in range(tap_y, taps_y, up_y):
        row = (first_y + ky) // up_y
        row_ptr = x_ptr + row.to(tl.int64) * width * pixel
        there = inside & (row >= 0) & (row < height)
        across = tl.zeros((Q, V), A)
        for t in range(0, tl.cdiv(taps_x, up_x)):
            kx = tap_x + t * up_x
            mask = there & (kx < taps_x) & (from_x + t >= 0) & (from_x + t < width)
            value = tl.load(row_ptr + (from_at + t * pixel), mask=mask, other=0.0).to(A)
            if f_ptr is not None:
                k = tl.minimum(kx, taps_x - 1)  # past the last tap, value is 0
                if SEPARABLE:
                    value *= _tap(f_ptr, k, taps_x, flip)
                else:
                    value *= _tap(f_ptr, ky * taps_x + k, taps_y * taps_x, flip)
            across += value
        if SEPARABLE:
            across *= _tap(f_ptr, ky, taps_y, flip)
        total += across
    row_at = out_row.to(tl.int64) * out_width
    at = _in_first_row(sample, channel, column, channels, out_height, out_width, CHANNELS_LAST)
    _store(
        total * gain.to(A),
        (sample < samples) & (column < out_width),
        channel < channels,
        row_at * pixel + at,
        c_ptr,
        y_ptr,
        d,
        noise_ptr,
        row_at + sample.to(tl.int64) * noise_stride + column,
        b,
        alpha,
        act_gain,
        clamp,
        ACT,
        CLAMPED,
    )


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Pair,
    down: Pair,
    padding: Padding,
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """Upsample, pad, filter and downsample `x [N, C, H, W]`."""
    _, c = _filtered(x, _Fir(f, up, down, padding, flip_filter, gain), None, keep=True)
    assert c is not None
    return c


def upfirdn2d_demod_act(
    x: Tensor,
    f: Tensor | None,
    up: Pair,
    down: Pair,
    padding: Padding,
    flip_filter: bool,
    fir_gain: float,
    epilogue: Epilogue,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """`demod_act(upfirdn2d(x, …), …)` in one pass over memory, and the filter's result c too if `keep`."""
    y, c = _filtered(x, _Fir(f, up, down, padding, flip_filter, fir_gain), epilogue, keep)
    assert y is not None
    return y, c


class _Fir(NamedTuple):
    """The arguments of upfirdn2d besides its images."""

    f: Tensor | None
    up: Pair
    down: Pair
    padding: Padding
    flip: bool
    gain: float

    @property
    def slides(self) -> bool:
        """The sliding kernel serves it: StyleGAN2's filter, and adaptive augmentation's, whose 12 × 12 products would
        fill no thread's registers."""
        if self.f is None:
            return False
        taps = self.f.shape[-1]
        square = self.f.ndim == 1 or self.f.shape[0] == taps
        factors = (*self.up, *self.down)
        return (
            square
            and (taps == 4 or (taps == 12 and self.f.ndim == 1))
            and factors in ((1, 1, 1, 1), (2, 2, 1, 1), (1, 1, 2, 2))
        )


class _Tiles(NamedTuple):
    """How the outputs of a row, or of a strip of rows, are shared out among programs.

    Args:
        q, v: sizes of a tile.
        vector: elements that divide a row along V, at most as many as a thread is to move at once.
        channels, columns, images: numbers of tiles along these; images are samples, or planes where V holds columns.
    """

    q: int
    v: int
    vector: int
    channels: int
    columns: int
    images: int

    @property
    def programs(self) -> int:
        """Of one row or strip."""
        return self.channels * self.columns * self.images


def _tiles(x: Tensor, size: Sequence[int], channels_last: bool, tile: Mapping[str, int]) -> _Tiles:
    """Tiles of outputs of the given size, no larger than small images need."""
    n, c, _, w = size
    along_v, along_q = (c, w) if channels_last else (w, n * c)
    whole_v, whole_q = (triton.next_power_of_2(max(1, size)) for size in (along_v, along_q))
    v = min(whole_v, tile["neighbours"])
    q = min(whole_q, tile["elements"] // v)
    v = min(whole_v, tile["elements"] // q)
    vector = math.gcd(along_v, max(1, tile["vector_bytes"] // x.element_size()))
    of_v, of_q = triton.cdiv(along_v, v), triton.cdiv(along_q, q)
    return _Tiles(q, v, vector, *((of_v, of_q, n) if channels_last else (1, of_v, of_q)))


def _strip_rows(rows: int, programs: int, tile: Mapping[str, int]) -> int:
    """Rows of a strip: the more, the fewer rows of pixels are read twice, but few enough to occupy a GPU."""
    strip = min(tile["rows"], rows)
    while strip > tile["least_rows"] and programs * triton.cdiv(rows, strip) < tile["programs"]:
        strip //= 2
    return strip


def _filtered(
    x: Tensor, fir: _Fir, epilogue: Epilogue | None, keep: bool
) -> tuple[Tensor | None, Tensor | None]:
    """What follows the filter, if anything does, and the filter's result, if it is kept."""
    x = in_layout_of(x, x)
    taps = filter_taps(fir.f)
    size = filtered_size(x.shape, taps, fir.up, fir.down, fir.padding)
    name = "upfirdn2d_fwd_kernel" if fir.slides else "upfirdn2d_generic_kernel"
    shape = "channels_last" if memory_format_of(x) == torch.channels_last else "planes"

    def run(configuration: Configuration) -> tuple[Tensor | None, Tensor | None]:
        c = empty_in_layout_of(x, size) if keep else None
        y = None if epilogue is None else empty_in_layout_of(x, size)
        _launch(x, fir, size, c, y, epilogue or Epilogue(), configuration)
        return y, c

    problem = f"{list(x.shape)} taps={taps} up={fir.up} down={fir.down}"
    return configured(name, x, shape, run, problem)


def _launch(
    x: Tensor,
    fir: _Fir,
    size: tuple[int, int, int, int],
    c: Tensor | None,
    y: Tensor | None,
    epilogue: Epilogue,
    configuration: Configuration,
) -> None:
    """Write the filter's result, `size` its shape, to c and what follows it to y."""
    if 0 in size:
        return
    channels_last = memory_format_of(x) == torch.channels_last
    tiles = _tiles(x, size, channels_last, configuration.tile)
    samples, channels, out_height, out_width = size
    if channels_last:
        channels //= tiles.vector
    else:
        out_width //= tiles.vector
    (up_x, up_y), (down_x, down_y), (pad_x, _, pad_y, _) = fir.up, fir.down, fir.padding
    taps_y, taps_x = filter_taps(fir.f)
    d, noise, b, act, alpha, act_gain, clamp = epilogue
    per_sample = noise is not None and noise.ndim == 4 and noise.shape[0] > 1
    arguments = (
        *(x, for_sums(fir.f, x), c, y, *(for_sums(t, x) for t in (d, noise, b))),
        size[2] * size[3] if per_sample else 0,
        *(fir.gain, alpha, act_gain, clamp, fir.flip),
        *(samples, channels, *x.shape[2:], out_height, out_width, tiles.channels, tiles.columns),
    )
    options = {
        "ACT": act,
        "CLAMPED": clamp >= 0,
        "CHANNELS_LAST": channels_last,
        "VEC": tiles.vector,
        "Q": tiles.q,
        "V": tiles.v,
        "SEPARABLE": fir.f is not None and fir.f.ndim == 1,
        **configuration.options,
        "num_warps": min(configuration.warps, max(1, tiles.q * tiles.v // (32 * tiles.vector))),
    }
    if fir.slides:
        steps = triton.cdiv(out_height, up_y)
        rows = _strip_rows(steps, tiles.programs, configuration.tile)
        strips = triton.cdiv(steps, rows)
        launch(
            upfirdn2d_fwd_kernel,
            tiles.programs * strips,
            x,
            *arguments,
            *(pad_x, pad_y // up_y, strips, rows),
            UP=up_y,
            DOWN=down_y,
            TAPS=taps_y,
            PHASE=pad_y % up_y,
            **options,
        )
    else:
        launch(
            upfirdn2d_generic_kernel,
            tiles.programs * out_height,
            x,
            *arguments,
            *(pad_x, pad_y, up_x, up_y, down_x, down_y, taps_x, taps_y),
            **options,
        )

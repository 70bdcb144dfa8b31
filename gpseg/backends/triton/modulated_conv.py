"""The modulated layer's convolution as a product of matrices, without an unfolded image, in its three directions.

Forward and data gradient are one product: a row for each output pixel of one sample, a column for each output channel,
the sum over kernel taps times input channels. A transposed convolution's output pixels fall into stride² phases, whose
pixels see the same taps: inserted zeros are never multiplied. The weight gradient sums over pixels instead, with the
taps of one image as columns of their own.

The style scales the left operand, on its way to the tensor cores through registers.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpseg.backends.contract import Epilogue
from gpseg.backends.convolution import multiplies_in_tf32, outputs_first
from gpseg.backends.layout import empty_in_layout_of, for_sums, in_layout_of
from gpseg.backends.resampling import Convolution
from gpseg.backends.triton.activation import finished
from gpseg.backends.triton.configurations import Configuration
from gpseg.backends.triton.launch import configured, launch

_UNIT = 8
"""Channels are passed as multiples of up to as many: 16 bytes of a half type."""

_WAVES = 4
"""Programs that the weight gradient makes for each multiprocessor, where there is work for them."""

_LEAST_STEPS = 8
"""Patches of pixels that one of them adds at least."""

_FAR = tl.constexpr(-(1 << 30))
"""Row of a pixel that does not exist: no tap gets into the image from there."""


class Geometry(NamedTuple):
    """A convolution of `[N, in_h, in_w, in_c]` to `[N, out_h, out_w, out_c]`, as images lie in memory.

    Channels come divided by what the compiler shall know them to be multiples of. Kernel, stride, direction and these
    units are constants to it.
    """

    in_h: int
    in_w: int
    in_units: int
    out_h: int
    out_w: int
    out_units: int
    pad_y: int
    pad_x: int
    kernel_h: tl.constexpr
    kernel_w: tl.constexpr
    stride: tl.constexpr
    transposed: tl.constexpr
    in_unit: tl.constexpr
    out_unit: tl.constexpr


class Taps(NamedTuple):
    """The `count` taps that a phase sees along one axis: every TAP_STEP-th from `first` on.

    The i-th of them reads the input `shift` ± i pixels from where the output pixel stands.
    """

    first: Any
    count: Any
    shift: Any


class Tile(NamedTuple):
    """What a program makes: output pixels `[BM]` of one sample and phase, by output channels `[BN]`.

    Args:
        sample: int64.
        index, count: which of the sample's tiles of pixels it is, and of how many.
        phase_y, phase_x: its phase, whose pixels form a grid of their own.
        first_y: row of that grid that its first pixel is in.
        y, x, inside: pixels of that grid, and whether they exist.
        first_channel, channels, exists: first channel, channels from there, and whether they exist.
    """

    sample: Any
    index: Any
    count: Any
    phase_y: Any
    phase_x: Any
    first_y: Any
    y: Any
    x: Any
    inside: Any
    first_channel: Any
    channels: Any
    exists: Any


class Store(NamedTuple):
    """Where a program stores its tile: elements from `base` (int64) on, `[BM, BN]`; `pixel + pixels` in the sample."""

    base: Any
    offsets: Any
    mask: Any
    pixel: Any
    pixels: Any


class Columns(NamedTuple):
    """Columns `[B]` of a matrix made of an image, pixels by taps and channels: (dy, dx) from the pixel."""

    channel: Any
    dy: Any
    dx: Any
    exists: Any


class Patch(NamedTuple):
    """A patch of `[BK]` pixels of the smaller image: (top + y, left + x) of a sample."""

    sample: Any
    top: Any
    left: Any
    y: Any
    x: Any
    exists: Any


@triton.jit
def _taps(phase, pad, KERNEL: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr):
    if TRANSPOSED:
        first = (phase + pad) % STRIDE
        return Taps(first, (KERNEL - first + STRIDE - 1) // STRIDE, (phase + pad) // STRIDE)
    else:
        return Taps(0, KERNEL, -pad)


@triton.jit
def _tile(g, BM: tl.constexpr, BN: tl.constexpr):
    """The program's tile; neighbours share input pixels: channels go first, then phases, pixels and samples."""
    STEP: tl.constexpr = g.stride if g.transposed else 1
    out_c = g.out_units * g.out_unit
    channel_tiles = tl.cdiv(out_c, BN)
    count = tl.cdiv(tl.cdiv(g.out_h, STEP) * tl.cdiv(g.out_w, STEP), BM) * STEP * STEP
    program = tl.program_id(0)
    index = program // channel_tiles % count
    phase_y = index % (STEP * STEP) // STEP
    phase_x = index % STEP
    rows = tl.cdiv(g.out_h - phase_y, STEP)
    columns = tl.cdiv(g.out_w - phase_x, STEP)
    divisor = tl.maximum(columns, 1)  # a phase may be empty
    first = index // (STEP * STEP) * BM
    m = first + tl.arange(0, BM)
    first_channel = program % channel_tiles * BN
    channels = tl.arange(0, BN)
    return Tile(
        (program // channel_tiles // count).to(tl.int64),
        index,
        count,
        phase_y,
        phase_x,
        first // divisor,
        m // divisor,
        m % divisor,
        m < rows * columns,
        first_channel,
        channels,
        first_channel + channels < out_c,
    )


@triton.jit
def _store(g, tile):
    STEP: tl.constexpr = g.stride if g.transposed else 1
    out_c = g.out_units * g.out_unit
    pixel = (tile.phase_y + STEP * tile.first_y) * g.out_w + tile.phase_x
    pixels = STEP * ((tile.y - tile.first_y) * g.out_w + tile.x)
    return Store(
        (tile.sample * g.out_h * g.out_w + pixel) * out_c + tile.first_channel,
        (pixels * out_c)[:, None] + tile.channels[None, :],
        tile.inside[:, None] & tile.exists[None, :],
        pixel,
        pixels,
    )


@triton.jit
def _within(at, size):
    """0 <= at < size."""
    return at.to(tl.uint32, bitcast=True) < size


@triton.jit
def _scaled(x, s):
    """x · s, rounded to x's type as a pass of its own would round it."""
    return (x.to(tl.float32) * s).to(x.dtype)


@triton.jit
def _product(x_ptr, w_ptr, s_ptr, g, tile, BK: tl.constexpr, PRECISION: tl.constexpr):
    """The tile of conv(w, s·x) in float32. All taps of BK channels go first: the pixels they share are read again soon."""
    STEP: tl.constexpr = 1 if g.transposed else g.stride
    TAP_STEP: tl.constexpr = g.stride if g.transposed else 1
    SIGN: tl.constexpr = -1 if g.transposed else 1
    in_c = g.in_units * g.in_unit
    down = _taps(tile.phase_y, g.pad_y, g.kernel_h, g.stride, g.transposed)
    across = _taps(tile.phase_x, g.pad_x, g.kernel_w, g.stride, g.transposed)
    y = tl.where(tile.inside, tile.y * STEP, _FAR)
    x = tile.x * STEP
    first_y = tile.first_y * STEP
    ks = tl.arange(0, BK)
    pixels = (tile.y * STEP - first_y) * g.in_w + x
    x_ptrs = x_ptr + (tile.sample * g.in_h + first_y) * g.in_w * in_c
    x_ptrs += (pixels * in_c)[:, None] + ks[None, :]
    row = g.kernel_h * g.kernel_w * in_c
    w_ptrs = w_ptr + tile.first_channel.to(tl.int64) * row
    w_ptrs += (tile.channels * row)[None, :] + ks[:, None]

    sums = tl.zeros([tile.y.shape[0], tile.channels.shape[0]], tl.float32)
    i = 0
    j = 0
    channel = 0
    for _ in range(down.count * across.count * tl.cdiv(in_c, BK)):
        dy = down.shift + SIGN * i
        dx = across.shift + SIGN * j
        tap = (down.first + TAP_STEP * i) * g.kernel_w + across.first + TAP_STEP * j
        inside = _within(y + dy, g.in_h) & _within(x + dx, g.in_w)
        known = channel + ks < in_c
        a_mask = inside[:, None] & known[None, :]
        b_mask = known[:, None] & tile.exists[None, :]
        a = tl.load(x_ptrs + ((dy * g.in_w + dx) * in_c + channel), a_mask, 0.0)
        b = tl.load(w_ptrs + (tap * in_c + channel), b_mask, 0.0)
        if s_ptr is not None:
            s = tl.load(s_ptr + tile.sample * in_c + channel + ks, known, 0.0)
            a = _scaled(a, s[None, :])
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
        # the next tap without a division
        j += 1
        i += tl.where(j == across.count, 1, 0)
        j = tl.where(j == across.count, 0, j)
        channel += tl.where(i == down.count, BK, 0)
        i = tl.where(i == down.count, 0, i)
    return sums


@triton.jit(do_not_specialize=["noise_stride"])
def modulated_conv_fwd_kernel(
    x_ptr,
    w_ptr,
    s_ptr,
    d_ptr,
    noise_ptr,
    b_ptr,
    y_ptr,
    c_ptr,
    g,
    noise_stride,
    alpha: tl.float64,
    gain: tl.float64,
    clamp: tl.float64,
    ACT: tl.constexpr,
    CLAMPED: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """y = clamp(gain · act(d · c + noise + b)) and c = conv(w, s·x): BM pixels by BN channels a program.

    y is made of what c is rounded to, stored or not: the backward, which starts from c, then clamps the same pixels.
    """
    tile = _tile(g, BM, BN)
    to = _store(g, tile)
    out_c = g.out_units * g.out_unit
    c = _product(x_ptr, w_ptr, s_ptr, g, tile, BK, PRECISION).to(y_ptr.dtype.element_ty)
    if c_ptr is not None:
        tl.store(c_ptr + to.base + to.offsets, c, to.mask)
    z = c.to(tl.float32)
    if d_ptr is not None:
        d_ptrs = d_ptr + tile.sample * out_c + tile.first_channel + tile.channels
        z *= tl.load(d_ptrs, tile.exists)[None, :]
    if noise_ptr is not None:
        noise_ptrs = noise_ptr + tile.sample * noise_stride + to.pixel + to.pixels
        z += tl.load(noise_ptrs, tile.inside)[:, None]
    if b_ptr is not None:
        z += tl.load(b_ptr + tile.first_channel + tile.channels, tile.exists)[None, :]
    A: tl.constexpr = tl.float32
    y = finished(z, alpha.to(A), gain.to(A), clamp.to(A), ACT, CLAMPED)
    tl.store(y_ptr + to.base + to.offsets, y.to(y_ptr.dtype.element_ty), to.mask)


@triton.jit
def modulated_conv_bwd_kernel(
    dc_ptr,
    w_ptr,
    s_ptr,
    x_ptr,
    dx_ptr,
    partial_ptr,
    g,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """dx = s · du for du = conv(w, dc), and sums of x · du over the tile: BM pixels by BN channels a program.

    The geometry is the gradient's, from dc to x; `partial [N, tiles of pixels, channels]` takes the sums, in float32.
    """
    tile = _tile(g, BM, BN)
    to = _store(g, tile)
    out_c = g.out_units * g.out_unit
    du = _product(dc_ptr, w_ptr, None, g, tile, BK, PRECISION)
    x = tl.load(x_ptr + to.base + to.offsets, to.mask, 0.0)
    ds = tl.sum(tl.where(to.mask, x.to(tl.float32) * du, 0.0), 0)
    channels = tile.first_channel + tile.channels
    partial_ptrs = partial_ptr + (tile.sample * tile.count + tile.index) * out_c + channels
    tl.store(partial_ptrs, ds, tile.exists)
    s = tl.load(s_ptr + tile.sample * out_c + channels, tile.exists)
    dx = _scaled(du.to(dx_ptr.dtype.element_ty), s[None, :])
    tl.store(dx_ptr + to.base + to.offsets, dx, to.mask)


@triton.jit
def _columns(first, c, g, TAPS: tl.constexpr, B: tl.constexpr):
    """Columns `first` and on, of taps times channels or, without TAPS, of channels."""
    column = first + tl.arange(0, B)
    if TAPS:
        tap = column // c
        dy = tap // g.kernel_w - g.pad_y
        dx = tap % g.kernel_w - g.pad_x
        return Columns(column % c, dy, dx, column < g.kernel_h * g.kernel_w * c)
    else:
        nothing = tl.zeros([B], tl.int32)
        return Columns(column, nothing, nothing, column < c)


@triton.jit
def _gathered(ptr, patch, columns, h, w, c, STEP: tl.constexpr, AXIS: tl.constexpr):
    """A patch's pixels, which stand STEP apart in an image `[N, h, w, c]`, by columns, which run along AXIS; else 0."""
    base = ((patch.sample * h + STEP * patch.top) * w + STEP * patch.left) * c
    pixels = STEP * (patch.y * w + patch.x) * c
    offsets = (columns.dy * w + columns.dx) * c + columns.channel
    y = tl.where(patch.exists, STEP * (patch.top + patch.y), _FAR)
    x = STEP * (patch.left + patch.x)
    at = tl.expand_dims(pixels, AXIS) + tl.expand_dims(offsets, 1 - AXIS)
    mask = tl.expand_dims(columns.exists, 1 - AXIS)
    mask &= _within(tl.expand_dims(y, AXIS) + tl.expand_dims(columns.dy, 1 - AXIS), h)
    mask &= _within(tl.expand_dims(x, AXIS) + tl.expand_dims(columns.dx, 1 - AXIS), w)
    return tl.load(ptr + base + at, mask, 0.0)


@triton.jit(do_not_specialize=["patches", "steps"])
def modulated_conv_wgrad_kernel(
    x_ptr,
    dc_ptr,
    s_ptr,
    partial_ptr,
    g,
    patches,
    steps,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PATCH_W: tl.constexpr,
):
    """dw[i, o, tap] = Σ (s·x)[pixel, i] · dc[pixel, o] over `steps` patches: BM columns of s·x by BN of dc a program.

    Pixels are those of the smaller image, BK at a time; the tap moves the other image's, and its columns are taps times
    channels. `partial [splits, columns of s·x, columns of dc]` in float32; `patches` of all samples are split.
    """
    in_c = g.in_units * g.in_unit
    out_c = g.out_units * g.out_unit
    X_STEP: tl.constexpr = 1 if g.transposed else g.stride
    DC_STEP: tl.constexpr = g.stride if g.transposed else 1
    m = in_c if g.transposed else g.kernel_h * g.kernel_w * in_c
    n = g.kernel_h * g.kernel_w * out_c if g.transposed else out_c
    h = g.in_h if g.transposed else g.out_h
    w = g.in_w if g.transposed else g.out_w

    # neighbours share pixels: they make all of a split
    m_tiles = tl.cdiv(m, BM)
    n_tiles = tl.cdiv(n, BN)
    program = tl.program_id(0)
    first_n = program % n_tiles * BN
    first_m = program // n_tiles % m_tiles * BM
    split = program // n_tiles // m_tiles
    u_columns = _columns(first_m, in_c, g, not g.transposed, BM)
    dc_columns = _columns(first_n, out_c, g, g.transposed, BN)

    PATCH_H: tl.constexpr = BK // PATCH_W
    y = tl.arange(0, BK) // PATCH_W
    x = tl.arange(0, BK) % PATCH_W
    across = tl.cdiv(w, PATCH_W)
    down = tl.cdiv(h, PATCH_H)
    begin = split * steps
    left = begin % across * PATCH_W
    top = begin // across % down * PATCH_H
    sample = (begin // across // down).to(tl.int64)
    sums = tl.zeros([BM, BN], tl.float32)
    for _ in range(begin, tl.minimum(begin + steps, patches)):
        patch = Patch(sample, top, left, y, x, (top + y < h) & (left + x < w))
        u = _gathered(x_ptr, patch, u_columns, g.in_h, g.in_w, in_c, X_STEP, AXIS=0)
        s = tl.load(s_ptr + sample * in_c + u_columns.channel, u_columns.exists, 0.0)
        dc = _gathered(dc_ptr, patch, dc_columns, g.out_h, g.out_w, out_c, DC_STEP, AXIS=1)
        sums = tl.dot(_scaled(u, s[:, None]), dc, sums, input_precision=PRECISION)
        # the next patch without a division
        left += PATCH_W
        top += tl.where(left >= w, PATCH_H, 0)
        left = tl.where(left >= w, 0, left)
        sample += tl.where(top >= h, 1, 0)
        top = tl.where(top >= h, 0, top)

    rows = first_m + tl.arange(0, BM)
    columns = first_n + tl.arange(0, BN)
    partial_ptrs = partial_ptr + (split.to(tl.int64) * m + rows)[:, None] * n + columns[None, :]
    tl.store(partial_ptrs, sums, u_columns.exists[:, None] & dc_columns.exists[None, :])


def fused_conv(
    x: Tensor,
    w: Tensor,
    conv: Convolution,
    size: Sequence[int],
    s: Tensor | None,
    epilogue: Epilogue,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """The epilogue of c = conv2d(s · x, w) in one kernel, and c too if `keep`."""
    d, noise, b, act, alpha, gain, clamp = epilogue
    x, y = in_layout_of(x, x), empty_in_layout_of(x, size)
    c = torch.empty_like(y) if keep else None
    sides = [for_sums(t, x) for t in (s, d, noise, b)]
    pixels = size[2] * size[3]
    noise_stride = pixels if noise is not None and noise.numel() > pixels else 0
    w = outputs_first(w, conv.transposed)
    geometry = _geometry(x.shape, size, w.shape, conv)

    def run(configuration: Configuration) -> None:
        tiles, channel_tiles = _tiles(size, conv, configuration)
        launch(
            modulated_conv_fwd_kernel,
            size[0] * tiles * channel_tiles,
            x,
            x,
            w,
            *sides,
            y,
            c,
            geometry,
            noise_stride,
            alpha,
            gain,
            clamp,
            ACT=act,
            CLAMPED=clamp >= 0,
            PRECISION=_precision(x),
            **configuration.tile,
            **configuration.options,
        )

    shape = _shape(_pixels(size, conv), size[1])
    configured("modulated_conv_fwd_kernel", x, shape, run, f"{size[0]} {geometry} {_precision(x)}")
    return y, c


def fused_conv_input_grad(
    dc: Tensor, w: Tensor, conv: Convolution, x: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients (dx, ds) of c = conv2d(s · x, w), in one kernel; conv and w are the forward's."""
    gradient = Convolution(conv.stride, conv.padding, not conv.transposed)
    x, dc, dx = in_layout_of(x, x), in_layout_of(dc, x), empty_in_layout_of(x, x.shape)
    w, scale = outputs_first(w, gradient.transposed), for_sums(s, x)
    geometry = _geometry(dc.shape, x.shape, w.shape, gradient)

    def run(configuration: Configuration) -> Tensor:
        tiles, channel_tiles = _tiles(x.shape, gradient, configuration)
        partial = x.new_empty((x.shape[0], tiles, x.shape[1]), dtype=torch.float32)
        launch(
            modulated_conv_bwd_kernel,
            x.shape[0] * tiles * channel_tiles,
            x,
            dc,
            w,
            scale,
            x,
            dx,
            partial,
            geometry,
            PRECISION=_precision(x),
            **configuration.tile,
            **configuration.options,
        )
        return partial.sum(1)

    shape = _shape(_pixels(x.shape, gradient), x.shape[1])
    ds = configured(
        "modulated_conv_bwd_kernel", x, shape, run, f"{x.shape[0]} {geometry} {_precision(x)}"
    )
    return dx, ds.to(s.dtype)


def fused_conv_weight_grad(
    dc: Tensor, w_size: Sequence[int], conv: Convolution, x: Tensor, s: Tensor
) -> Tensor:
    """Gradient of c = conv2d(s · x, w) with respect to w, of the given size; conv is the forward's."""
    x, dc, scale = in_layout_of(x, x), in_layout_of(dc, x), for_sums(s, x)
    (samples, in_c, *_), out_c, taps = x.shape, dc.shape[1], [*w_size[2:]]
    rows, columns = ([in_c], [*taps, out_c]) if conv.transposed else ([*taps, in_c], [out_c])
    height, width = (x if conv.transposed else dc).shape[2:]
    geometry = _geometry(x.shape, dc.shape, w_size, conv)

    def run(configuration: Configuration) -> Tensor:
        BM, BN, BK = (configuration.tile[name] for name in ("BM", "BN", "BK"))
        patch_w = min(BK, triton.next_power_of_2(width))
        patches = samples * triton.cdiv(height, BK // patch_w) * triton.cdiv(width, patch_w)
        tiles = triton.cdiv(math.prod(rows), BM) * triton.cdiv(math.prod(columns), BN)
        steps, splits = _split(patches, tiles, x.device)
        partial = x.new_empty((splits, *rows, *columns), dtype=torch.float32)
        launch(
            modulated_conv_wgrad_kernel,
            splits * tiles,
            x,
            x,
            dc,
            scale,
            partial,
            geometry,
            patches,
            steps,
            PRECISION=_precision(x),
            PATCH_W=patch_w,
            **configuration.tile,
            **configuration.options,
        )
        return partial.sum(0).to(x.dtype)

    shape = _shape(math.prod(rows), math.prod(columns))
    dw = configured(
        "modulated_conv_wgrad_kernel", x, shape, run, f"{samples} {geometry} {_precision(x)}"
    )
    return dw.permute((0, 3, 1, 2) if conv.transposed else (3, 2, 0, 1)).contiguous()


def _geometry(
    size_in: Sequence[int], size_out: Sequence[int], w_size: Sequence[int], conv: Convolution
) -> Geometry:
    (_, in_c, in_h, in_w), (_, out_c, out_h, out_w) = size_in, size_out
    in_unit, out_unit = math.gcd(in_c, _UNIT), math.gcd(out_c, _UNIT)
    constants = *w_size[2:], conv.stride, conv.transposed, in_unit, out_unit
    return Geometry(
        *(in_h, in_w, in_c // in_unit),
        *(out_h, out_w, out_c // out_unit),
        *conv.padding,
        *map(tl.constexpr, constants),
    )


def _pixels(size: Sequence[int], conv: Convolution) -> int:
    """Pixels of the largest phase of an output of this size."""
    step = conv.stride if conv.transposed else 1
    return triton.cdiv(size[2], step) * triton.cdiv(size[3], step)


def _tiles(size: Sequence[int], conv: Convolution, configuration: Configuration) -> tuple[int, int]:
    """Tiles of pixels, in all phases, of an output of this size, and tiles of channels."""
    phases = conv.stride**2 if conv.transposed else 1
    tiles = phases * triton.cdiv(_pixels(size, conv), configuration.tile["BM"])
    return tiles, triton.cdiv(size[1], configuration.tile["BN"])


def _split(patches: int, tiles: int, device: torch.device) -> tuple[int, int]:
    """Patches that a program of the weight gradient adds, and parts that the sum thus falls into."""
    wanted = triton.cdiv(_WAVES * _multiprocessors(device), tiles)
    steps = max(triton.cdiv(patches, max(min(wanted, patches // _LEAST_STEPS), 1)), 1)
    return steps, triton.cdiv(patches, steps)


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _shape(rows: int, columns: int) -> str:
    """Shape class of a product of so many rows and columns."""
    if columns <= 16:
        return "few columns"  # an image of colours
    if rows <= 64:
        return "few rows"
    return "32 columns" if columns <= 32 else "64 columns" if columns <= 64 else "large"


def _precision(x: Tensor) -> str:
    return "tf32" if multiplies_in_tf32(x) else "ieee"

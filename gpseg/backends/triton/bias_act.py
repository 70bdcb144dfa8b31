"""clamp(gain · act(d · x + noise + b)) and its gradient, and bias_act's second derivative.

bias_act is demod_act without d and noise, scale_channels is demod_act with d alone. All kernels see memory as
`[samples, rows, columns]`, columns contiguous: rows are channels and columns pixels, or, in channels_last, the other way
round. What belongs to a channel (d, b) and to a pixel (noise) is thus one number for a row or one for a column, and the
gradients are sums along the columns or the rows of what the pass over memory has at hand.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpseg.backends.contract import Epilogue
from gpseg.backends.layout import (
    accumulate_dtype,
    empty_in_layout_of,
    flattened,
    for_sums,
    in_layout_of,
)
from gpseg.backends.triton import activation
from gpseg.backends.triton.configurations import Configuration
from gpseg.backends.triton.launch import configured, launch

_VECTOR = 16
"""Bytes of the widest load and store."""

_SIZES = ["rows", "column_vectors", "walk_rows", "walks", "tiles"]
"""Arguments that no version of a kernel is compiled for: what the compiler must know of them is in VECTOR."""


@triton.jit
def _place(walks, tiles):
    """(sample, walk down the rows, tile along the columns) of this program."""
    program = tl.program_id(0)
    sample = program // tiles // walks
    walk = program // tiles % walks
    return sample.to(tl.int64), walk.to(tl.int64), (program % tiles).to(tl.int64)


@triton.jit
def _tile(ptr, at, inside, ACC: tl.constexpr):
    """Elements `at` of ptr, 0 outside."""
    return tl.load(ptr + at, mask=inside, other=0.0).to(ACC)


@triton.jit
def _side(ptr, sample, at, size, none: tl.constexpr, ACC: tl.constexpr):
    """A sample's elements `at` of the side input ptr [samples, size]; `none` if there is no such input."""
    if ptr is None:
        terms = tl.full(at.shape, none, ACC)
    else:
        terms = tl.load(ptr + sample * size + at, mask=at < size, other=none)
    return terms


@triton.jit
def _store_row_sums(ptr, terms, part, row, rows):
    """Sums along the columns, if ptr [parts, rows] wants them."""
    if ptr is not None:
        tl.store(ptr + part * rows + row, tl.sum(terms, 1, keep_dims=True), mask=row < rows)


@triton.jit
def _store_column_sums(ptr, terms, part, column, columns):
    """Sums down the rows, if ptr [parts, columns] wants them."""
    if ptr is not None:
        sums = tl.sum(terms, 0, keep_dims=True)
        tl.store(ptr + part * columns + column, sums, mask=column < columns)


@triton.jit(do_not_specialize=_SIZES)
def bias_act_fwd_kernel(
    x_ptr,
    d_ptr,
    noise_ptr,
    b_ptr,
    y_ptr,
    rows,
    column_vectors,
    walk_rows,
    walks,
    tiles,
    alpha: tl.float64,
    gain: tl.float64,
    clamp: tl.float64,
    ACT: tl.constexpr,
    CLAMPED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SHARED_NOISE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """y = clamp(gain · act(d · x + noise + b)) for x `[samples, rows, columns]`, over a walk down `walk_rows` rows.

    d is `[samples, channels]`, noise `[samples|1, pixels]`, b `[channels]`, each may be None. A row is
    `column_vectors` times VECTOR elements long: so the compiler knows that rows start at whole vectors.
    """
    ACC: tl.constexpr = activation.accumulated(x_ptr.dtype.element_ty)
    sample, walk, tile = _place(walks, tiles)
    noise_sample = 0 if SHARED_NOISE else sample
    columns = tl.cast(column_vectors, tl.int64) * VECTOR
    column = tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    if CHANNELS_LAST:
        d = _side(d_ptr, sample, column, columns, 1.0, ACC)
        b = _side(b_ptr, 0, column, columns, 0.0, ACC)
    else:
        noise = _side(noise_ptr, noise_sample, column, columns, 0.0, ACC)

    first = walk * walk_rows
    for start in range(first, tl.minimum(first + walk_rows, rows), BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)[:, None]
        if CHANNELS_LAST:
            noise = _side(noise_ptr, noise_sample, row, rows, 0.0, ACC)
        else:
            d = _side(d_ptr, sample, row, rows, 1.0, ACC)
            b = _side(b_ptr, 0, row, rows, 0.0, ACC)
        at = (sample * rows + row) * columns + column
        inside = (row < rows) & (column < columns)
        z = d * _tile(x_ptr, at, inside, ACC) + noise + b
        y = activation.finished(
            z, alpha.to(ACC), gain.to(ACC), clamp.to(ACC), ACT=ACT, CLAMPED=CLAMPED
        )
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def bias_act_bwd_kernel(
    dy_ptr,
    x_ptr,
    d_ptr,
    noise_ptr,
    b_ptr,
    dx_ptr,
    row_sum_ptr,
    row_product_ptr,
    column_sum_ptr,
    column_product_ptr,
    rows,
    column_vectors,
    walk_rows,
    walks,
    tiles,
    alpha: tl.float64,
    gain: tl.float64,
    clamp: tl.float64,
    ACT: tl.constexpr,
    CLAMPED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SHARED_NOISE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """dx = d · dz, with dz = dy · ∂y/∂z, and sums of dz and of dz · x, over a walk down `walk_rows` rows.

    The sums along a row of a tile go to `row_… [samples, tiles, rows]`, those down a walk to
    `column_… [samples, walks, columns]`, each may be None. The rest is as in `bias_act_fwd_kernel`.
    """
    ACC: tl.constexpr = activation.accumulated(x_ptr.dtype.element_ty)
    sample, walk, tile = _place(walks, tiles)
    noise_sample = 0 if SHARED_NOISE else sample
    columns = tl.cast(column_vectors, tl.int64) * VECTOR
    column = tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    if CHANNELS_LAST:
        d = _side(d_ptr, sample, column, columns, 1.0, ACC)
        b = _side(b_ptr, 0, column, columns, 0.0, ACC)
    else:
        noise = _side(noise_ptr, noise_sample, column, columns, 0.0, ACC)

    column_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], ACC)
    column_product = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], ACC)
    first = walk * walk_rows
    for start in range(first, tl.minimum(first + walk_rows, rows), BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)[:, None]
        if CHANNELS_LAST:
            noise = _side(noise_ptr, noise_sample, row, rows, 0.0, ACC)
        else:
            d = _side(d_ptr, sample, row, rows, 1.0, ACC)
            b = _side(b_ptr, 0, row, rows, 0.0, ACC)
        at = (sample * rows + row) * columns + column
        inside = (row < rows) & (column < columns)
        dy = _tile(dy_ptr, at, inside, ACC)
        x = _tile(x_ptr, at, inside, ACC)
        slope = activation.slope(
            d * x + noise + b, alpha.to(ACC), gain.to(ACC), clamp.to(ACC), ACT=ACT, CLAMPED=CLAMPED
        )
        dz = dy * slope
        tl.store(dx_ptr + at, (d * dz).to(dx_ptr.dtype.element_ty), mask=inside)
        _store_row_sums(row_sum_ptr, dz, sample * tiles + tile, row, rows)
        _store_row_sums(row_product_ptr, dz * x, sample * tiles + tile, row, rows)
        column_sum += dz
        column_product += dz * x
    _store_column_sums(column_sum_ptr, column_sum, sample * walks + walk, column, columns)
    _store_column_sums(column_product_ptr, column_product, sample * walks + walk, column, columns)


@triton.jit(do_not_specialize=_SIZES)
def bias_act_double_bwd_kernel(
    ddx_ptr,
    ddb_ptr,
    dy_ptr,
    x_ptr,
    b_ptr,
    ddy_ptr,
    d2x_ptr,
    row_sum_ptr,
    column_sum_ptr,
    rows,
    column_vectors,
    walk_rows,
    walks,
    tiles,
    alpha: tl.float64,
    gain: tl.float64,
    clamp: tl.float64,
    ACT: tl.constexpr,
    CLAMPED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """ddy = t · ∂y/∂z and d2x = t · dy · ∂²y/∂z², with t = ddx + ddb, and sums of d2x, over a walk.

    Without `d2x` only ddy is made, and dy not read. The rest is as in `bias_act_bwd_kernel`.
    """
    ACC: tl.constexpr = activation.accumulated(x_ptr.dtype.element_ty)
    sample, walk, tile = _place(walks, tiles)
    columns = tl.cast(column_vectors, tl.int64) * VECTOR
    column = tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    if CHANNELS_LAST:
        b = _side(b_ptr, 0, column, columns, 0.0, ACC)
        ddb = _side(ddb_ptr, 0, column, columns, 0.0, ACC)

    column_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], ACC)
    first = walk * walk_rows
    for start in range(first, tl.minimum(first + walk_rows, rows), BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)[:, None]
        if not CHANNELS_LAST:
            b = _side(b_ptr, 0, row, rows, 0.0, ACC)
            ddb = _side(ddb_ptr, 0, row, rows, 0.0, ACC)
        at = (sample * rows + row) * columns + column
        inside = (row < rows) & (column < columns)
        z = _tile(x_ptr, at, inside, ACC) + b
        t = ddb
        if ddx_ptr is not None:
            t += _tile(ddx_ptr, at, inside, ACC)
        slope = activation.slope(
            z, alpha.to(ACC), gain.to(ACC), clamp.to(ACC), ACT=ACT, CLAMPED=CLAMPED
        )
        if d2x_ptr is not None:
            bend = activation.bend(
                z, alpha.to(ACC), gain.to(ACC), clamp.to(ACC), ACT=ACT, CLAMPED=CLAMPED
            )
            d2x = t * _tile(dy_ptr, at, inside, ACC) * bend
            tl.store(d2x_ptr + at, d2x.to(d2x_ptr.dtype.element_ty), mask=inside)
            _store_row_sums(row_sum_ptr, d2x, sample * tiles + tile, row, rows)
            column_sum += d2x
        tl.store(ddy_ptr + at, (t * slope).to(ddy_ptr.dtype.element_ty), mask=inside)
    _store_column_sums(column_sum_ptr, column_sum, sample * walks + walk, column, columns)


class _View(NamedTuple):
    """Dense memory as the kernels see it.

    Args:
        samples, rows, columns: its sizes.
        channels_last: columns are channels and rows pixels, not the other way round.
        repeats: pixels that make one row where columns are channels.
    """

    samples: int
    rows: int
    columns: int
    channels_last: bool
    repeats: int = 1

    @property
    def name(self) -> str:
        """What the fastest way through it depends on."""
        return f"{self.samples}×{self.rows}×{self.columns}"


def _view(x: Tensor, dim: int, epilogue: Epilogue) -> _View:
    """How the kernels see dense x, whose channels are dimension `dim`, under this epilogue."""
    d, noise, b, *_ = epilogue
    if d is noise is b is None:
        return _View(1, 1, x.numel(), channels_last=True)
    outer, channels, inner = flattened(x, dim)
    if inner != 1:
        return _View(outer, channels, inner, channels_last=False)
    samples = 1 if d is noise is None else x.shape[0]
    pixels = outer // max(samples, 1)
    # Where a pixel's channels don't fill whole vectors, those of several pixels do.
    repeats = _vector(x) // math.gcd(channels, _vector(x))
    if noise is not None or pixels % repeats != 0:
        repeats = 1
    return _View(samples, pixels // repeats, channels * repeats, True, repeats)


def _vector(x: Tensor) -> int:
    """Elements of x in the widest load."""
    return _VECTOR // x.element_size()


class _Cut(NamedTuple):
    """A view in tiles. A program takes one tile along the columns and a walk of several down the rows.

    Args:
        view: what is cut.
        vector: elements that every row is a multiple of.
        block_rows, block_columns: sizes of a tile, powers of two.
        walk_rows: rows of a walk.
        walks, tiles: how many there are in a sample, down the rows and along the columns.
    """

    view: _View
    vector: int
    block_rows: int
    block_columns: int
    walk_rows: int
    walks: int
    tiles: int

    @property
    def programs(self) -> int:
        """That it takes."""
        return self.view.samples * self.walks * self.tiles

    @property
    def arguments(self) -> dict[str, Any]:
        """Of a kernel, by name."""
        return {
            "rows": self.view.rows,
            "column_vectors": self.view.columns // self.vector,
            "walk_rows": self.walk_rows,
            "walks": self.walks,
            "tiles": self.tiles,
            "CHANNELS_LAST": self.view.channels_last,
            "VECTOR": self.vector,
            "BLOCK_ROWS": self.block_rows,
            "BLOCK_COLUMNS": self.block_columns,
        }

    def channel_sums(self, x: Tensor, t: Tensor | None) -> Tensor | None:
        """Where a kernel puts its sums `[samples, parts, channels]`, as the gradient of t; None without t."""
        return self._column_sums(x, t) if self.view.channels_last else self._row_sums(x, t)

    def pixel_sums(self, x: Tensor, t: Tensor | None) -> Tensor | None:
        """Where a kernel puts its sums `[samples, parts, pixels]`, as the gradient of t; None without t."""
        return self._row_sums(x, t) if self.view.channels_last else self._column_sums(x, t)

    def _row_sums(self, x: Tensor, t: Tensor | None) -> Tensor | None:
        return _sums(x, t, self.view.samples, self.tiles, self.view.rows)

    def _column_sums(self, x: Tensor, t: Tensor | None) -> Tensor | None:
        return _sums(x, t, self.view.samples, self.walks, self.view.columns)


def _sums(x: Tensor, t: Tensor | None, *size: int) -> Tensor | None:
    return None if t is None else x.new_empty(size, dtype=accumulate_dtype(x.dtype))


def _cut(x: Tensor, view: _View, configuration: Configuration) -> _Cut:
    """The view of x in tiles of at most as many elements as the configuration says.

    A tile's rows are short, so that a warp has a row and sums along it without its neighbours, unless there are too few
    rows to fill the tile.
    """
    budget = configuration.tile
    rows, columns = (triton.next_power_of_2(max(size, 1)) for size in (view.rows, view.columns))
    block_rows = min(rows, budget["elements"] // min(columns, budget["columns"]))
    block_columns = min(columns, budget["elements"] // block_rows)
    tiles = triton.cdiv(view.columns, block_columns)
    # Long walks leave few sums to store and fetch side inputs seldom, but work for the whole GPU comes first.
    down = triton.cdiv(view.rows, block_rows)
    programs_at_most = view.samples * down * tiles
    walk = max(1, min(budget["walk"], programs_at_most // budget["programs"]))
    vector = _vector(x) if view.columns % _vector(x) == 0 else 1
    return _Cut(
        view, vector, block_rows, block_columns, walk * block_rows, triton.cdiv(down, walk), tiles
    )


def _activated(epilogue: Epilogue) -> dict[str, Any]:
    """An epilogue's activation as arguments of a kernel."""
    return {
        "alpha": epilogue.alpha,
        "gain": epilogue.gain,
        "clamp": epilogue.clamp,
        "ACT": epilogue.act,
        "CLAMPED": epilogue.clamp >= 0,
    }


def _sides(epilogue: Epilogue, x: Tensor, view: _View) -> tuple[Tensor | None, ...]:
    """(d, noise, b) as the kernels read them."""
    d, noise, b = (for_sums(t, x) for t in epilogue[:3])
    return _repeated(d, view), noise, _repeated(b, view)


def _repeated(t: Tensor | None, view: _View) -> Tensor | None:
    """A side input of the channels, once for every pixel in a row."""
    return t if t is None or view.repeats == 1 else t.tile((view.repeats,))


def _is_shared(noise: Tensor | None) -> bool:
    """All samples have the same noise."""
    return noise is None or noise.ndim == 2 or noise.shape[0] == 1


def _added(sums: Tensor | None, t: Tensor | None, view: _View) -> Tensor | None:
    """The gradient of t `[channels]` or `[samples, channels]` from a kernel's sums; None without t.

    The order in which torch adds depends on sizes alone, so that the result is the same in every run: with atomics it
    would not be.
    """
    if sums is None or t is None:
        return None
    samples, parts, _ = sums.shape
    parted = sums.view(samples, parts, view.repeats, t.shape[-1])
    return parted.sum((0, 1, 2) if t.ndim == 1 else (1, 2)).to(t.dtype)


def _added_noise(sums: Tensor | None, noise: Tensor | None) -> Tensor | None:
    """The gradient of noise from a kernel's sums `[samples, parts, pixels]`; None without noise."""
    if sums is None or noise is None:
        return None
    return sums.sum((0, 1) if _is_shared(noise) else 1).view(noise.shape).to(noise.dtype)


def _forward(x: Tensor, dim: int, epilogue: Epilogue) -> Tensor:
    """The epilogue of x, whose channels are dimension `dim`."""
    x = in_layout_of(x, x)
    view = _view(x, dim, epilogue)

    def run(configuration: Configuration) -> Tensor:
        cut = _cut(x, view, configuration)
        y = empty_in_layout_of(x, x.shape)
        launch(
            bias_act_fwd_kernel,
            cut.programs,
            x,
            x,
            *_sides(epilogue, x, view),
            y,
            SHARED_NOISE=_is_shared(epilogue.noise),
            **cut.arguments,
            **_activated(epilogue),
            **configuration.options,
        )
        return y

    return configured("bias_act_fwd_kernel", x, "", run, view.name)


def _backward(
    dy: Tensor, x: Tensor, dim: int, epilogue: Epilogue
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dd, dnoise, db) of `_forward`; None where the input is None."""
    dy, x = in_layout_of(dy, x), in_layout_of(x, x)
    view = _view(x, dim, epilogue)
    d, noise, b, *_ = epilogue

    def run(
        configuration: Configuration,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        cut = _cut(x, view, configuration)
        dx = empty_in_layout_of(x, x.shape)
        db, dd = cut.channel_sums(x, b), cut.channel_sums(x, d)
        dnoise = cut.pixel_sums(x, noise)
        launch(
            bias_act_bwd_kernel,
            cut.programs,
            x,
            dy,
            x,
            *_sides(epilogue, x, view),
            dx,
            *((dnoise, None, db, dd) if view.channels_last else (db, dd, dnoise, None)),
            SHARED_NOISE=_is_shared(noise),
            **cut.arguments,
            **_activated(epilogue),
            **configuration.options,
        )
        return dx, _added(dd, d, view), _added_noise(dnoise, noise), _added(db, b, view)

    return configured("bias_act_bwd_kernel", x, "", run, view.name)


def bias_act(
    x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float
) -> Tensor:
    """y = clamp(gain · act(x + b))."""
    return _forward(x, dim, Epilogue(None, None, b, act, alpha, gain, clamp))


def bias_act_backward(
    dy: Tensor,
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor | None]:
    """Gradients (dx, db) of `bias_act`; db is None without a bias."""
    epilogue = Epilogue(None, None, b, act, alpha, gain, clamp)
    dx, _, _, db = _backward(dy, x, dim, epilogue)
    return dx, db


def bias_act_double_backward(
    ddx: Tensor | None,
    ddb: Tensor | None,
    dy: Tensor,
    x: Tensor,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients with respect to (dy, x, b) of <dx, ddx> + <db, ddb>, the outputs of the backward."""
    x = in_layout_of(x, x)
    epilogue = Epilogue(None, None, b, act, alpha, gain, clamp)
    view = _view(x, dim, epilogue)
    straight = act in activation.STRAIGHT

    def run(configuration: Configuration) -> tuple[Tensor, Tensor, Tensor | None]:
        cut = _cut(x, view, configuration)
        ddy = empty_in_layout_of(x, x.shape)
        d2x = torch.zeros_like(ddy) if straight else torch.empty_like(ddy)
        d2b = None if straight else cut.channel_sums(x, b)
        launch(
            bias_act_double_bwd_kernel,
            cut.programs,
            x,
            None if ddx is None else in_layout_of(ddx, x),
            _repeated(for_sums(ddb, x), view),
            None if straight else in_layout_of(dy, x),
            x,
            _repeated(for_sums(b, x), view),
            ddy,
            None if straight else d2x,
            *((None, d2b) if view.channels_last else (d2b, None)),
            **cut.arguments,
            **_activated(epilogue),
            **configuration.options,
        )
        if straight and b is not None:
            return ddy, d2x, torch.zeros_like(b)
        return ddy, d2x, _added(d2b, b, view)

    return configured("bias_act_double_bwd_kernel", x, "", run, view.name)


def scale_channels(x: Tensor, s: Tensor) -> Tensor:
    """x · s for `x [N, C, H, W]`, `s [N, C]`."""
    return demod_act(x, Epilogue(d=s))


def scale_channels_backward(x: Tensor, s: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (dx, ds) of `scale_channels`, in one pass."""
    dx, ds, _, _ = demod_act_backward(dy, x, Epilogue(d=s))
    assert ds is not None
    return dx, ds


def demod_act(c: Tensor, epilogue: Epilogue, overwrites: bool = False) -> Tensor:
    """The epilogue of `c [N, O, H, W]`, always a new tensor."""
    return _forward(c, 1, epilogue)


def demod_act_backward(
    dy: Tensor, c: Tensor, epilogue: Epilogue
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dc, dd, dnoise, db) of `demod_act`; None where the input is None."""
    return _backward(dy, c, 1, epilogue)

"""C++ kernels for the CPU, compiled when the package is installed."""

import functools
import importlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gpseg.backends import convolution
from gpseg.backends import demodulation as _demodulation
from gpseg.backends.compiled import CompiledBackend, flat
from gpseg.backends.contract import Epilogue
from gpseg.backends.demodulation import inverse_norms
from gpseg.backends.layout import (
    accumulate_dtype,
    for_sums,
    in_layout_of,
    memory_format_of,
)
from gpseg.backends.resampling import Convolution

_CHANNEL_MULTIPLE = 16
"""csrc/common/kernels.h: what Winograd's convolution needs of channels."""

_TILE = 4
"""Side of its tiles, in the smaller of the images that go in and come out."""

_KERNEL_SIZES = {1: 36, 2: 100}
"""By stride: numbers in the transformed kernel for each pair of channels, at most."""

_LEAST_TILES = {
    (torch.float32, 1): (16, 32),
    (torch.float32, 2): (16, 96),
    (torch.bfloat16, 1): (32, 64),
}
"""By type and stride, what Winograd's convolution serves: how many tiles make up for transforming the kernel, which then
fits in the caches or does not."""

_CACHED = 4 << 20
"""Bytes of a transformed kernel that fit."""

_LEAST_CHANNELS_IN_NCHW = 32

_FEW = 4
"""1×1 convolutions with so many times fewer outputs than inputs, as ToRGB, are products with a weight for each sample."""

_FEW_OUTPUTS = 4
"""csrc/common/kernels.h: of how many a kernel takes both gradients at once."""

POOLED_BYTES = 4 << 20
"""Results of this size and above are taken from a pool of freed ones, `csrc/cpu/pool.h`: malloc maps memory of
that size afresh, or gives it back when it is freed, and page faults then cost several times the kernel."""


def _load(_: torch.device | None = None) -> str | None:
    build = "pip install --no-build-isolation ."
    try:
        importlib.import_module("gpseg._C")  # registers torch.ops.gpseg_cpp
    except ModuleNotFoundError:
        return f"gpseg._C is not built: {build}"
    except ImportError as error:
        return f"gpseg._C does not load, build it for this torch with {build} ({error})"
    return None


def _empty(x: Tensor, size: Sequence[int]) -> Tensor:
    """An uninitialised tensor of that size, of x's type and in its layout."""
    return _empty_in(memory_format_of(x), x, size)


@functools.cache
def _pool_limit() -> int:
    limit: int = importlib.import_module("gpseg._C").cache_limit()
    return limit


def _empty_in(layout: torch.memory_format, x: Tensor, size: Sequence[int]) -> Tensor:
    if math.prod(size) * x.element_size() < POOLED_BYTES or _pool_limit() == 0:
        return torch.empty(size, dtype=x.dtype, memory_format=layout)
    y: Tensor = torch.ops.gpseg_cpp.empty.default(x, size, layout == torch.channels_last)
    return y


def empty_cache() -> None:
    """Give the memory of freed results that `BACKEND` keeps for its next ones back to the system."""
    if _load() is None:
        importlib.import_module("gpseg._C").empty_cache()


def _winograd_serves(
    x: Tensor,
    w_size: Sequence[int],
    size_in: Sequence[int],
    size_out: Sequence[int],
    conv: Convolution,
    nchw: bool,
) -> bool:
    """Whether Winograd's convolution serves, x being in type and layout what goes in and comes out.

    That is 3×3, transposed or not, at stride 1 or, in float32, 2, with channels in sixteens and enough pixels to make up
    for transforming the kernel. It works in channels_last; bringing NCHW there and back pays with enough channels, and
    where `nchw` says that it saves enough.
    """
    least_tiles = _LEAST_TILES.get((x.dtype, conv.stride))
    last = memory_format_of(x) == torch.channels_last
    if (
        least_tiles is None
        or tuple(w_size[2:]) != (3, 3)
        or w_size[0] % _CHANNEL_MULTIPLE
        or w_size[1] % _CHANNEL_MULTIPLE
        or not (last or (nchw and min(w_size[:2]) >= _LEAST_CHANNELS_IN_NCHW))
        or min(math.prod(size_in[2:]), math.prod(size_out[2:]))
        < 2  # which would be in both layouts
    ):
        return False
    if conv.stride == 2 and conv.transposed:
        whole = [2 * pixels + 1 for pixels in size_in[2:]]
        if tuple(conv.padding) != (0, 0) or [*size_out[2:]] != whole:
            return False
    cached = _KERNEL_SIZES[conv.stride] * w_size[0] * w_size[1] * 4 <= _CACHED
    n, _, h, w = size_in if conv.transposed else size_out
    return n * math.ceil(h / _TILE) * math.ceil(w / _TILE) >= least_tiles[0 if cached else 1]


def _makes_few(x: Tensor, w: Tensor, conv: Convolution) -> bool:
    """Whether this is a 1×1 convolution with few outputs: reading x is all that counts, so the style goes into the weight."""
    out_c, in_c, *kernel = w.shape
    return (
        kernel == [1, 1]
        and conv == Convolution()
        and out_c * _FEW <= in_c
        and min(x.shape[0], x.shape[2] * x.shape[3]) > 0
    )


def _pixels(x: Tensor) -> Tensor:
    """x `[N, C, H, W]` as `[N, C, H·W]`, a view of dense images."""
    return in_layout_of(x, x).flatten(2)


def _sample_weights(w: Tensor, s: Tensor, x: Tensor) -> Tensor:
    """weight · styles `[N, O, I]` of a 1×1 kernel, in x's type."""
    return (w.flatten(1) * s[:, None, :]).to(x.dtype)


def _sample_product(weights: Tensor, x: Tensor) -> Tensor:
    """`weights [N, A, B]` times each pixel of `x [N, B, H, W]`: `[N, A, H, W]` in x's layout."""
    size = (*weights.shape[:2], *x.shape[2:])
    if memory_format_of(x) == torch.channels_last:
        y = torch.bmm(_pixels(x).transpose(1, 2), weights.transpose(1, 2))
        return y.transpose(1, 2).view(size)
    return torch.bmm(weights, _pixels(x)).view(size)


def _pixel_products(dc: Tensor, x: Tensor) -> Tensor:
    """Σ dc · x over the pixels, `[N, O, I]`."""
    # float16 has no room for the sum over a large image
    sums = torch.float32 if x.dtype == torch.float16 else x.dtype
    return torch.bmm(_pixels(in_layout_of(dc, x)).to(sums), _pixels(x).to(sums).transpose(1, 2))


class CppBackend(CompiledBackend):
    """With convolutions of its own: by Winograd's minimal filtering, and for few outputs of 1×1."""

    def __init__(self) -> None:
        super().__init__("cpp", ("cpu",), _load, _empty)

    def fuses(self, x: Tensor, w: Tensor, conv: Convolution, direction: str) -> bool:
        """Whether a convolution of its own serves."""
        if _makes_few(x, w, conv):
            return True
        stride = [conv.stride] * 2
        size = convolution.convolution_size(
            x.shape, w.shape, stride, conv.padding, conv.transposed, [0, 0], 1
        )
        if direction == "forward":
            return _winograd_serves(x, w.shape, x.shape, size, conv, nchw=True)
        nchw = conv.stride == 1  # or two gradients bring the larger images there and back, for less
        if direction == "input_grad":
            adjoint = replace(conv, transposed=not conv.transposed)
            return _winograd_serves(x, w.shape, size, x.shape, adjoint, nchw)
        # the bilinear form of a convolution from the larger images to the smaller
        large, small = (size, x.shape) if conv.transposed else (x.shape, size)
        return _winograd_serves(x, w.shape, large, small, replace(conv, transposed=False), nchw)

    def demodulation(self, weight: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """W2 and d; Σ weight² over the taps is one pass over a weight in any layout."""
        w2 = torch.empty(weight.shape[:2], dtype=accumulate_dtype(weight.dtype))
        self._kernels.squared_norms.default(weight, w2)
        return w2, inverse_norms(w2, s)

    demodulation_backward = staticmethod(_demodulation.demodulation_backward)

    def conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> Tensor:
        """Winograd's convolution where it serves, else torch's."""
        arguments = stride, padding, transposed, output_padding, groups
        conv = _convolution(stride, padding, transposed, groups)
        if conv is not None:
            size = convolution.convolution_size(x.shape, weight.shape, *arguments)
            nchw = conv.stride == 1 or not transposed
            if _winograd_serves(x, weight.shape, x.shape, size, conv, nchw):
                return self.fused_conv(x, weight, conv, size, None, Epilogue(), False)[0]
        return convolution.conv2d(x, weight, *arguments)

    def conv2d_weight_grad(
        self,
        x: Tensor,
        dy: Tensor,
        size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        groups: int,
    ) -> Tensor:
        """By Winograd's minimal filtering where that serves, else torch's."""
        conv = _convolution(stride, padding, False, groups)
        if conv is not None and _winograd_serves(
            x, size, x.shape, dy.shape, conv, nchw=conv.stride == 1
        ):
            return self._weight_grad(x, None, dy, None, conv, size)
        return convolution.conv2d_weight_grad(x, dy, size, stride, padding, groups)

    def fused_conv(
        self,
        x: Tensor,
        w: Tensor,
        conv: Convolution,
        size: Sequence[int],
        s: Tensor | None,
        epilogue: Epilogue,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The epilogue of c = conv2d(s · x, w), and c too if `keep`."""
        if s is not None and _makes_few(x, w, conv):
            c = _sample_product(_sample_weights(w, s, x), x)
            y = c if epilogue.does_nothing else self.demod_act(c, epilogue, not keep)
            return y, c if keep else None
        y, kept = self._winograd(x, w, s, conv, size, epilogue, keep)
        return _in_layout_of(y, x), None if kept is None else _in_layout_of(kept, x)

    def fused_conv_input_grad(
        self, dc: Tensor, w: Tensor, conv: Convolution, x: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients (dx, ds) of c = conv2d(s · x, w); conv and w are the forward's."""
        if _makes_few(x, w, conv):
            products = _pixel_products(dc, x)
            ds = (products * w.flatten(1)).sum(1, dtype=accumulate_dtype(x.dtype))
            weights = _sample_weights(w, s, x).transpose(1, 2)
            return _sample_product(weights, in_layout_of(dc, x)), ds.to(s.dtype)
        ds = torch.empty(s.shape, dtype=accumulate_dtype(x.dtype))
        adjoint = replace(conv, transposed=not conv.transposed)
        dx, _ = self._winograd(dc, w, None, adjoint, x.shape, Epilogue(d=s), False, x, ds)
        return _in_layout_of(dx, x), ds

    def fused_conv_weight_grad(
        self, dc: Tensor, w_size: Sequence[int], conv: Convolution, x: Tensor, s: Tensor
    ) -> Tensor:
        """Gradient of c = conv2d(s · x, w) with respect to w, of the given size; conv is the forward's."""
        if list(w_size[2:]) == [1, 1]:
            dw = (_pixel_products(dc, x) * s[:, None, :]).sum(0)
            return dw.to(x.dtype).view(*w_size)
        if conv.transposed:
            return self._weight_grad(dc, None, x, s, conv, w_size)
        return self._weight_grad(x, s, dc, None, conv, w_size)

    def fuses_gradients(self, x: Tensor, w: Tensor, conv: Convolution) -> bool:
        """Whether there are few outputs of one tap."""
        return _makes_few(x, w, conv) and w.shape[0] <= _FEW_OUTPUTS

    def fused_conv_gradients(
        self, dc: Tensor, w: Tensor, conv: Convolution, x: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients (dx, ds, dw) of c = conv2d(s · x, w) with few outputs, in one sweep over x."""
        sums = accumulate_dtype(x.dtype)
        weight, styles = w.flatten(1).to(sums), s[:, None, :].to(sums)
        dx = self._empty(x, x.shape)
        products = torch.empty(x.shape[0], *weight.shape, dtype=sums)
        self._kernels.few_outputs_gradients.default(
            in_layout_of(dc, x), in_layout_of(x, x), weight * styles, dx, products
        )
        dw = (products * styles).sum(0).to(x.dtype).view(w.shape)
        return dx, (products * weight).sum(1).to(s.dtype), dw

    def _winograd(
        self,
        x: Tensor,
        w: Tensor,
        s: Tensor | None,
        conv: Convolution,
        size: Sequence[int],
        epilogue: Epilogue,
        keep: bool,
        factor: Tensor | None = None,
        product: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The epilogue of c = conv2d(s · x, w) and, if `keep`, c, in channels_last; Σ c · factor into `product`."""
        x = _channels_last(x)
        y = self._empty(x, size)
        c = self._empty(x, size) if keep else None
        self._kernels.winograd_conv.default(
            x,
            w,
            for_sums(s, x),
            conv.stride,
            conv.padding,
            conv.transposed,
            *flat(epilogue, x),
            y,
            c,
            None if factor is None else _channels_last(factor),
            product,
        )
        return y, c

    def _weight_grad(
        self,
        x: Tensor,
        s: Tensor | None,
        dc: Tensor,
        dc_style: Tensor | None,
        conv: Convolution,
        size: Sequence[int],
    ) -> Tensor:
        """Gradient of <conv2d(s · x, w), dc_style · dc> with respect to w of the given size, in x's layout."""
        dw = torch.empty(list(size), dtype=x.dtype, memory_format=torch.channels_last)
        self._kernels.winograd_weight_grad.default(
            _channels_last(x),
            for_sums(s, x),
            _channels_last(dc).to(x.dtype),
            for_sums(dc_style, x),
            conv.stride,
            conv.padding,
            dw,
        )
        return in_layout_of(dw, x)


def _channels_last(x: Tensor) -> Tensor:
    """x in channels_last: torch takes many times as long where planes lie a power of two apart."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    x = x.contiguous()
    y = _empty_in(torch.channels_last, x, x.shape)
    torch.ops.gpseg_cpp.change_layout.default(x, y)
    return y


def _in_layout_of(y: Tensor, x: Tensor) -> Tensor:
    """y, which is in channels_last, in x's layout."""
    if memory_format_of(x) == torch.channels_last or y.is_contiguous():
        return y
    z = _empty_in(torch.contiguous_format, y, y.shape)
    torch.ops.gpseg_cpp.change_layout.default(y, z)
    return z


def _convolution(
    stride: Sequence[int], padding: Sequence[int], transposed: bool, groups: int
) -> Convolution | None:
    """These arguments of a convolution in one; None if they do not go there."""
    if groups != 1 or stride[0] != stride[1]:
        return None
    return Convolution(stride[0], (padding[0], padding[1]), transposed)


BACKEND = CppBackend()

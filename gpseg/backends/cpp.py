"""C++ kernels for the CPU, compiled when the package is installed."""

import importlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpseg.backends import convolution
from gpseg.backends.compiled import CompiledBackend, flat, sums_for
from gpseg.backends.contract import Epilogue
from gpseg.backends.layout import empty_in_layout_of, for_sums, in_layout_of, memory_format_of
from gpseg.backends.resampling import Convolution

_CHANNEL_MULTIPLE = 16
"""csrc/common/kernels.h: what Winograd's convolution needs of channels."""

_TILE = 4
_LEAST_TILES = 16
"""Side of its output's tiles, and how many of them make up for transforming the kernel."""


def _load() -> str | None:
    build = "pip install --no-build-isolation ."
    try:
        importlib.import_module("gpseg._C")  # registers torch.ops.gpseg_cpp
    except ModuleNotFoundError:
        return f"gpseg._C is not built: {build}"
    except ImportError as error:
        return f"gpseg._C does not load, build it for this torch with {build} ({error})"
    return None


def _served(x: Tensor, w_size: Sequence[int]) -> bool:
    """Whether Winograd's convolution serves: float32, channels_last, 3×3, channels in sixteens, and enough pixels to make
    up for transforming the kernel."""
    n, _, h, w = x.shape
    return (
        x.dtype == torch.float32
        and w_size[2] == w_size[3] == 3
        and w_size[0] % _CHANNEL_MULTIPLE == w_size[1] % _CHANNEL_MULTIPLE == 0
        and n * math.ceil(h / _TILE) * math.ceil(w / _TILE) >= _LEAST_TILES
        and memory_format_of(x) == torch.channels_last
    )


class CppBackend(CompiledBackend):
    """With convolutions of its own, Winograd's, in float32."""

    def __init__(self) -> None:
        super().__init__("cpp", ("cpu",), _load)

    def fuses(self, x: Tensor, w: Tensor, conv: Convolution, direction: str) -> bool:
        """Whether Winograd's convolution serves, in every direction, but for the weight of a transposed one."""
        transposed = direction == "weight_grad" and conv.transposed
        return conv.stride == 1 and not transposed and _served(x, w.shape)

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
        if groups == max(stride) == 1 and _served(x, weight.shape):
            conv = Convolution(1, (padding[0], padding[1]), transposed)
            size = convolution.convolution_size(
                x.shape, weight.shape, stride, padding, transposed, output_padding, groups
            )
            return self.fused_conv(x, weight, conv, size, None, Epilogue(), False)[0]
        return convolution.conv2d(x, weight, stride, padding, transposed, output_padding, groups)

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
        if groups == max(stride) == 1 and _served(x, size):
            return self._weight_grad(x, None, dy, size, padding).contiguous()
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
        """The epilogue of c = conv2d(s · x, w) in one kernel, and c too if `keep`."""
        y = empty_in_layout_of(x, size)
        c = torch.empty_like(y) if keep else None
        self._winograd(x, w, s, conv.padding, conv.transposed, epilogue, y, c, None, None)
        return y, c

    def fused_conv_input_grad(
        self, dc: Tensor, w: Tensor, conv: Convolution, x: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients (dx, ds) of c = conv2d(s · x, w), in one kernel; conv and w are the forward's."""
        dx, ds = empty_in_layout_of(x, x.shape), sums_for(s, x)
        self._winograd(
            in_layout_of(dc, x),
            w,
            None,
            conv.padding,
            not conv.transposed,
            Epilogue(d=s),
            dx,
            None,
            in_layout_of(x, x),
            ds,
        )
        assert ds is not None
        return dx, ds

    def fused_conv_weight_grad(
        self, dc: Tensor, w_size: Sequence[int], conv: Convolution, x: Tensor, s: Tensor
    ) -> Tensor:
        """Gradient of c = conv2d(s · x, w) with respect to w, of the given size, in one kernel; conv is the forward's."""
        return self._weight_grad(x, s, dc, w_size, conv.padding)

    def _weight_grad(
        self, x: Tensor, s: Tensor | None, dc: Tensor, size: Sequence[int], padding: Sequence[int]
    ) -> Tensor:
        dw = torch.empty(list(size), dtype=x.dtype, memory_format=torch.channels_last)
        self._kernels.winograd_weight_grad.default(
            x, for_sums(s, x), in_layout_of(dc, x), padding, dw
        )
        return dw

    def _winograd(
        self,
        x: Tensor,
        w: Tensor,
        s: Tensor | None,
        padding: tuple[int, int],
        transposed: bool,
        epilogue: Epilogue,
        *results: Tensor | None,
    ) -> None:
        self._kernels.winograd_conv.default(
            x, w, for_sums(s, x), padding, transposed, *flat(epilogue, x), *results
        )


BACKEND = CppBackend()

"""The calls that kernels are counted and compiled on, of every backend alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpseg import ops
from gpseg.backends.contract import Backend, Epilogue
from gpseg.backends.convolution import convolution_size
from gpseg.backends.layout import accumulate_dtype
from gpseg.backends.resampling import Convolution

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

Case = tuple[str, "partial[Any]"]
"""What it is called, and the call of the backend; tensors among its arguments are what it must read."""


@dataclass(frozen=True)
class Images:
    """Draws the tensors of the cases.

    Args:
        dtype, layout: of images and weights.
        device: "meta" draws nothing.
    """

    dtype: torch.dtype
    layout: torch.memory_format
    device: str = "cpu"

    def __call__(self, *size: int) -> Tensor:
        """Images or weights."""
        drawn = torch.randn(*size, device=self.device)
        return drawn.to(self.dtype).contiguous(memory_format=self.layout)

    def side(self, *size: int) -> Tensor:
        """A side input, in the type that sums are taken in."""
        return torch.randn(*size, device=self.device).to(accumulate_dtype(self.dtype))


LRELU = ("lrelu", 0.2, 2**0.5, 1.5)
SWISH = ("swish", 0.0, 2**0.5, -1.0)


def pointwise(backend: Backend, images: Images, size: int) -> Iterator[Case]:
    """bias_act, and the passes around a convolution."""
    x, dy, ddx = (images(2, 64, size, size) for _ in range(3))
    b, ddb = images.side(64), images.side(64)
    d, noise = images.side(2, 64), images.side(2, 1, size, size)
    for act in (LRELU, SWISH):
        yield f"bias_act {act[0]}", partial(backend.bias_act, x, b, 1, *act)
        yield (
            f"bias_act_backward {act[0]}",
            partial(backend.bias_act_backward, dy, x, b, 1, *act),
        )
        yield (
            f"bias_act_double_backward {act[0]}",
            partial(backend.bias_act_double_backward, ddx, ddb, dy, x, b, 1, *act),
        )
    for name, epilogue in {
        "lrelu": Epilogue(d, None, b, *LRELU),
        "lrelu noise": Epilogue(d, noise, b, *LRELU),
    }.items():
        yield f"demod_act {name}", partial(backend.demod_act, x, epilogue)
        yield f"demod_act_backward {name}", partial(backend.demod_act_backward, dy, x, epilogue)
    yield "scale_channels", partial(backend.scale_channels, x, d)
    yield "scale_channels_backward", partial(backend.scale_channels_backward, x, d, dy)


BINOMIAL = ops.setup_filter([1.0, 3.0, 3.0, 1.0])
WAVELET = ops.setup_filter([float(tap) for tap in range(1, 13)], separable=True)
"""12 taps along both axes, whatever they are."""


def resampling(backend: Backend, images: Images, size: int, channels: int) -> Iterator[Case]:
    """upfirdn2d; sizes are those of outputs."""
    nothing_else = (False, 1.0)
    for name, f, up, down, padding in (
        ("blur4", BINOMIAL, 1, 1, (2, 1, 2, 1)),
        ("up4", BINOMIAL, 2, 1, (2, 1, 2, 1)),
        ("down4", BINOMIAL, 1, 2, (1, 1, 1, 1)),
        ("up12", WAVELET, 2, 1, (6, 5, 6, 5)),
        ("down12", WAVELET, 1, 2, (5, 5, 5, 5)),
    ):
        if f is WAVELET and images.layout == torch.channels_last:
            continue  # RGB: pixels of 3 channels fill no vector, so that single elements are moved
        x = images(1, 3 if f is WAVELET else channels, *[size * down // up] * 2)
        factors = (up, up), (down, down)
        yield (
            f"upfirdn2d {name}",
            partial(backend.upfirdn2d, x, f.to(images.device), *factors, padding, *nothing_else),
        )
    # more channels of fewer rows: every one of them adds the same noise
    channels, rows = 4 * channels, size // 4
    d, noise, b = images.side(1, channels), images.side(1, 1, rows, size), images.side(channels)
    blur = BINOMIAL.to(images.device), (1, 1), (1, 1), (2, 1, 2, 1), *nothing_else
    x = images(1, channels, rows, size)
    yield (
        "upfirdn2d blur4 epilogue",
        partial(backend.upfirdn2d_demod_act, x, *blur, Epilogue(d, noise, b, *LRELU), True),
    )


def any_filter(backend: Backend, images: Images, size: int) -> Iterator[Case]:
    """upfirdn2d with factors and a filter that no instance is compiled for."""
    f = ops.setup_filter([1.0, 4.0, 3.0]).to(images.device)
    x = images(1, 64, size, size)
    yield (
        "upfirdn2d any",
        partial(backend.upfirdn2d, x, f, (3, 3), (2, 2), (1, 1, 1, 1), False, 1.0),
    )


def convolution(backend: Backend, images: Images, size: int, channels: int) -> Iterator[Case]:
    """The tensor-core kernels, in the directions that the backend has them for."""
    x, s = images(1, channels, size, size), images.side(1, channels)
    for name, k, out_channels, conv in (
        ("3×3", 3, channels, Convolution(1, (1, 1))),
        ("1×1", 1, channels, Convolution()),
        ("3×3 stride 2", 3, channels, Convolution(2, (1, 1))),
        ("3×3 transposed", 3, channels, Convolution(2, (0, 0), transposed=True)),
        ("ToRGB", 1, 3, Convolution()),
    ):
        w = images(out_channels, channels, k, k)
        strides, options = [conv.stride] * 2, (conv.transposed, [0, 0], 1)
        wanted = convolution_size(x.shape, w.shape, strides, conv.padding, *options)
        d, noise = images.side(1, out_channels), images.side(1, 1, *wanted[2:])
        epilogue = Epilogue(d, noise, images.side(out_channels), *LRELU)
        if backend.fuses(x, w, conv, "forward"):
            yield (
                f"fused_conv {name}",
                partial(backend.fused_conv, x, w, conv, wanted, s, epilogue, True),
            )
        if name not in ("3×3", "3×3 transposed"):
            continue
        dc = images(*wanted)
        yield (
            f"fused_conv {name} input gradient",
            partial(backend.fused_conv_input_grad, dc, w, conv, x, s),
        )
        if backend.fuses(x, w, conv, "weight_grad"):
            yield (
                f"fused_conv {name} weight gradient",
                partial(backend.fused_conv_weight_grad, dc, w.shape, conv, x, s),
            )


def small(backend: Backend, images: Images) -> Iterator[Case]:
    """Every kernel, on images of some 100 000 elements: large enough that borders weigh little."""
    yield from pointwise(backend, images, 32)
    if images.layout == torch.contiguous_format:
        yield from resampling(backend, images, 256, 2)
    else:
        yield from resampling(backend, images, 128, 64)
        if images.dtype == torch.float16:
            yield from convolution(backend, images, 32, 64)


def size_of(call: "partial[Any]", result: Any) -> int:
    """Bytes of everything that goes in and comes out of a call."""
    return _bytes(call.args) + _bytes([result] if isinstance(result, Tensor) else result)


def _bytes(values: Any) -> int:
    """Of the tensors among values, epilogues included."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.nbytes
        elif isinstance(value, Epilogue):
            total += _bytes(value)
    return total

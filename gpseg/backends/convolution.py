"""The convolution under every backend: torch's own, with the layout made to follow the input's."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpseg.backends.layout import memory_format_of

_convolution_backward = torch.ops.aten.convolution_backward.default


def conv2d(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """(Transposed) convolution of `x [N, C, H, W]`; the result is in x's layout."""
    layout = memory_format_of(x)
    x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    # not torch.ops.aten.convolution, which takes the host 10 µs longer to call
    y = torch.convolution(
        x, weight, None, stride, padding, [1, 1], transposed, output_padding, groups
    )
    return y.contiguous(memory_format=layout)


def conv2d_weight_grad(
    x: Tensor,
    dy: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> Tensor:
    """Gradient of `<conv2d(x, w), dy>` with respect to w, of the given size `[O, I/groups, kh, kw]`, in x's layout."""
    layout = memory_format_of(x)
    x, dy = x.contiguous(memory_format=layout), dy.contiguous(memory_format=layout)
    shape_only = torch.empty(list(size), dtype=x.dtype, device=x.device, memory_format=layout)
    _, dw, _ = _convolution_backward(
        dy,
        x,
        shape_only,
        None,
        stride,
        padding,
        [1, 1],
        False,
        [0, 0],
        groups,
        [False, True, False],
    )
    gradient: Tensor = dw.contiguous(memory_format=layout)
    return gradient


def convolution_size(
    size: Sequence[int],
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> list[int]:
    """Size of `conv2d`'s result for an input of the given size."""
    out = [size[0], weight_size[1] * groups if transposed else weight_size[0]]
    for i in range(2):
        n, k = size[2 + i], weight_size[2 + i]
        if transposed:
            out.append((n - 1) * stride[i] - 2 * padding[i] + k + output_padding[i])
        else:
            out.append((n + 2 * padding[i] - k) // stride[i] + 1)
    return out


def output_padding(
    size_in: Sequence[int],
    size_out: Sequence[int],
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> list[int]:
    """Rows and columns at the end that a strided convolution never read; its gradient has zeros there."""
    return [
        size_in[2 + i] - ((size_out[2 + i] - 1) * stride[i] - 2 * padding[i] + weight_size[2 + i])
        for i in range(2)
    ]


def conv2d_input_grad(
    dy: Tensor,
    weight: Tensor,
    size_in: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    transposed: bool,
    groups: int,
    convolve: Callable[..., Tensor] = conv2d,
) -> Tensor:
    """Gradient of `conv2d` with respect to its input of the given size: the other kind, same weight.

    `convolve` is what carries it out, with the signature of `conv2d`.
    """
    extra = (
        [0, 0] if transposed else output_padding(size_in, dy.shape, weight.shape, stride, padding)
    )
    return convolve(dy, weight, stride, padding, not transposed, extra, groups)


def multiplies_in_tf32(x: Tensor) -> bool:
    """Whether a convolution of x rounds what it multiplies to TF32: where torch's own does, on NVIDIA's GPUs."""
    if x.dtype != torch.float32 or x.device.type != "cuda" or torch.version.hip is not None:
        return False
    # what torch.backends.cudnn.allow_tf32, the older switch, sets too
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # made at run time
    return bool(conv.fp32_precision == "tf32")


def outputs_first(w: Tensor, transposed: bool) -> Tensor:
    """Weight of a (transposed) convolution as fused kernels read it: `[O, kh, kw, I]` in memory."""
    w = w.transpose(0, 1) if transposed else w
    return w.contiguous(memory_format=torch.channels_last)

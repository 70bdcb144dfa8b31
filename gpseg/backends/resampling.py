"""How a convolution with up- or downsampling is carried out: [FIR] → convolution → [FIR].

With z the zero-inserted, padded input, the convolution and the filter commute; the order chosen here never
convolves inserted zeros and filters on the side with fewer pixels. The sizes and paddings of upfirdn2d stand here too,
once for kernels, fakes and gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Padding = tuple[int, int, int, int]
"""(x0, x1, y0, y1)."""


def up_padding(padding: Padding, taps: tuple[int, int], up: tuple[int, int]) -> Padding:
    """Padding with what a filter of (fh, fw) taps needs on top to stay centred when upsampling (x, y) times."""
    (px0, px1, py0, py1), (fh, fw), (upx, upy) = padding, taps, up
    return (
        px0 + (fw + upx - 1) // 2,
        px1 + (fw - upx) // 2,
        py0 + (fh + upy - 1) // 2,
        py1 + (fh - upy) // 2,
    )


def down_padding(padding: Padding, taps: tuple[int, int], down: tuple[int, int]) -> Padding:
    """The same for downsampling (x, y) times."""
    (px0, px1, py0, py1), (fh, fw), (downx, downy) = padding, taps, down
    return (
        px0 + (fw - downx + 1) // 2,
        px1 + (fw - downx) // 2,
        py0 + (fh - downy + 1) // 2,
        py1 + (fh - downy) // 2,
    )


def filtered_size(
    size: Sequence[int],
    taps: tuple[int, int],
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
) -> tuple[int, int, int, int]:
    """Size [N, C, outH, outW] of upfirdn2d's result for an input of the given size and (fh, fw) taps."""
    (n, c, h, w), (fh, fw), (px0, px1, py0, py1) = size, taps, padding
    out_w = (w * up[0] + px0 + px1 - fw + down[0]) // down[0]
    out_h = (h * up[1] + py0 + py1 - fh + down[1]) // down[1]
    return n, c, out_h, out_w


def adjoint_padding(
    taps: tuple[int, int],
    up: tuple[int, int],
    down: tuple[int, int],
    padding: Padding,
    size_in: Sequence[int],
    size_out: Sequence[int],
) -> Padding:
    """Padding of the upfirdn2d that is the gradient of another (up and down swapped, filter flipped)."""
    (fh, fw), (upx, upy), (downx, downy), (px0, _, py0, _) = taps, up, down, padding
    return (
        fw - px0 - 1,
        size_in[3] * upx - size_out[3] * downx + px0 - upx + 1,
        fh - py0 - 1,
        size_in[2] * upy - size_out[2] * downy + py0 - upy + 1,
    )


def filter_taps(f: Tensor | None) -> tuple[int, int]:
    """Height and width (fh, fw) of a filter: None, 1-D (used on both axes) or 2-D."""
    return (1, 1) if f is None else (f.shape[0], f.shape[-1])


@dataclass(frozen=True)
class Fir:
    """One upfirdn2d call; `filtered` False means that it only resamples, pads or crops."""

    up: int = 1
    down: int = 1
    padding: Padding = (0, 0, 0, 0)
    filtered: bool = True
    gain: float = 1.0


@dataclass(frozen=True)
class Convolution:
    """Stride, symmetric padding (y, x) and direction of the convolution itself."""

    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    transposed: bool = False


@dataclass(frozen=True)
class Plan:
    """`before` → `convolution` → `after`."""

    before: Fir | None
    convolution: Convolution
    after: Fir | None


def plan_resampling(
    kernel: tuple[int, int],
    taps: tuple[int, int],
    up: int,
    down: int,
    padding: Padding,
) -> Plan:
    """Plan `conv2d_resample` for a kernel (kh, kw) and a filter of (fh, fw) taps, (1, 1) for none.

    Args:
        kernel: height and width of the convolution's kernel.
        taps: height and width of the resampling filter.
        up: factor of upsampling.
        down: factor of downsampling.
        padding: (x0, x1, y0, y1) on the upsampled grid, without what resampling itself needs.
    """
    kh, kw = kernel
    if up > 1:
        padding = up_padding(padding, taps, (up, up))
    if down > 1:
        padding = down_padding(padding, taps, (down, down))
    px0, px1, py0, py1 = padding
    # Of up² samples on the finer grid one is not an inserted zero: this keeps the mean.
    gain = float(up**2)

    if up > 1 and down > 1:
        return Plan(Fir(up=up, padding=padding, gain=gain), Convolution(), Fir(down=down))
    if (kh, kw) == (1, 1) and down > 1:
        return Plan(Fir(down=down, padding=padding), Convolution(), None)
    if (kh, kw) == (1, 1) and up > 1:
        return Plan(None, Convolution(), Fir(up=up, padding=padding, gain=gain))
    if down > 1:
        return Plan(Fir(padding=padding), Convolution(stride=down), None)
    if up > 1:
        # The transposed convolution is the full one: it starts k-1 samples before the valid one, and ends
        # up-1 samples short of the trailing inserted zeros. What can be cropped by it alone, it crops.
        px0, px1 = px0 - (kw - 1), px1 - (kw - up)
        py0, py1 = py0 - (kh - 1), py1 - (kh - up)
        crop_x, crop_y = max(min(-px0, -px1), 0), max(min(-py0, -py1), 0)
        padding = (px0 + crop_x, px1 + crop_x, py0 + crop_y, py1 + crop_y)
        convolution = Convolution(stride=up, padding=(crop_y, crop_x), transposed=True)
        return Plan(None, convolution, Fir(padding=padding, gain=gain))
    if px0 == px1 >= 0 and py0 == py1 >= 0:
        return Plan(None, Convolution(padding=(py0, px0)), None)
    return Plan(Fir(padding=padding, filtered=False), Convolution(), None)


def oriented_weight(weight: Tensor, transposed: bool, flip_weight: bool, groups: int = 1) -> Tensor:
    """`weight [O, I/groups, kh, kw]` as torch's (transposed) convolution wants it; its own inverse for groups=1.

    Args:
        weight: the kernel as the user holds it.
        transposed: for a transposed convolution, which wants `[I, O/groups, kh, kw]` and scatters, so that
            it mirrors the kernel.
        flip_weight: True: correlation, as torch's convolution; False: true convolution.
        groups: number of groups.
    """
    if transposed:
        o, i, kh, kw = weight.shape
        weight = weight.reshape(groups, o // groups, i, kh, kw).transpose(1, 2)
        weight = weight.reshape(groups * i, o // groups, kh, kw)
    return weight.flip([2, 3]) if transposed == flip_weight else weight

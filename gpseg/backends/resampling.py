"""How a convolution with up- or downsampling is carried out: [FIR] → convolution → [FIR].

With z the zero-inserted, padded input, the convolution and the filter commute; the order chosen here never
convolves inserted zeros and filters on the side with fewer pixels.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fir:
    """One upfirdn2d call; `filtered` False means that it only resamples, pads or crops."""

    up: int = 1
    down: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
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
    padding: tuple[int, int, int, int],
) -> Plan:
    """Plan `conv2d_resample` for a kernel (kh, kw) and a filter of (fh, fw) taps, (1, 1) for none.

    Args:
        kernel: height and width of the convolution's kernel.
        taps: height and width of the resampling filter.
        up: factor of upsampling.
        down: factor of downsampling.
        padding: (x0, x1, y0, y1) on the upsampled grid, without what resampling itself needs.
    """
    (kh, kw), (fh, fw) = kernel, taps
    px0, px1, py0, py1 = padding
    if up > 1:
        px0, px1 = px0 + (fw + up - 1) // 2, px1 + (fw - up) // 2
        py0, py1 = py0 + (fh + up - 1) // 2, py1 + (fh - up) // 2
    if down > 1:
        px0, px1 = px0 + (fw - down + 1) // 2, px1 + (fw - down) // 2
        py0, py1 = py0 + (fh - down + 1) // 2, py1 + (fh - down) // 2
    padding = (px0, px1, py0, py1)
    gain = float(
        up**2
    )  # of up² samples on the finer grid one is not an inserted zero: this keeps the mean

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

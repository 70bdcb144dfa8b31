"""What operators must move and compute, and how long that takes a GPU at best: a model, nothing here is measured.

A sweep is one kernel: it reads and writes memory and computes, and takes at least as long as the slower of the two.
Sizes are those of StyleGAN2 at batch 8 in bfloat16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gpseg.backends.devices import A100, B200, H100, Gpu

GPUS = (A100, H100, B200)

_BYTES = 2
"""Of an element: bfloat16."""


@dataclass(frozen=True)
class Sweep:
    """One kernel.

    Args:
        name: what it does.
        moved: bytes it reads and writes.
        operations: floating-point ones, a multiply-add being two.
        unit: what does them: "scalar" units, or tensor cores as libraries drive them ("tensor"), through `mma.sync`
            ("mma") or as Triton's compiler does ("triton").
    """

    name: str
    moved: float
    operations: float
    unit: Literal["scalar", "tensor", "mma", "triton"] = "scalar"

    def time(self, gpu: Gpu) -> float:
        """Seconds on this GPU at its peak rates."""
        peak = {
            "scalar": gpu.scalar,
            "tensor": gpu.tensor,
            "mma": gpu.tensor * gpu.mma,
            "triton": gpu.tensor * gpu.triton,
        }[self.unit]
        return max(self.moved / gpu.bandwidth, self.operations / peak)


@dataclass(frozen=True)
class Comparison:
    """The sweeps of an operator here, and those of its compositions elsewhere.

    Args:
        name: operator and size.
        fused: as it is here, in CUDA.
        triton: the same in Triton, where that makes a difference to the model.
        unfused: as calls of torch.
        usual: as StyleGAN code bases have it, where bias_act and upfirdn2d are one kernel each.
        composed: as it is here too, with torch's convolution between fused sweeps.
    """

    name: str
    fused: Sequence[Sweep]
    unfused: Sequence[Sweep]
    usual: Sequence[Sweep] = ()
    composed: Sequence[Sweep] = ()
    triton: Sequence[Sweep] = ()

    def row(self) -> list[str]:
        """Name, bytes and operations here, and by GPU the times of all, in microseconds."""
        moved, operations = (
            sum(getattr(s, of) for s in self.fused) for of in ("moved", "operations")
        )
        cells = [self.name, f"{moved / 1e6:.0f}", f"{operations / 1e9:.1f}"]
        for gpu in GPUS:
            every = (self.fused, self.triton, self.composed, self.usual, self.unfused)
            ways = [sweeps for sweeps in every if sweeps]
            cells.append(" / ".join(f"{sum(s.time(gpu) for s in w) * 1e6:.0f}" for w in ways))
        return cells


def images(n: int, c: int, size: int) -> float:
    """Bytes of `[n, c, size, size]`."""
    return n * c * size * size * _BYTES


def pointwise(name: str, size: float, reads: int = 1, per_element: int = 6) -> Sweep:
    """A sweep that reads `reads` images of `size` bytes and writes one."""
    return Sweep(name, size * (reads + 1), size / _BYTES * per_element)


def resampling(
    name: str, n: int, c: int, size: int, up: int, down: int, taps: int = 4
) -> Comparison:
    """upfirdn2d with a 2-D filter of taps² against zero insertion, padding, grouped convolution and slicing."""
    x, y = images(n, c, size), images(n, c, size * up // down)
    wide = images(n, c, size * up)
    used = (taps // up) ** 2  # the other taps meet inserted zeros
    fused = [Sweep("upfirdn2d", x + y, 2 * used * y / _BYTES)]
    unfused = [Sweep("insert zeros", x + wide, 0)] if up > 1 else []
    unfused += [
        Sweep("pad", 2 * wide, 0),
        Sweep("grouped convolution", 2 * wide, 2 * taps**2 * wide / _BYTES),
    ]
    unfused += [Sweep("slice", 2 * y, 0)] if down > 1 else []
    return Comparison(name, fused, unfused)


def activation(name: str, n: int, c: int, size: int, backward: bool = False) -> Comparison:
    """bias_act against bias, activation, gain and clamp as calls of their own."""
    x = images(n, c, size)
    if not backward:
        steps = ["add bias", "lrelu", "gain", "clamp"]
        return Comparison(
            name, [pointwise("bias_act", x)], [pointwise(s, x, per_element=1) for s in steps]
        )
    steps = ["clamp'", "gain'", "lrelu'"]
    unfused = [pointwise(s, x, reads=1 if s == "gain'" else 2, per_element=1) for s in steps]
    unfused.append(Sweep("sum for the bias", x, x / _BYTES))
    return Comparison(name, [pointwise("bias_act_backward", x, reads=2)], unfused)


def layer(name: str, n: int, i: int, o: int, size: int, k: int = 3, up: int = 1) -> Comparison:
    """A synthesis layer's forward for a gradient to follow, so that c is kept, `size` being its output's.

    Here: the fused convolution (plain), or convolution with the style scale in its load and then one sweep (up = 2), in
    CUDA and in Triton.
    As calls of torch: style scale, convolution, (FIR,) demodulation, noise, bias, activation, gain, clamp; as usual:
    demodulation and noise in one call, and what follows in another.
    """
    x, y = images(n, i, size // up), images(n, o, size)
    weights = i * o * k * k * _BYTES
    operations = 2.0 * k * k * i * o * n * (size // up) ** 2
    taps = 2 * 16 * y / _BYTES
    convolution = Sweep("convolution", x + weights + y, operations, "tensor")
    steps = ["demodulate", "noise", "bias", "lrelu", "gain", "clamp"]
    unfused = [pointwise("style scale", x, per_element=1), convolution]
    last = Sweep("FIR with epilogue", 3 * y, taps + 8 * y / _BYTES)
    composed = [*unfused, last if up > 1 else pointwise("epilogue", y, per_element=8)]
    if up > 1:
        fused = [Sweep("fused convolution", x + weights + y, operations, "mma"), last]
        unfused.append(Sweep("FIR", 2 * y, taps))  # as calls of torch it is more than one
    else:
        fused = [Sweep("fused convolution", x + weights + 2 * y, operations, "mma")]
    triton = [replace(fused[0], unit="triton"), *fused[1:]]
    usual = list(unfused)
    usual += [pointwise("demodulate, noise", y, per_element=2), pointwise("bias_act", y)]
    unfused += [pointwise(s, y, per_element=1) for s in steps]
    return Comparison(name, fused, unfused, usual, composed, triton)


COMPARISONS = (
    resampling("upsample2d, [8, 64, 256, 256]", 8, 64, 256, 2, 1),
    resampling("downsample2d, [8, 64, 512, 512]", 8, 64, 512, 1, 2),
    resampling("filter2d, [8, 64, 512, 512]", 8, 64, 512, 1, 1),
    activation("bias_act, [8, 64, 512, 512]", 8, 64, 512),
    activation("bias_act backward, [8, 64, 512, 512]", 8, 64, 512, backward=True),
    layer("layer 512 → 512, 64²", 8, 512, 512, 64),
    layer("layer 128 → 128, 256²", 8, 128, 128, 256),
    layer("layer 64 → 64, 512²", 8, 64, 64, 512),
    layer("layer 32 → 32, 1024²", 8, 32, 32, 1024),
    layer("layer 128 → 64, to 512²", 8, 128, 64, 512, up=2),
    layer("ToRGB 64 → 8, 512², 1×1", 8, 64, 8, 512, k=1),
)


def table() -> str:
    """The comparisons as Markdown."""
    heads = ["operator", "MB", "GFLOP", *(gpu.name for gpu in GPUS)]
    lines = [heads, ["---"] * len(heads), *(c.row() for c in COMPARISONS)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())

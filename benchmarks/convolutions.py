"""`python -m benchmarks.convolutions`: the CPU's own 3×3 convolutions against torch's, as Markdown.

GFLOP/s, a multiply-add of the direct sum being two, whoever does with fewer: forward and the gradient of the kernel, in
channels_last. Both take turns; the better of each is its fastest call.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.tables import markdown
from gpseg import backends
from gpseg.backends import convolution

PROBLEMS = (
    (16, 32, 32, 64),
    (16, 64, 64, 32),
    (16, 96, 96, 16),
    (1, 64, 64, 256),
    (1, 128, 128, 128),
    (1, 512, 512, 32),
)
"""Images, channels in and out, side."""

_ONCE = [1, 1]


def pair(
    images: int, in_c: int, out_c: int, side: int, dtype: torch.dtype
) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """What is compared, by name: ours and torch's."""
    last = torch.channels_last
    x = torch.randn(images, in_c, side, side).to(dtype, memory_format=last)
    dy = torch.randn(images, out_c, side, side).to(dtype, memory_format=last)
    w = torch.randn(out_c, in_c, 3, 3).to(dtype, memory_format=last)
    ours = backends.get("cpp")
    forward = (x, w, _ONCE, _ONCE, False, [0, 0], 1)
    gradient = (x, dy, [*w.shape], _ONCE, _ONCE, 1)
    return {
        "forward": (lambda: ours.conv2d(*forward), lambda: convolution.conv2d(*forward)),
        "its kernel's gradient": (
            lambda: ours.conv2d_weight_grad(*gradient),
            lambda: convolution.conv2d_weight_grad(*gradient),
        ),
    }


def fastest(calls: tuple[Callable[[], Tensor], ...], seconds: float) -> list[float]:
    """Seconds that the fastest call of each took, in rounds over all of them."""
    best = [math.inf] * len(calls)
    end = time.monotonic() + seconds
    first = True
    while first or time.monotonic() < end:
        for i, call in enumerate(calls):
            call()
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
        first = False
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolutions", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each pair")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = []
    for problem in PROBLEMS:
        images, in_c, out_c, side = problem
        line = [f"{images}, {in_c} → {out_c}, {side}²"]
        operations = 2 * 9 * in_c * out_c * images * side**2
        for dtype in (torch.float32, torch.bfloat16):
            for calls in pair(*problem, dtype).values():
                rates = [operations / s / 1e9 for s in fastest(calls, arguments.seconds)]
                line.append(" / ".join(f"{rate:.0f}" for rate in rates))
        lines.append(line)
    heads = [f"{t}{w}" for t in ("float32", "bfloat16") for w in ("", ", its kernel's gradient")]
    print(markdown(["N, channels, pixels", *heads], lines))


if __name__ == "__main__":
    main()

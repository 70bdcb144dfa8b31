"""What every kernel's accesses cost, counted by the emulator of tests/simt on aligned shapes. It needs no GPU.

`python -m benchmarks.kernels.counts` prints the counts as JSON: in a process of its own, because the kernels that are
counted are built differently from those that tests run.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpseg import ops
from gpseg.backends import simt
from gpseg.backends.contract import Epilogue
from gpseg.backends.convolution import convolution_size
from gpseg.backends.layout import accumulate_dtype
from gpseg.backends.resampling import Convolution

ROOT = Path(__file__).parents[2]
DTYPES = {"float16": torch.float16, "float32": torch.float32}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
HOT = 0.05
"""A line is hot if it makes this share of its kernel's requests to one kind of memory."""


@dataclass(frozen=True)
class Line:
    """A source line's accesses: sectors of 32 bytes, or wavefronts of shared memory, over the fewest that would do."""

    line: str
    ratio: float


@dataclass(frozen=True)
class Counts:
    """An op's kernels on one problem.

    Args:
        op: what is called, and on which problem.
        dtype, layout: of its images.
        bytes: that warps ask global memory for, over the size of everything that goes in and comes out.
        sectors, wavefronts: the worst of the hot lines; None where that kind of memory is not used.
    """

    op: str
    dtype: str
    layout: str
    bytes: float
    sectors: Line | None
    wavefronts: Line | None

    @property
    def name(self) -> str:
        """By which budgets know it."""
        return f"{self.op} {self.dtype} {self.layout}"


@dataclass(frozen=True)
class Images:
    """Draws the tensors of the cases."""

    dtype: torch.dtype
    layout: torch.memory_format

    def __call__(self, *size: int) -> Tensor:
        """Images or weights."""
        return torch.randn(*size).to(self.dtype).contiguous(memory_format=self.layout)

    def side(self, *size: int) -> Tensor:
        """A side input, in the type that sums are taken in."""
        return torch.randn(*size).to(accumulate_dtype(self.dtype))


BACKEND = simt.BACKEND
LRELU = ("lrelu", 0.2, 2**0.5, 1.5)
SWISH = ("swish", 0.0, 2**0.5, -1.0)

Case = tuple[str, "partial[Any]"]
"""What it is called, and the call of the emulated kernels; tensors among its arguments are what it must read."""


def pointwise(images: Images, size: int) -> Iterator[Case]:
    """bias_act, and the passes around a convolution."""
    x, dy, ddx = (images(2, 64, size, size) for _ in range(3))
    b, ddb = images.side(64), images.side(64)
    d, noise = images.side(2, 64), images.side(2, 1, size, size)
    for act in (LRELU, SWISH):
        yield f"bias_act {act[0]}", partial(BACKEND.bias_act, x, b, 1, *act)
        yield (
            f"bias_act_backward {act[0]}",
            partial(BACKEND.bias_act_backward, dy, x, b, 1, *act),
        )
    yield (
        "bias_act_double_backward swish",
        partial(BACKEND.bias_act_double_backward, ddx, ddb, dy, x, b, 1, *SWISH),
    )
    for name, epilogue in {
        "lrelu": Epilogue(d, None, b, *LRELU),
        "lrelu noise": Epilogue(d, noise, b, *LRELU),
    }.items():
        yield f"demod_act {name}", partial(BACKEND.demod_act, x, epilogue)
        yield f"demod_act_backward {name}", partial(BACKEND.demod_act_backward, dy, x, epilogue)


BINOMIAL = ops.setup_filter([1.0, 3.0, 3.0, 1.0])
WAVELET = ops.setup_filter([float(tap) for tap in range(1, 13)], separable=True)
"""12 taps along both axes, whatever they are."""


def resampling(images: Images, size: int, channels: int) -> Iterator[Case]:
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
            partial(BACKEND.upfirdn2d, x, f, *factors, padding, *nothing_else),
        )
    # more channels of fewer rows: every one of them adds the same noise
    channels, rows = 4 * channels, size // 4
    d, noise, b = images.side(1, channels), images.side(1, 1, rows, size), images.side(channels)
    blur = BINOMIAL, (1, 1), (1, 1), (2, 1, 2, 1), *nothing_else
    x = images(1, channels, rows, size)
    yield (
        "upfirdn2d blur4 epilogue",
        partial(BACKEND.upfirdn2d_demod_act, x, *blur, Epilogue(d, noise, b, *LRELU), True),
    )


def convolution(images: Images, size: int) -> Iterator[Case]:
    """The tensor-core kernel: forward, and the gradient of its input."""
    x, s = images(1, 64, size, size), images.side(1, 64)
    for name, k, conv in (
        ("3×3", 3, Convolution(1, (1, 1))),
        ("1×1", 1, Convolution()),
        ("3×3 stride 2", 3, Convolution(2, (1, 1))),
        ("3×3 transposed", 3, Convolution(2, (0, 0), transposed=True)),
    ):
        w = images(64, 64, k, k)
        strides, options = [conv.stride] * 2, (conv.transposed, [0, 0], 1)
        wanted = convolution_size(x.shape, w.shape, strides, conv.padding, *options)
        d, noise, b = images.side(1, 64), images.side(1, 1, *wanted[2:]), images.side(64)
        epilogue = Epilogue(d, noise, b, *LRELU)
        yield (
            f"fused_conv {name}",
            partial(BACKEND.fused_conv, x, w, conv, wanted, s, epilogue, True),
        )
    w, dc, conv = images(64, 64, 3, 3), images(1, 64, size, size), Convolution(1, (1, 1))
    yield (
        "fused_conv input gradient",
        partial(BACKEND.fused_conv_input_grad, dc, w, conv, x, s),
    )


def cases(images: Images) -> Iterator[Case]:
    """Every kernel, on images of some 100 000 elements: large enough that borders weigh little."""
    yield from pointwise(images, 32)
    if images.layout == torch.contiguous_format:
        yield from resampling(images, 256, 2)
    else:
        yield from resampling(images, 128, 64)
        if images.dtype == torch.float16:
            yield from convolution(images, 32)


def library() -> Path:
    """The emulator's build that counts: GPSEG_SIMT's, else the one that tests build."""
    if path := os.environ.get("GPSEG_SIMT"):
        return Path(path)
    from tests.simt import build

    return build.build("check")


def measure() -> list[Counts]:
    """Counts of every case.

    Raises:
        subprocess.CalledProcessError: the kernels can't be emulated here, or do what they must not.
    """
    environment = {**os.environ, "GPSEG_SIMT": str(library())}
    command = [sys.executable, "-m", __spec__.name]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return [_counts(row) for row in json.loads(done.stdout)]


def _counts(row: dict[str, Any]) -> Counts:
    lines = {key: Line(**row[key]) if row[key] else None for key in ("sectors", "wavefronts")}
    return Counts(**{**row, **lines})


def _size(values: Iterable[object]) -> int:
    """Bytes of the tensors among values, epilogues included."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.nbytes
        elif isinstance(value, Epilogue):
            total += _size(value)
    return total


def _worst(lines: list[dict[str, Any]], space: str) -> Line | None:
    """Of the hot lines of one kind of memory."""
    used = [line for line in lines if line["space"] == space]
    every = sum(line["requests"] for line in used)
    hot = [
        Line(line["line"], round(line["units"] / line["ideal"], 3))
        for line in used
        if line["requests"] >= HOT * every
    ]
    return max(hot, key=lambda line: line.ratio, default=None)


def count(call: "partial[Any]", kernels: ctypes.CDLL) -> tuple[float, Line | None, Line | None]:
    """Bytes, sectors and wavefronts of a call, each over its ideal."""
    kernels.simt_count_start()
    result = call()
    lines = json.loads(kernels.simt_count_json())
    moved = sum(line["moved"] for line in lines if line["space"] == "global")
    least = _size(call.args) + _size([result] if isinstance(result, Tensor) else result)
    return round(moved / least, 3), _worst(lines, "global"), _worst(lines, "shared")


def main() -> None:
    """Count every case in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if (off := BACKEND.available()) is not None:
        sys.exit(off)
    kernels = ctypes.CDLL(os.environ["GPSEG_SIMT"])
    kernels.simt_count_json.restype = ctypes.c_char_p
    rows = []
    for dtype_name, dtype in DTYPES.items():
        for layout_name, layout in LAYOUTS.items():
            for op, call in cases(Images(dtype, layout)):
                counts = Counts(op, dtype_name, layout_name, *count(call, kernels))
                rows.append(asdict(counts))
    json.dump(rows, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

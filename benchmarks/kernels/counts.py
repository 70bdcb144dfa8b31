"""What every kernel's accesses cost, counted by the emulator of tests/simt on aligned shapes. It needs no GPU.

`python -m benchmarks.kernels.counts` prints the counts as JSON: in a process of its own, because the kernels that are
counted are built differently from those that tests run.
"""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import cases
from benchmarks.kernels.cases import LAYOUTS, Images
from benchmarks.kernels.resources import UnavailableError
from gpseg.backends import simt

ROOT = Path(__file__).parents[2]
DTYPES = {"float16": torch.float16, "float32": torch.float32}
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

    @property
    def ratios(self) -> list[tuple[str, float, str]]:
        """What was counted, over its ideal, and the source line that it was counted at."""
        lines = {"sectors": self.sectors, "wavefronts": self.wavefronts}
        found = [(what, line.ratio, line.line) for what, line in lines.items() if line is not None]
        return [("bytes", self.bytes, ""), *found]


def library() -> Path:
    """The emulator's build that counts: GPSEG_SIMT's, else the one that tests build."""
    if path := os.environ.get("GPSEG_SIMT"):
        return Path(path)
    from tests.simt import build

    if (why := build.missing()) is not None:
        raise UnavailableError(why)
    return build.build("check")


def measure() -> list[Counts]:
    """Counts of every case.

    Raises:
        UnavailableError: the kernels can't be emulated here.
        subprocess.CalledProcessError: they do what they must not.
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
    ratio = round(moved / cases.size_of(call, result), 3)
    return ratio, _worst(lines, "global"), _worst(lines, "shared")


def main() -> None:
    """Count every case in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if (off := simt.BACKEND.available()) is not None:
        sys.exit(off)
    kernels = ctypes.CDLL(os.environ["GPSEG_SIMT"])
    kernels.simt_count_json.restype = ctypes.c_char_p
    rows = []
    for dtype_name, dtype in DTYPES.items():
        for layout_name, layout in LAYOUTS.items():
            for op, call in cases.small(simt.BACKEND, Images(dtype, layout)):
                counts = Counts(op, dtype_name, layout_name, *count(call, kernels))
                rows.append(asdict(counts))
    json.dump(rows, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

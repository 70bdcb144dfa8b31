"""The CUDA and the Triton kernels side by side, by family."""

import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernels.budgets import TRITON, Half, Measured
from benchmarks.kernels.resources import Kernel, Resources
from benchmarks.kernels.tables import markdown, span

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
"""Those that both are compiled for."""


@dataclass(frozen=True)
class Family:
    """What makes some ops.

    Args:
        name: of the row.
        cuda, triton: what the names of its kernels start with; none for what all share.
        ops: what the names of its counted ops start with.
        cuda_files, triton_files: that make it.
    """

    name: str
    cuda: tuple[str, ...]
    triton: tuple[str, ...]
    ops: tuple[str, ...]
    cuda_files: tuple[str, ...]
    triton_files: tuple[str, ...]


FAMILIES = (
    Family(
        "bias_act, demod_act, scale_channels",
        ("bias_act", "demod_act"),
        ("bias_act",),
        ("bias_act", "demod_act", "scale_channels"),
        ("bias_act.cu", "demod_act.cu", "kernels/sweep.cuh", "kernels/affine.cuh"),
        ("bias_act.py",),
    ),
    Family(
        "upfirdn2d",
        ("upfirdn2d",),
        ("upfirdn2d",),
        ("upfirdn2d",),
        ("upfirdn2d.cu", "kernels/upfirdn2d.cuh", "kernels/upfirdn2d_launch.cuh"),
        ("upfirdn2d.py",),
    ),
    Family(
        "fused_conv",
        ("fused_conv",),
        ("modulated_conv",),
        ("fused_conv",),
        ("modulated_conv.cu", "kernels/implicit_gemm.cuh", "kernels/ptx.cuh"),
        ("modulated_conv.py",),
    ),
    Family(
        "shared by all",
        (),
        (),
        (),
        (
            "kernels.h",
            "launch.h",
            "kernels/activation.cuh",
            "kernels/memory.cuh",
            "kernels/sum_rows.cuh",
        ),
        ("__init__.py", "activation.py", "configurations.py", "launch.py"),
    ),
)


def lines_of_code(text: str, python: bool) -> int:
    """Lines that hold more than blanks, comments and docstrings."""
    return len(_python_lines(text)) if python else len(_cpp_lines(text))


def _python_lines(text: str) -> set[int]:
    lines: set[int] = set()
    starts_statement = True
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in ignored:
            continue
        if token.type == tokenize.NEWLINE:
            starts_statement = True
        elif not (starts_statement and token.type == tokenize.STRING):  # a docstring
            lines.update(range(token.start[0], token.end[0] + 1))
            starts_statement = False
    return lines


def _cpp_lines(text: str) -> list[str]:
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    return [line for line in text.splitlines() if line.strip()]


def _lines(folder: str, names: Iterable[str]) -> str:
    paths = [ROOT / folder / name for name in names]
    return str(sum(lines_of_code(path.read_text(), path.suffix == ".py") for path in paths))


def _registers(found: Measured, names: tuple[str, ...], architecture: str) -> str:
    """Of the kernels for float16 images whose rows are whole vectors of 16 bytes."""
    return span(
        resources.registers
        for kernel, resources in _of(found, names, architecture).items()
        if kernel.dtype == "float16" and "elements" not in kernel.instance
    )


def _of(found: Measured, names: tuple[str, ...], architecture: str) -> dict[Kernel, Resources]:
    kernels = found[architecture].items()
    return {kernel: resources for kernel, resources in kernels if kernel.name.startswith(names)}


def _spills(found: Measured, names: tuple[str, ...]) -> str:
    return span(r.spills for a in ARCHITECTURES for r in _of(found, names, a).values())


def _bytes(counted: Iterable[Any], ops: tuple[str, ...]) -> str:
    """Over the compulsory ones."""
    ratios = sorted(
        value
        for count in counted
        if count.op.startswith(ops)
        for what, value, _ in count.ratios
        if what == "bytes"
    )
    return f"{ratios[0]:.2f}–{ratios[-1]:.2f}"


def table(measured: Mapping[Half, Measured], counted: Mapping[Half, Iterable[Any]]) -> str:
    """A row a family, CUDA / Triton in each cell."""
    heads = ["", "lines of code", *(f"registers {a}" for a in ARCHITECTURES), "spills", "bytes"]
    rows = []
    for family in FAMILIES:
        cuda, triton = family.cuda, tuple(TRITON + name for name in family.triton)
        cells = [
            (
                _lines("csrc/cuda", family.cuda_files),
                _lines("gpseg/backends/triton", family.triton_files),
            )
        ]
        if cuda:
            cells += [
                (
                    _registers(measured["cuda"], cuda, architecture),
                    _registers(measured["triton"], triton, architecture),
                )
                for architecture in ARCHITECTURES
            ]
            cells += [
                (_spills(measured["cuda"], cuda), _spills(measured["triton"], triton)),
                (_bytes(counted["cuda"], family.ops), _bytes(counted["triton"], family.ops)),
            ]
        rows.append([family.name, *(" / ".join(cell) for cell in cells)])
        rows[-1] += ["–"] * (len(heads) - len(rows[-1]))
    return markdown(heads, rows)

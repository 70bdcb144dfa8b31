"""What nvcc made of every kernel in gpseg._cuda: registers, local memory, wide accesses, occupancy. It needs no GPU."""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch  # noqa: F401  gpseg._cuda links against it

CSRC = Path(__file__).parents[2] / "csrc"


class UnavailableError(RuntimeError):
    """There is nothing to read, or nothing to read it with."""


@dataclass(frozen=True, order=True)
class Kernel:
    """An instance of a kernel: its name, element type, and what else it is compiled for, in words."""

    name: str
    dtype: str = ""
    instance: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.dtype, self.instance)))


@dataclass(frozen=True)
class Usage:
    """What `cuobjdump -res-usage` says, in bytes but for registers."""

    registers: int
    stack: int
    shared: int
    local: int


@dataclass(frozen=True)
class Resources:
    """A kernel on one architecture.

    Args:
        registers: of a thread.
        stack: bytes of local memory of a thread.
        spills: instructions that read or write local memory; of AMD's, registers that are spilled.
        shared: bytes of static shared memory of a block.
        dynamic: bytes of dynamic shared memory of a block, at its largest tile.
        threads: of a block.
        loads, stores: instructions on global memory of 16 bytes a thread, asynchronous copies among the loads.
        copies: asynchronous copies to shared memory.
        ldmatrix, mma: instructions that feed and use the tensor cores.
        mma_family: which instructions the latter are; "" if there are none.
        blocks: that a multiprocessor holds at once; None where that can't be told.
        occupancy: the share of its threads that they are.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    dynamic: int
    threads: int
    loads: int
    stores: int
    copies: int
    ldmatrix: int
    mma: int
    mma_family: str
    blocks: int | None
    occupancy: float | None


SHARED = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
}
"""Bytes of shared memory that a block may have, by architecture."""

MMA_FAMILIES = {
    "sm_80": "HMMA",
    "sm_90": "HGMMA",
    "sm_100": "UTCHMMA",
    "sm_120": "HMMA",
    "gfx942": "v_mfma",
}
"""The tensor-core instructions in half types that an architecture reaches its peak with."""


# --- names


@cache
def _enumerations() -> dict[str, list[str]]:
    """Names of the values of the kernels' enumerations; demanglers know their numbers only."""
    found = {}
    for path in sorted((CSRC / "cuda").rglob("*.cuh")):
        text = re.sub(r"//.*", "", path.read_text())
        for name, values in re.findall(r"enum class (\w+) \{([^}]*)\}", text):
            found[name] = [value.strip() for value in values.split(",") if value.strip()]
    return found


_OCCUPANCY_KNOWN = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities that `gpseg._cuda.occupancy` knows."""

_DTYPES = {
    "__half": "float16",
    "__nv_bfloat16": "bfloat16",
    "float": "float32",
    "double": "float64",
}


def _split(arguments: str) -> list[str]:
    """Template arguments, apart at the commas of the outermost level."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "<({") - (character in ">)}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _words(arguments: Iterable[str]) -> Iterator[str]:
    for argument in arguments:
        if argument in _DTYPES:
            yield _DTYPES[argument]
        elif match := re.fullmatch(r"\((?:\w+::)*(\w+)\)(\d+)", argument):
            yield _enumerations()[match[1]][int(match[2])]
        elif match := re.fullmatch(r"(?:\w+::)*Fir\{(\d+), (\d+), (\d+), \w+\}", argument):
            up, down, taps = map(int, match.groups())
            yield f"{'up' if up > 1 else 'down' if down > 1 else 'blur'}{taps}"
        elif match := re.fullmatch(r"(?:\w+::)*FirShape<(.*)>", argument):
            yield from _words(_split(match[1].strip()))
        elif argument in ("true", "false"):
            yield "scaled" if argument == "true" else "unscaled"
        else:
            yield argument


def kernel_of(demangled: str) -> Kernel:
    """The kernel that a demangled function is an instance of.

    Raises:
        ValueError: it is none.
    """
    match = re.match(r"(?:void )?(?:[\w ()]+::)*?(\w+)_kernel(?:<(.*)>)?\(", _untyped(demangled))
    if match is None:
        raise ValueError(f"{demangled!r} is not a kernel")
    words = list(_words(_split(match[2]) if match[2] else []))
    dtypes = [word for word in words if word in _DTYPES.values()]
    numbers = [word for word in words if word.isdigit()]
    rest = [word for word in words if word not in dtypes and word not in numbers]
    if len(numbers) == 1:  # elements that a thread moves at once
        rest.append("elements" if numbers[0] == "1" else "vectors")
    elif numbers:
        rest.insert(0, "×".join(numbers))
    return Kernel(match[1], "".join(dtypes), " ".join(rest))


def _untyped(demangled: str) -> str:
    """A function without its parameters' types, which name templates of their own."""
    depth = 0
    for i, character in enumerate(demangled):
        if character == "(" and depth == 0 and demangled[:i].endswith((">", "_kernel")):
            return demangled[: i + 1]
        depth += (character in "<{") - (character in ">}")
    return demangled


# --- what the tools say


def usages(text: str) -> dict[str, Usage]:
    """Of each function, from `cuobjdump -res-usage`."""
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    return {name: Usage(*map(int, numbers)) for name, *numbers in re.findall(pattern, text)}


def launch_bounds(text: str) -> dict[str, int]:
    """The most threads of a block that each function was compiled for, from `cuobjdump -elf`."""
    bounds, function = {}, ""
    pattern = r"^\.nv\.info\.(\S+)|EIATTR_MAX_THREADS\s+Format:\s+\w+\s+Value:\s+(\S+) (\S+) (\S+)"
    for match in re.finditer(pattern, text, re.MULTILINE):
        if match[1]:
            function = match[1]
        else:
            x, y, z = (int(match[i], 16) for i in (2, 3, 4))
            bounds[function] = x * y * z
    return bounds


def instructions(text: str) -> dict[str, Counter[str]]:
    """How many of the instructions that are looked at each function has, from `nvdisasm -c`."""
    found: dict[str, Counter[str]] = {}
    pattern = (
        r"^\t\.section\t\.text\.([^,\s]+)|\*/ +(?:@!?\w+ )? *((?:LD|ST|HMMA|HGMMA|UTCHMMA)[\w.]*)"
    )
    function: Counter[str] = Counter()
    for match in re.finditer(pattern, text, re.MULTILINE):
        if match[1]:
            function = found[match[1]] = Counter()
        else:
            function[match[2]] += 1
    return found


def _sum(counts: Counter[str], *opcodes: str, wide: bool = False) -> int:
    """Instructions of these opcodes, whatever their modifiers; `wide`: of 16 bytes a thread."""
    return sum(
        count
        for name, count in counts.items()
        if name.split(".")[0] in opcodes and (not wide or "128" in name.split("."))
    )


# --- the built module


def tool(name: str) -> str:
    """One of CUDA's binary tools: torch brings triton, whose wheel has them."""
    spec = importlib.util.find_spec("triton")
    for parent in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(parent) / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return str(path)
    found = shutil.which(name)
    if found is None:
        raise UnavailableError(f"there is no {name} in triton's wheel or on the PATH")
    return found


def output(*command: str | Path, given: str | None = None, where: Path | None = None) -> str:
    """What a command prints."""
    done = subprocess.run(
        command, input=given, cwd=where, capture_output=True, text=True, check=True
    )
    return done.stdout


def built() -> Path:
    """The file of gpseg._cuda.

    Raises:
        UnavailableError: it was not built.
    """
    spec = importlib.util.find_spec("gpseg._cuda")
    if spec is None or spec.origin is None:
        raise UnavailableError("gpseg._cuda is not built")
    return Path(spec.origin)


def loaded(module: Path) -> Any:
    """The module in this file."""
    spec = importlib.util.spec_from_file_location("gpseg._cuda", module)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def measure(module: Path) -> dict[str, dict[Kernel, Resources]]:
    """Every kernel in gpseg._cuda, by architecture.

    Raises:
        UnavailableError: a tool is missing.
    """
    found: dict[str, dict[Kernel, Resources]] = {}
    cuda = loaded(module)
    with tempfile.TemporaryDirectory() as folder:
        output(tool("cuobjdump"), "-xelf", "all", module.resolve(), where=Path(folder))
        for cubin in sorted(Path(folder).glob("*.cubin")):
            architecture = re.findall(r"sm_\d+", cubin.name)[-1]
            found.setdefault(architecture, {}).update(_of_cubin(cubin, architecture, cuda))
    return {
        architecture: dict(sorted(found[architecture].items()))
        for architecture in sorted(found, key=lambda name: int(name[3:]))
    }


def _of_cubin(cubin: Path, architecture: str, cuda: Any) -> Iterator[tuple[Kernel, Resources]]:
    functions = usages(output(tool("cuobjdump"), "-res-usage", cubin))
    threads = launch_bounds(output(tool("cuobjdump"), "-elf", cubin))
    code = instructions(output(tool("nvdisasm"), "-c", cubin))
    demangled = output("c++filt", given="\n".join(functions)).splitlines()
    for (function, usage), name in zip(functions.items(), demangled, strict=True):
        kernel, counts = kernel_of(name), code[function]
        dynamic = dynamic_shared(kernel, cuda)
        yield (
            kernel,
            resources_of(architecture, usage, counts, threads[function], dynamic, cuda),
        )


def resources_of(
    architecture: str,
    usage: Usage,
    counts: Counter[str],
    threads: int,
    dynamic: int,
    cuda: Any | None,
) -> Resources:
    """What the tools say of a kernel for an NVIDIA GPU, put together; cuda is gpseg._cuda, if there is one."""
    capability = divmod(int(architecture[3:]), 10)
    # from 9.0 on the tools count what the system keeps of each block's shared memory
    reserved = 0 if capability < (9, 0) else 1024
    shared = max(usage.shared - reserved, 0)
    blocks, share = None, None
    if cuda is not None and capability in _OCCUPANCY_KNOWN:
        blocks, share = cuda.occupancy(capability, usage.registers, threads, shared, dynamic)
    mma = {family: _sum(counts, family) for family in set(MMA_FAMILIES.values())}
    family = max(mma, key=lambda name: mma[name])
    return Resources(
        registers=usage.registers,
        stack=max(usage.stack, usage.local),
        spills=_sum(counts, "LDL", "STL"),
        shared=shared,
        dynamic=dynamic,
        threads=threads,
        loads=_sum(counts, "LDG", "LDGSTS", wide=True),
        stores=_sum(counts, "STG", wide=True),
        copies=_sum(counts, "LDGSTS"),
        ldmatrix=_sum(counts, "LDSM"),
        mma=mma[family],
        mma_family=family if mma[family] else "",
        blocks=blocks,
        occupancy=share,
    )


def dynamic_shared(kernel: Kernel, cuda: Any) -> int:
    """Bytes of dynamic shared memory of a block where images are large."""
    if kernel.name == "fused_conv":
        tile, style = kernel.instance.split()
        return _fused_conv_tiles(cuda, style == "scaled")[tile]
    if kernel.name in ("upfirdn2d", "upfirdn2d_separable"):
        fir, access, *_ = kernel.instance.split()
        return _upfirdn2d_tile(cuda, kernel.dtype, fir, access)
    return 0


@cache
def _fused_conv_tiles(cuda: Any, scaled: bool) -> dict[str, int]:
    """Shared memory of each tile of the tensor-core kernel, with 512 input channels."""
    problems = [(8, 128, 256), (8, 64, 256), (8, 32, 256), (1, 64, 16)]  # n, out_c, size
    tiles = {}
    for n, out_c, size in problems:
        plan = cuda.fused_conv_plan(n, 512, out_c, size, scaled, 132)
        tiles["×".join(map(str, plan["tile"]))] = plan["shared_bytes"]
    return tiles


def _upfirdn2d_tile(cuda: Any, dtype: str, fir: str, access: str) -> int:
    """Shared memory of an instance of upfirdn2d, on images of 64 channels."""
    up, down = (2 if fir.startswith(factor) else 1 for factor in ("up", "down"))
    taps = int(fir.lstrip("abcdefghijklmnopqrstuvwxyz"))
    # rows of these sizes are whole vectors, or else are not
    size = 512 if access != "elements" else 510 if up == 2 else 509
    plan = cuda.upfirdn2d_plan(
        dtype, access == "channels", 8, 64, size, up, down, taps, separable=taps > 4
    )
    assert plan["instance"] == f"{fir}_{access}", plan
    return int(plan["shared_bytes"])

"""What Triton makes of its kernels, ahead of time, for every target: compiled as a launch on large images would.

The backend's functions are called on tensors without memory, and their launches are recorded instead of carried out.
Each is specialised as Triton's launcher does, so that what is measured is what would run, down to which sizes the
compiler knows to be divisible by 16. No GPU is needed.
"""

import importlib.util
import multiprocessing
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.kernels import cases, resources
from benchmarks.kernels.budgets import TRITON
from benchmarks.kernels.cases import LAYOUTS, Case, Images
from benchmarks.kernels.resources import Kernel, Resources, UnavailableError
from gpseg.backends.contract import Backend
from gpseg.backends.triton import TritonBackend, launch
from gpseg.backends.triton.configurations import Target

TARGETS: Mapping[str, Target] = {
    "sm_80": ("cuda", 80),
    "sm_90": ("cuda", 90),
    "sm_100": ("cuda", 100),
    "sm_120": ("cuda", 120),
    "gfx942": ("hip", 0),
}
"""What is compiled for, by architecture."""

HALF_PLANES = (torch.float16, "NCHW")
HALF_PIXELS = (torch.float16, "channels_last")
FLOAT_PIXELS = (torch.float32, "channels_last")
IMAGES = {
    **dict.fromkeys(
        ("sm_80", "sm_90", "sm_100"),
        (
            HALF_PLANES,
            (torch.float32, "NCHW"),
            HALF_PIXELS,
            (torch.bfloat16, "channels_last"),
            FLOAT_PIXELS,
            (torch.float64, "channels_last"),
        ),
    ),
    **dict.fromkeys(("sm_120", "gfx942"), (HALF_PLANES, HALF_PIXELS, FLOAT_PIXELS)),
}
"""Element types by layout; bfloat16 and float64 in one of them, and the others' relatives not in all: that tells enough."""

PLAIN = (
    "fused_conv 3×3",
    "fused_conv 3×3 input gradient",
    "fused_conv 3×3 weight gradient",
)
"""The convolution in its directions; the other cases are variants."""


@dataclass(frozen=True)
class Launch:
    """A launch that was recorded: a kernel, its arguments, and its options, constexprs among them."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


def missing() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def large(backend: Backend, images: Images) -> Iterator[Case]:
    """Every kernel, on images large enough for the configurations of large images."""
    yield from cases.pointwise(backend, images, 512)
    yield from cases.resampling(backend, images, 512, 64)
    yield from cases.any_filter(backend, images, 512)
    if images.layout == torch.channels_last and images.dtype != torch.float64:
        yield from cases.convolution(backend, images, 64, 512)
        for case, call in cases.convolution(backend, images, 512, 32):
            if case in PLAIN:
                yield f"{case} 32 channels", call


@contextmanager
def recorded(target: Target, tf32: bool = True) -> Iterator[list[Launch]]:
    """Launches are put into the list instead of carried out, with the configurations for this target.

    Args:
        target: what they are for.
        tf32: convolutions of float32 round to that, on NVIDIA's GPUs.
    """
    from gpseg.backends.triton import modulated_conv

    launches: list[Launch] = []

    def record(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
        launches.append(Launch(kernel, arguments, options))

    def rounds(x: Tensor) -> bool:
        return tf32 and target[0] == "cuda" and x.dtype == torch.float32

    with (
        mock.patch.object(launch, "emulate", record),
        mock.patch.object(launch, "target_of", lambda device: target),
        mock.patch.object(modulated_conv, "multiplies_in_tf32", rounds),
    ):
        yield launches


def launches_of(
    architecture: str, dtype: torch.dtype, layout: str
) -> Iterator[tuple[Kernel, Launch]]:
    """What the cases launch on this architecture, under the kernels' names in the table of budgets."""
    target, dtype_name = TARGETS[architecture], str(dtype).removeprefix("torch.")
    backend = TritonBackend("triton", ("meta",), lambda device: None)
    for case, call in large(backend, Images(dtype, LAYOUTS[layout], "meta")):
        modes = {case: True}
        if case in PLAIN and dtype == torch.float32 and target[0] == "cuda":
            # where NVIDIA's GPUs are told not to round what they multiply to TF32
            modes[f"{case} exact"] = False
        for what, tf32 in modes.items():
            with recorded(target, tf32) as launches:
                call()
            for found in launches:
                name = TRITON + found.kernel.__name__.removesuffix("_kernel")
                yield Kernel(name, dtype_name, f"{layout} {what}"), found


def compiled(found: Launch, architecture: str) -> Any:
    """What Triton would run for this launch: its CompiledKernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    platform, capability = TARGETS[architecture]
    on_nvidia = platform == "cuda"
    target = GPUTarget(platform, capability if on_nvidia else architecture, 32 if on_nvidia else 64)
    backend, kernel = make_backend(target), found.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(*found.arguments, **found.options)
    options, signature, constexprs, attributes = kernel._pack_args(
        backend, dict(found.options), bound, specialization, None
    )
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def resources_of(found: Launch, architecture: str, cuda: Any | None) -> Resources:
    """What the kernel of a launch takes; cuda is gpseg._cuda, which knows occupancies, if there is one."""
    kernel = compiled(found, architecture)
    if architecture.startswith("gfx"):
        threads = kernel.metadata.warp_size * kernel.metadata.num_warps
        return of_assembly(kernel.asm["amdgcn"], threads, kernel.metadata.shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        usages = resources.usages(
            resources.output(resources.tool("cuobjdump"), "-res-usage", file.name)
        )
        code = resources.instructions(resources.output(resources.tool("nvdisasm"), "-c", file.name))
    name, threads = kernel.metadata.name, 32 * kernel.metadata.num_warps
    dynamic = kernel.metadata.shared
    return resources.resources_of(architecture, usages[name], code[name], threads, dynamic, cuda)


def of_assembly(text: str, threads: int, shared: int) -> Resources:
    """From the assembly that AMD's compiler writes, with its notes at the end."""
    notes = {key: int(value) for key, value in re.findall(r"^[ -]+\.(\w+):\s+(\d+)$", text, re.M)}
    counts = Counter(re.findall(r"^\t((?:buffer|global|flat|v_mfma)_\w+)", text, re.M))

    def wide(verb: str) -> int:
        return sum(n for name, n in counts.items() if f"_{verb}_dwordx4" in name)

    mma = sum(n for name, n in counts.items() if name.startswith("v_mfma"))
    return Resources(
        registers=notes["vgpr_count"],
        stack=notes["private_segment_fixed_size"],
        spills=notes["vgpr_spill_count"] + notes["sgpr_spill_count"],
        shared=0,
        dynamic=shared,
        threads=threads,
        loads=wide("load"),
        stores=wide("store"),
        copies=len(re.findall(r"^\t(?:buffer|global)_load_\w+ .*\blds\b", text, re.M)),
        ldmatrix=0,
        mma=mma,
        mma_family="v_mfma" if mma else "",
        blocks=None,
        occupancy=None,
    )


Batch = tuple[str, torch.dtype, str]
"""Architecture, element type, layout."""


def _measure_batch(batch: Batch) -> dict[Kernel, Resources]:
    torch.set_num_threads(1)
    try:
        cuda = resources.loaded(resources.built())
    except UnavailableError:
        cuda = None
    architecture, dtype, layout = batch
    return {
        kernel: resources_of(found, architecture, cuda)
        for kernel, found in launches_of(architecture, dtype, layout)
    }


def measure(
    architectures: Sequence[str] = tuple(TARGETS), processes: int | None = None
) -> dict[str, dict[Kernel, Resources]]:
    """Every case's kernels, by architecture, compiled by several processes.

    Raises:
        UnavailableError: triton or a tool is missing.
    """
    if (why := missing()) is not None:
        raise UnavailableError(why)
    batches = [(a, *images) for a in architectures for images in IMAGES[a]]
    found: dict[str, dict[Kernel, Resources]] = {a: {} for a in architectures}
    context = multiprocessing.get_context("spawn")  # torch's threads don't survive a fork
    with ProcessPoolExecutor(processes, context) as pool:
        for (architecture, *_), measured in zip(
            batches, pool.map(_measure_batch, batches), strict=True
        ):
            found[architecture].update(measured)
    return {a: dict(sorted(kernels.items())) for a, kernels in found.items()}

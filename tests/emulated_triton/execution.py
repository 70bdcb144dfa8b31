"""One launch of a Triton kernel on CPU tensors: what ttsem has to offer, put together for many small launches.

Triton binds the arguments and makes its first IR, once for each kind of them. ttsem parses it, runs one program after
another on the tensors' own memory, and looks for races in the log of their accesses.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import driver
from triton.runtime.jit import JITFunction, compute_cache_key, create_function_from_signature
from ttsem import harness, mlir, pidraces, sanitize
from ttsem._fakedriver import _FakeDriver
from ttsem.harness import LaunchRecord
from ttsem.interp import Interp
from ttsem.ir_types import Module
from ttsem.memory import Memory, MemoryFault
from ttsem.sanitize import Fault, KernelFault
from ttsem.values import Poison

TARGET = GPUTarget("cuda", 90, 32)
"""What kernels are compiled for; Triton's first IR hardly depends on it."""

APART = 1 << 40
"""Bytes between the tensors in emulated memory: no offset that is merely wrong leads from one to another."""

ALIGNMENT = 256
"""Bytes: what a tensor's emulated address has in common with the real one."""


class Compiled(NamedTuple):
    """A kernel for one kind of arguments.

    Args:
        text: its IR.
        entry: the kernel's name there.
        parameters: names of the arguments that are left in it; `name.0` and so on for those of a tuple.
    """

    text: str
    entry: str
    parameters: list[str]


def execute(
    kernel: JITFunction[Any], programs: int, arguments: Any, options: Any, number: int
) -> None:
    """Run `programs` programs of a kernel; its `number` is for the reports.

    Raises:
        ttsem.sanitize.KernelFault: an access outside a tensor, a race, or an undefined result.
        AssertionError: there are too many accesses to look for races.
    """
    __tracebackhide__ = True
    bound, specialisation, compiler_options = _binder(kernel)(*arguments, **options)
    launch = LaunchRecord(
        launch_id=number,
        fn=kernel,
        fn_name=kernel.__name__,
        fn_file=kernel.fn.__code__.co_filename,
        grid=(programs,),
        args=arguments,
        kwargs=options,
        bound=bound,
        pre={},
        post={},
        ptrs={},
    )
    key = kernel, compute_cache_key({}, specialisation, compiler_options)  # all that Triton goes by
    if key not in _COMPILED:
        _COMPILED[key] = _compile(launch)
    compiled = _COMPILED[key]
    memory = _place(launch, compiled.parameters)
    regions = _regions(launch, memory)
    seen = *key, programs, *_scalars(launch, compiled.parameters), _digest(launch, regions)
    if seen in _LEFT:
        for array, left in zip(regions.values(), _LEFT[seen], strict=True):
            array[:] = left
        return
    if programs > 1:
        memory.trace()
    module = _parsed(compiled.text)
    block = module.funcs[compiled.entry].regions[0].blocks[0]
    given = harness._arg_values(launch, compiled.parameters, block, emulated=False)
    try:
        Interp(module, memory, (programs, 1, 1)).run_grid(compiled.entry, given)
    except (MemoryFault, Poison) as error:
        fault: Fault | None = _fault(launch, error)
    else:
        fault = _race(launch, memory, compiled)
    if fault is not None:
        raise KernelFault(sanitize._with_source(fault, compiled.text, launch.fn_file))
    if sum(array.nbytes for array in regions.values()) <= REMEMBERED:
        _LEFT[seen] = [array.copy() for array in regions.values()]


def _regions(launch: LaunchRecord, memory: Memory) -> dict[int, Any]:
    """The memory of a launch by emulated address, in the order of its arguments."""
    arrays = memory.buffers()
    starts = {start // APART: start for start in arrays}
    found = (starts[base // APART] for base in launch.bases.values())
    return {start: arrays[start] for start in found}


def _digest(launch: LaunchRecord, regions: Mapping[int, Any]) -> bytes:
    """What the kernel can tell of its memory: what it holds, and where in it each tensor is."""
    order = {start // APART: (n, start) for n, start in enumerate(regions)}
    places = []
    for name, base in launch.bases.items():
        n, start = order[base // APART]
        places.append((name, n, base - start))
    digest = hashlib.blake2b(repr(places).encode())
    for array in regions.values():
        digest.update(repr((array.dtype, array.shape)).encode())
        digest.update(array)
    return digest.digest()


def _scalars(launch: LaunchRecord, parameters: list[str]) -> list[str]:
    leaves = harness._leaf_bound(launch)
    return [repr(leaves[n]) for n in parameters if not isinstance(leaves[n], Tensor)]


def _fault(launch: LaunchRecord, error: MemoryFault | Poison) -> Fault:
    fault = Fault("poison", launch.launch_id, launch.fn_name, sanitize._op_of(error))
    fault.detail = str(error)
    if isinstance(error, MemoryFault):
        fault.kind = f"oob_{error.kind}"
        fault.buffer, fault.elements_past_end, fault.elements_before_start = sanitize._locate(
            launch, error
        )
    return fault


def _race(launch: LaunchRecord, memory: Memory, compiled: Compiled) -> Fault | None:
    unchecked = memory.access_overflow and sanitize._spans_may_race(memory.access_spans, [])
    assert not unchecked, f"{launch.fn_name}: too many accesses to look for races"
    race = pidraces.find_race(memory.access_log)
    if race is None:
        return None
    return sanitize._race_fault(launch, race, launch.launch_id, compiled.text, launch.fn_file)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By size: numpy has no bfloat16."""


def covered(t: Tensor) -> Tensor:
    """The memory from a tensor's first element to its last, shared with it, as integers of its element size."""
    reach = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return _integers(t, 1 + reach if t.numel() else 0)


def _integers(t: Tensor, count: int) -> Tensor:
    """So many elements of a tensor's storage, from its first element on."""
    raw = torch.empty(0, dtype=_INTEGERS[t.element_size()])
    return raw.set_(t.untyped_storage(), t.storage_offset(), (count,), (1,))


@dataclass
class Region:
    """Memory that one tensor covers, or several that overlap: real addresses, and the emulated one of its start."""

    first: Tensor
    end: int
    base: int

    @property
    def start(self) -> int:
        return self.first.data_ptr()


def placed(tensors: Mapping[str, Tensor]) -> tuple[Memory, dict[str, int]]:
    """Emulated memory that holds nothing but these tensors, far from each other, and where each is."""
    regions: list[Region] = []
    bases = {}
    for name, t in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        start, end = t.data_ptr(), t.data_ptr() + covered(t).nbytes
        if not regions or start >= regions[-1].end:
            base = (len(regions) + 1) * APART + start % ALIGNMENT
            regions.append(Region(t, end, base))
        region = regions[-1]
        region.end = max(region.end, end)
        bases[name] = region.base + start - region.start
    memory = Memory()
    for region in regions:
        count = (region.end - region.start) // region.first.element_size()
        memory.register(region.base, _integers(region.first, count).numpy())
    return memory, bases


def _place(launch: LaunchRecord, parameters: list[str]) -> Memory:
    """Memory with the tensors of a launch, which is told where they are and what they hold."""
    leaves = harness._leaf_bound(launch)
    tensors = {n: leaves[n] for n in parameters if isinstance(leaves[n], Tensor)}
    memory, bases = placed(tensors)
    launch.ptrs = launch.bases = {n: bases[n] for n in tensors}
    launch.pre = {n: covered(t).numpy() for n, t in tensors.items()}
    return memory


_COMPILED: dict[tuple[JITFunction[Any], str], Compiled] = {}

REMEMBERED = 1 << 16
"""Bytes of memory up to which a launch is remembered."""

_LEFT: dict[tuple[Any, ...], list[Any]] = {}
"""What launches without a fault left in memory: tests of gradients begin with the launches of the forward again."""


@functools.cache
def _binder(kernel: JITFunction[Any]) -> Callable[..., Any]:
    """What makes of a call: arguments by name, what of them the compiler goes by, and its options."""
    bind: Callable[..., Any] = create_function_from_signature(
        kernel.signature, kernel.params, make_backend(TARGET)
    )
    return bind


def _compile(launch: LaunchRecord) -> Compiled:
    with _driver():
        mlir.enable_generic_printing()
        text = mlir.to_generic(harness._stage_text(launch, "ttir", TARGET), None)
        _, signature, _, _ = harness._specialize(launch.fn, launch.args, launch.kwargs, TARGET)
    parameters = [
        leaf
        for name, type_ in signature.items()
        for leaf, _, leaf_type in harness._flat_typed(name, launch.bound[name], type_)
        if leaf_type != "constexpr"
    ]
    (entry,) = harness._entry_candidates(_parsed(text), launch.fn_name)
    return Compiled(text, entry, parameters)


@functools.lru_cache(maxsize=256)  # half a megabyte each
def _parsed(text: str) -> Module:
    """The IR, which can be run again and again."""
    return mlir.parse(text)


@contextlib.contextmanager
def _driver() -> Iterator[None]:
    """A driver that knows what to compile for, and nothing else."""
    before = driver._active
    driver.set_active(_FakeDriver(TARGET.arch))
    try:
        yield
    finally:
        driver._active = before

"""One launch of a Triton kernel on CPU tensors: what ttsem has to offer, put together for many small launches.

Triton binds the arguments and makes its first IR, once for each kind of them. ttsem parses it, runs one program after
another on the tensors' own memory, and looks for races in the log of their accesses.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import driver
from triton.runtime.jit import JITFunction, compute_cache_key, create_function_from_signature
from ttsem import harness, mlir, pidraces, sanitize
from ttsem._fakedriver import _FakeDriver
from ttsem.interp import Interp
from ttsem.ir_types import Module
from ttsem.memory import Memory, MemoryFault
from ttsem.values import Poison

TARGET = GPUTarget("cuda", 90, 32)
"""What kernels are compiled for; Triton's first IR hardly depends on it."""

APART = 1 << 40
"""Bytes between the tensors in emulated memory: no offset that is merely wrong leads from one to another."""

ALIGNMENT = 256
"""Bytes of an address that emulated memory keeps."""


class Compiled(NamedTuple):
    """A kernel for one kind of arguments.

    Args:
        text: its IR.
        module: the same, parsed; it can be run again and again.
        entry: the kernel's name there.
        parameters: names of the arguments that are left in it; `name.0` and so on for those of a tuple.
    """

    text: str
    module: Module
    entry: str
    parameters: tuple[str, ...]


class Launch(NamedTuple):
    """What ttsem's reports want to know of a launch, by the names they have for it.

    Args:
        fn_name, fn_file: the kernel and its source.
        bases: where the tensors are in emulated memory, by name.
        pre: their memory.
    """

    fn_name: str
    fn_file: str
    bases: Mapping[str, int]
    pre: Mapping[str, np.ndarray]


def execute(
    kernel: JITFunction[Any], programs: int, arguments: Any, options: Any, number: int
) -> None:
    """Run `programs` programs of a kernel; its `number` is for the reports.

    Raises:
        ttsem.sanitize.KernelFault: an access outside a tensor, a race, or an undefined result.
        AssertionError: there are too many accesses to look for races.
    """
    __tracebackhide__ = True
    bound, compiled = _compiled(kernel, arguments, options)
    leaves = dict(leaf for name, value in bound.items() for leaf in harness._flat_args(name, value))
    memory, bases = placed(
        {n: leaves[n] for n in compiled.parameters if isinstance(leaves[n], Tensor)}
    )
    if programs > 1:
        memory.trace()
    types = [type_ for _, type_ in compiled.module.funcs[compiled.entry].regions[0].blocks[0].args]
    given = [
        np.array(bases[name]) if name in bases else harness._scalar_value(leaves[name], type_)
        for name, type_ in zip(compiled.parameters, types, strict=True)
    ]
    launch = Launch(
        kernel.__name__,
        kernel.fn.__code__.co_filename,
        bases,
        {n: covered(leaves[n]).numpy().view(f"u{leaves[n].element_size()}") for n in bases},
    )
    try:
        Interp(compiled.module, memory, (programs, 1, 1)).run_grid(compiled.entry, given)
    except (MemoryFault, Poison) as error:
        fault = _fault(launch, number, error)
    else:
        fault = _race(launch, number, memory, compiled)
    if fault is not None:
        raise sanitize.KernelFault(sanitize._with_source(fault, compiled.text, launch.fn_file))


def _fault(launch: Launch, number: int, error: MemoryFault | Poison) -> sanitize.Fault:
    kind, where = "poison", ()
    if isinstance(error, MemoryFault):
        kind, where = f"oob_{error.kind}", sanitize._locate(launch, error)
    op = sanitize._op_of(error)
    return sanitize.Fault(kind, number, launch.fn_name, op, *where, detail=str(error))


def _race(launch: Launch, number: int, memory: Memory, compiled: Compiled) -> sanitize.Fault | None:
    unchecked = memory.access_overflow and sanitize._spans_may_race(memory.access_spans, [])
    assert not unchecked, f"{launch.fn_name}: too many accesses to look for races"
    race = pidraces.find_race(memory.access_log)
    if race is None:
        return None
    return sanitize._race_fault(launch, race, number, compiled.text, launch.fn_file)


def covered(t: Tensor) -> Tensor:
    """The bytes from a tensor's first element to its last, shared with it."""
    reach = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return _bytes(t, (1 + reach) * t.element_size() if t.numel() else 0)


def _bytes(t: Tensor, count: int) -> Tensor:
    """Bytes of a tensor's storage, from its first element on."""
    raw = torch.empty(0, dtype=torch.uint8)
    return raw.set_(t.untyped_storage(), t.storage_offset() * t.element_size(), (count,))


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
        start, end = t.data_ptr(), t.data_ptr() + covered(t).numel()
        if not regions or start >= regions[-1].end:
            base = (len(regions) + 1) * APART + start % ALIGNMENT
            regions.append(Region(t, end, base))
        region = regions[-1]
        region.end = max(region.end, end)
        bases[name] = region.base + start - region.start
    memory = Memory()
    for region in regions:
        memory.register(region.base, _bytes(region.first, region.end - region.start).numpy())
    return memory, bases


def _compiled(
    kernel: JITFunction[Any], arguments: Any, options: Any
) -> tuple[Mapping[str, Any], Compiled]:
    """The arguments by name, and the kernel for arguments like these."""
    bound, specialisation, compiler_options = _binder(kernel)(*arguments, **options)
    key = kernel, compute_cache_key({}, specialisation, compiler_options)  # all that Triton goes by
    if key not in _COMPILED:
        _COMPILED[key] = _compile(kernel, bound, arguments, options)
    return bound, _COMPILED[key]


_COMPILED: dict[tuple[JITFunction[Any], str], Compiled] = {}


@functools.cache
def _binder(kernel: JITFunction[Any]) -> Callable[..., Any]:
    bind: Callable[..., Any] = create_function_from_signature(
        kernel.signature, kernel.params, make_backend(TARGET)
    )
    return bind


def _compile(
    kernel: JITFunction[Any], bound: Mapping[str, Any], arguments: Any, options: Any
) -> Compiled:
    record: Any = SimpleNamespace(
        fn=kernel, fn_name=kernel.__name__, args=arguments, kwargs=options
    )
    with _driver():
        _, signature, _, _ = harness._specialize(kernel, arguments, options, TARGET)
        mlir.enable_generic_printing()
        text = mlir.to_generic(harness._stage_text(record, "ttir", TARGET), None)
    module = mlir.parse(text)
    parameters = [
        leaf
        for name, type_ in signature.items()
        for leaf, _, leaf_type in harness._flat_typed(name, bound[name], type_)
        if leaf_type != "constexpr"
    ]
    (entry,) = harness._entry_candidates(module, kernel.__name__)
    return Compiled(text, module, entry, tuple(parameters))


@contextlib.contextmanager
def _driver() -> Iterator[None]:
    """A driver that knows what to compile for, and nothing else."""
    before = driver._active
    driver.set_active(_FakeDriver(TARGET.arch))
    try:
        yield
    finally:
        driver._active = before

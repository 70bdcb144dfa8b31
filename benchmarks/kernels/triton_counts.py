"""What the programs of Triton's kernels ask global memory for, counted by their emulator. It needs no GPU.

Programs, not warps: how a tile is dealt out to threads is the compiler's choice, made for each target anew.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.kernels import cases
from benchmarks.kernels.budgets import TRITON
from benchmarks.kernels.cases import LAYOUTS, Images
from benchmarks.kernels.resources import UnavailableError
from gpseg.backends import ttsem
from gpseg.backends.triton import launch
from gpseg.backends.triton.configurations import Configuration, configuration
from tests.emulated_triton import emulator


@dataclass(frozen=True)
class TritonCounts:
    """An op's kernels on one problem in float16, over the bytes of everything that goes in and comes out.

    Args:
        op: what is called, and on which problem.
        layout: of its images.
        asked: bytes that loads and stores are of; what a program asks for twice counts twice.
        once: bytes that programs touch, each counted once for every program that does: what is asked of the L2 cache
            if the L1 cache, or shared memory, keeps all that a program reads again.
    """

    op: str
    layout: str
    asked: float
    once: float

    @property
    def name(self) -> str:
        """By which budgets know it."""
        return f"{TRITON}{self.op} {self.layout}"

    @property
    def ratios(self) -> list[tuple[str, float, str]]:
        """What budgets limit."""
        return [("bytes", self.once, "")]


@dataclass
class Traffic:
    """Bytes that launches ask for, and the addresses that each of their programs touches, in pieces of 2 bytes."""

    asked: int = 0
    touched: dict[Hashable, list[NDArray[np.int64]]] = field(default_factory=dict)

    def add(self, program: Hashable, addresses: NDArray[np.int64], size: int) -> None:
        """A load or store of elements of this size."""
        distinct = np.unique(addresses)
        self.asked += distinct.size * size
        pieces = distinct[:, None] + np.arange(0, size, 2)
        self.touched.setdefault(program, []).append(pieces.ravel())

    @property
    def once(self) -> int:
        """Bytes that programs touch, each counted once for every program that does."""
        return sum(2 * np.unique(np.concatenate(pieces)).size for pieces in self.touched.values())


def cut_as_if_large(*arguments: Any) -> Configuration:
    """The configuration with which programs work as much as on large images, where there are enough programs anyway."""
    found = configuration(*arguments)
    fewest = {name: 1 if name == "programs" else size for name, size in found.tile.items()}
    return replace(found, tile=fewest)


@contextmanager
def counting() -> Iterator[Traffic]:
    """Count the accesses of launches under the emulator."""
    from ttsem.memory import Memory  # each launch makes one

    traffic = Traffic()

    def counted(self: Memory, kind: str, addresses: Any, size: int, written: Any) -> None:
        traffic.add((self, self.agent), addresses, size)

    with (
        mock.patch.object(launch, "configuration", cut_as_if_large),
        mock.patch.object(Memory, "tracing", True),
        mock.patch.object(Memory, "trace", lambda self: None),  # races are the tests' matter
        mock.patch.object(Memory, "_log", counted),
    ):
        yield traffic


def count(call: "partial[Any]") -> tuple[float, float]:
    """What a call's launches ask for, and touch once a program, over what it must move."""
    with counting() as traffic:
        result = call()
    least = cases.size_of(call, result)
    return round(traffic.asked / least, 3), round(traffic.once / least, 3)


def measure() -> list[TritonCounts]:
    """Counts of every case.

    Raises:
        UnavailableError: the kernels can't be emulated here.
    """
    if (why := emulator.missing()) is not None:
        raise UnavailableError(why)
    emulator.install()
    torch.manual_seed(0)
    return [
        TritonCounts(op, layout_name, *count(call))
        for layout_name, layout in LAYOUTS.items()
        for op, call in cases.small(ttsem.BACKEND, Images(torch.float16, layout))
    ]

"""The peak of memory is seen, in a process of its own."""

import os

import pytest
import torch

from gpseg.errors import RunError
from gpseg.selftest import memory

CPU = torch.device("cpu")
MIB = 2**20

pytestmark = pytest.mark.skipif(not memory.can_measure(CPU), reason="needs Linux")


def rise(kept: int, passing: int) -> int:
    """Peak of a call that allocates `kept` MiB beside `passing` MiB, the latter for a moment."""

    def call() -> torch.Tensor:
        y = torch.ones(kept * MIB // 4)
        torch.ones(passing * MIB // 4).sum()
        return y

    return memory.peak_rise(call, CPU)


def process() -> int:
    return os.getpid()


def die() -> None:
    os._exit(9)


def fail() -> None:
    raise ValueError("no")


@pytest.mark.parametrize(("kept", "passing"), [(16, 0), (8, 40)])
def test_sees_an_allocation(kept: int, passing: int) -> None:
    peak = memory.in_fresh_process(rise, kept, passing)
    assert kept + passing - 1 <= peak / MIB <= kept + passing + 4


def test_every_process_is_a_new_one() -> None:
    processes = {memory.in_fresh_process(process) for _ in range(2)}
    assert len(processes | {os.getpid()}) == 3


def test_what_goes_wrong_there_is_said_here() -> None:
    with pytest.raises(ValueError, match="no"):
        memory.in_fresh_process(fail)
    with pytest.raises(RunError, match="the process died"):
        memory.in_fresh_process(die)

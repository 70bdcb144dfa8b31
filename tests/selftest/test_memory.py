"""The peak of memory is seen, in a process of its own."""

import pytest
import torch

from gpseg.processes import in_fresh_process
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


@pytest.mark.parametrize(("kept", "passing"), [(16, 0), (8, 40)])
def test_sees_an_allocation(kept: int, passing: int) -> None:
    peak = in_fresh_process(rise, kept, passing)
    assert kept + passing - 1 <= peak / MIB <= kept + passing + 4

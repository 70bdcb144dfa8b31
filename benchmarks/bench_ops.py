"""Every named problem by every contestant, for pytest-benchmark: `python -m pytest benchmarks/bench_ops.py`.

The report is grouped by problem and direction, the fastest first.
"""

from typing import Any

import pytest
import torch

from gpseg.selftest.problems import NAMED, Problem
from gpseg.selftest.timing import DIRECTIONS, Contestant, Direction, contestants, inputs, prepare


@pytest.mark.parametrize("contestant", contestants(), ids=lambda c: c.name)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("problem", NAMED, ids=lambda p: p.name)
def test_speed(
    problem: Problem, direction: Direction, contestant: Contestant, benchmark: Any
) -> None:
    benchmark.group = f"{problem.name} {direction}"
    tensors = inputs(problem, torch.float32, channels_last=False)
    benchmark(prepare(problem, contestant, direction, tensors))

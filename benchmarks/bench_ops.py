"""Every named problem by every contestant, for pytest-benchmark: `python -m pytest benchmarks/bench_ops.py`.

The report is grouped by problem and direction, the fastest first.
"""

from typing import Any

import pytest
import torch

from benchmarks.problems import NAMED, Problem
from benchmarks.timing import DIRECTIONS, Direction, contestants, prepare


@pytest.mark.parametrize("contestant", contestants())
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("problem", NAMED, ids=lambda p: p.name)
def test_speed(problem: Problem, direction: Direction, contestant: str, benchmark: Any) -> None:
    benchmark.group = f"{problem.name} {direction}"
    benchmark(prepare(problem, contestant, direction, torch.float32, channels_last=False))

"""Every named problem of an operator by every contestant, for pytest-benchmark: `python -m pytest benchmarks/bench_ops.py`.

The report is grouped by problem and direction, the fastest first. Each contestant is timed by itself: `python -m benchmarks`
has them take turns, and checks them before.
"""

from typing import Any

import pytest
import torch

from gpseg.selftest.problems import NAMED, PARTS, Problem
from gpseg.selftest.timing import DIRECTIONS, Contestant, Direction, contestants, inputs, prepare

CASES = [
    pytest.param(problem, direction, contestant, id=f"{problem.name}-{direction}-{contestant.name}")
    for problem in (*NAMED, *PARTS)
    for direction in (DIRECTIONS if problem in NAMED else ("forward",))
    for contestant in contestants(problem.op)
]


@pytest.mark.parametrize(("problem", "direction", "contestant"), CASES)
def test_speed(
    problem: Problem, direction: Direction, contestant: Contestant, benchmark: Any
) -> None:
    benchmark.group = f"{problem.name} {direction}"
    torch.compiler.reset()
    tensors = inputs(problem, torch.float32, channels_last=contestant.layout == "channels_last")
    benchmark(prepare(problem, contestant, direction, tensors))

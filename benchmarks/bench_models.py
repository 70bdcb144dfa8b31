"""Every named problem of a whole model by every contestant, for pytest-benchmark: `python -m pytest benchmarks/bench_models.py`.

As `bench_ops.py`. Of pre-training a step is timed that has R1 in it, which every sixteenth has.
"""

from typing import Any

import pytest
import torch

from gpseg.selftest.models import (
    MODELS,
    ModelContestant,
    ModelDirection,
    ModelProblem,
    model_contestants,
    prepare_model,
)

CASES = [
    pytest.param(
        problem,
        direction,
        contestant,
        id=f"{problem.name}-{direction}-{contestant.name}-{contestant.dtype}".replace("torch.", ""),
    )
    for problem in MODELS
    for direction in problem.directions
    for contestant in model_contestants(problem, [torch.bfloat16])
]


@pytest.mark.parametrize(("problem", "direction", "contestant"), CASES)
def test_speed(
    problem: ModelProblem, direction: ModelDirection, contestant: ModelContestant, benchmark: Any
) -> None:
    benchmark.group = f"{problem.name} {direction}"
    torch.compiler.reset()
    benchmark(prepare_model(problem, contestant, torch.device("cpu")).call(direction))

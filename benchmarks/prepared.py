"""One problem done by gpseg itself, checked and ready to be timed: what a worker of `--base` holds."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import check, model_check, on
from gpseg.errors import RunError
from gpseg.selftest import models
from gpseg.selftest.checks import Finding
from gpseg.selftest.comparison import Reference
from gpseg.selftest.models import model_contestants
from gpseg.selftest.problems import by_name
from gpseg.selftest.timing import contestants, inputs, on_cpu, on_gpu, prepare, serving_backends


def timed_call(
    problem: str, direction: Any, dtype: str, layout: str, device: str, threads: int
) -> Callable[[], float]:
    """A function that does the problem on the backend that serves by itself, and gives the seconds it took.

    Args:
        problem: name of an operator's or a model's.
        direction, dtype, layout: what of it; a model has its own layout.
        device, threads: where.

    Raises:
        RunError: the results are wrong.
    """
    torch.set_num_threads(threads)
    where, of_type, own = torch.device(device), getattr(torch, dtype), serving_backends()[0]
    timer = on_gpu(where) if where.type == "cuda" else on_cpu()
    if problem in models.BY_NAME:
        model = models.BY_NAME[problem]
        want = models.reference(model, direction, where)
        chosen = next(
            c for c in model_contestants(model, [of_type]) if (c.name, c.dtype) == (own, of_type)
        )
        call, finding = model_check(model, chosen, direction, want, where)
    else:
        operator = by_name(problem)
        contestant = next(c for c in contestants(operator.op) if c.name == own)
        tensors = on(where, inputs(operator, of_type, layout == "channels_last"))
        finding = check(operator, contestant, direction, tensors, Reference(operator, of_type))
        call = prepare(operator, contestant, direction, tensors)
    if call is None or finding.outcome != "passed":
        raise RunError(_said(finding))
    ready = call
    for _ in range(2):  # allocations, code paths chosen at first use
        ready()
    return lambda: timer(ready)


def _said(finding: Finding) -> str:
    if finding.error is None:
        return finding.detail
    return f"{finding.detail} is wrong: error {finding.error:.1e}, tolerance {finding.tolerance}"

"""Every operator × backend × dtype × layout × direction against the textbook composition in float64."""

import pytest
import torch
from comparison import LAYOUTS, ON, device_of

from gpseg import ops
from gpseg.backends.layout import memory_format_of
from gpseg.selftest.comparison import (
    DIRECTIONS,
    DOUBLE_BACKWARD,
    DTYPES,
    FORWARD,
    derivatives,
    relative_rms,
    tolerance,
    wanted,
)
from gpseg.selftest.problems import SMALL, Problem

BATCHED = [
    p for p in SMALL if p.options.get("dim") != 0
]  # a bias along the batch can't lose the batch


def test_uninitialised_memory_is_poisoned() -> None:
    x = torch.zeros(3)
    for t in (torch.empty(3), torch.empty_like(x), x.new_empty(3)):
        assert t.isnan().all()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("backend", ON)
@pytest.mark.parametrize("problem", SMALL, ids=lambda p: p.name)
def test_agrees_with_textbook(
    problem: Problem, backend: str, dtype: torch.dtype, layout: str, direction: str
) -> None:
    order = DIRECTIONS[direction]
    inputs = {k: t.to(device_of(backend)) for k, t in problem.tensors(dtype).items()}
    with ops.use_backend(backend):
        got = derivatives(problem, ops, inputs, order, LAYOUTS[layout], dtype)
    want = wanted(problem.name, dtype, order)
    assert got.keys() == want.keys()
    for name, t in got.items():
        assert t.dtype == dtype
        assert relative_rms(t, want[name]) < tolerance(problem, dtype, order), name
    if order < DOUBLE_BACKWARD:
        x = LAYOUTS[layout](inputs["x"])
        images = got["y" if order == FORWARD else "x"]
        assert images.is_contiguous(memory_format=memory_format_of(x))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("backend", ON)
@pytest.mark.parametrize("problem", BATCHED, ids=lambda p: p.name)
def test_empty_batch(problem: Problem, backend: str, dtype: torch.dtype, direction: str) -> None:
    order = DIRECTIONS[direction]
    full = {k: t.to(device_of(backend)) for k, t in problem.tensors(dtype).items()}
    batch = full["x"].shape[0]
    per_sample = [
        k for k, t in full.items() if k in ("x", "styles", "noise") and t.shape[0] == batch
    ]
    inputs = {k: t[:0] if k in per_sample else t for k, t in full.items()}
    with ops.use_backend(backend):
        got = derivatives(problem, ops, inputs, order)
        shape = problem.call(ops, full).shape
    for name, t in got.items():
        if name in ("y", "dy"):
            assert t.shape == (0, *shape[1:])
        else:
            assert t.shape == inputs[name].shape
        assert not t.any(), name  # a sum over no samples is 0

"""Every op against numbers from an independent implementation: values, first and second order."""

import json
from pathlib import Path

import pytest
import torch
from comparison import ON, device_of
from safetensors.torch import load_file
from torch import Tensor

from gpseg import ops
from gpseg.selftest.comparison import TOLERANCE, relative_rms

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "golden_cases.json").read_text())
TENSORS = load_file(DATA / "golden.safetensors")

CASE = pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{i}-{CASES[i]['op']}")
BACKEND = pytest.mark.parametrize("backend", ON)


def tensors_of(index: int) -> dict[str, Tensor]:
    prefix = f"{index}."
    return {k.removeprefix(prefix): t for k, t in TENSORS.items() if k.startswith(prefix)}


def results(index: int, backend: str, dtype: torch.dtype, order: int) -> dict[str, Tensor]:
    """The case's "y", gradients "g_…" and second-order gradients "gg_…", by this backend in this type."""
    case, given = CASES[index], tensors_of(index)
    t = {name: tensor.to(device_of(backend)) for name, tensor in given.items()}
    if dtype != torch.float64:  # as the file has them, filters are float32
        t = {name: tensor.to(dtype) for name, tensor in t.items()}
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in case["kwargs"].items()}
    inputs = {
        name: t[name].clone().requires_grad_(f"g_{name}" in t or f"gg_{name}" in t)
        for name in case["inputs"]
    }
    gy = t["gy"].clone().requires_grad_()
    with ops.use_backend(backend):
        y = getattr(ops, case["op"])(**_named(case["op"], inputs), **kwargs)
        names = [name for name in inputs if f"g_{name}" in t]
        firsts = torch.autograd.grad(y, [inputs[n] for n in names], gy, create_graph=order > 1)
        found = {"y": y} | {f"g_{n}": first for n, first in zip(names, firsts, strict=True)}
        if order > 1:
            weighted = sum((g * t[f"c_{n}"]).sum() for n, g in zip(names, firsts, strict=True))
            seconds = [name.removeprefix("gg_") for name in t if name.startswith("gg_")]
            assert seconds
            leaves = [gy if name == "gy" else inputs[name] for name in seconds]
            grads = torch.autograd.grad(weighted, leaves)
            found |= {f"gg_{n}": grad for n, grad in zip(seconds, grads, strict=True)}
    return found


def _named(op: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"f": "resample_filter"} if op == "modulated_conv2d" else {}
    return {names.get(name, name): tensor for name, tensor in inputs.items()}


@BACKEND
@CASE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_golden(index: int, backend: str, dtype: torch.dtype) -> None:
    want = tensors_of(index)
    for name, got in results(index, backend, dtype, order=2).items():
        assert got.dtype == dtype
        assert relative_rms(got, want[name]) < TOLERANCE[dtype], name


@BACKEND
@CASE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_golden_in_half_types(
    index: int, backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64 for the same rounded numbers, which is what the golden file holds but for the rounding."""
    got = results(index, backend, dtype, order=1)
    rounded = {k: t.to(dtype).double() for k, t in TENSORS.items()}
    monkeypatch.setitem(globals(), "TENSORS", rounded)
    want = results(index, "eager", torch.float64, order=1)
    for name, t in got.items():
        assert t.dtype == dtype
        # an activation's input is rounded too, and may fall on the other side of its kink
        allowed = TOLERANCE[dtype] * (1 if name == "y" else 4)
        assert relative_rms(t, want[name]) < allowed, name

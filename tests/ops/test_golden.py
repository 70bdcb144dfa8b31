"""Every op against numbers from an independent implementation: values, first and second order."""

import json
from pathlib import Path

import pytest
import torch
from comparison import ON, device_of
from safetensors.torch import load_file

from gpseg import ops
from gpseg.selftest.comparison import relative_rms

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "golden_cases.json").read_text())
TENSORS = load_file(DATA / "golden.safetensors")


def tensors_of(index: int) -> dict[str, torch.Tensor]:
    prefix = f"{index}."
    return {k.removeprefix(prefix): t for k, t in TENSORS.items() if k.startswith(prefix)}


@pytest.mark.parametrize("backend", ON)
@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{i}-{CASES[i]['op']}")
def test_golden(index: int, backend: str) -> None:
    case = CASES[index]
    t = {name: tensor.to(device_of(backend)) for name, tensor in tensors_of(index).items()}
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in case["kwargs"].items()}
    inputs = {
        name: t[name].clone().requires_grad_(f"g_{name}" in t or f"gg_{name}" in t)
        for name in case["inputs"]
    }
    gy = t["gy"].clone().requires_grad_()
    with ops.use_backend(backend):
        y = getattr(ops, case["op"])(**_named(case["op"], inputs), **kwargs)
        assert relative_rms(y, t["y"]) < 1e-9
        names = [name for name in inputs if f"g_{name}" in t]
        firsts = torch.autograd.grad(y, [inputs[n] for n in names], gy, create_graph=True)
        for name, first in zip(names, firsts, strict=True):
            assert relative_rms(first, t[f"g_{name}"]) < 1e-9, name
        weighted = sum((g * t[f"c_{n}"]).sum() for n, g in zip(names, firsts, strict=True))
        seconds = [name.removeprefix("gg_") for name in t if name.startswith("gg_")]
        assert seconds
        leaves = [gy if name == "gy" else inputs[name] for name in seconds]
        grads = torch.autograd.grad(weighted, leaves)
        for name, grad in zip(seconds, grads, strict=True):
            assert relative_rms(grad, t[f"gg_{name}"]) < 1e-9, name


def _named(op: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {"f": "resample_filter"} if op == "modulated_conv2d" else {}
    return {names.get(name, name): tensor for name, tensor in inputs.items()}

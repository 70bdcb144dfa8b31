"""Autocast brings convolutions to its type and leaves the other ops theirs, in public functions and raw ops."""

import pytest
import torch
from comparison import BACKENDS
from torch import Tensor

from gpseg import ops
from gpseg.selftest.comparison import relative_rms

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def layer_tensors(x_dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"x": (2, 8, 6, 6), "weight": (8, 8, 3, 3), "styles": (2, 8), "bias": (8,)}
    made = {n: torch.randn(*s, generator=generator).requires_grad_() for n, s in sizes.items()}
    return {**made, "x": made["x"].detach().to(x_dtype).requires_grad_()}


@HALF
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_runs_in_the_type_of_autocast(
    dtype: torch.dtype, backend: str, x_dtype: torch.dtype
) -> None:
    tensors = layer_tensors(x_dtype)
    with ops.use_backend(backend):
        with torch.autocast("cpu", dtype):
            y = ops.modulated_conv2d_act(**tensors, padding=1)
        gradients = torch.autograd.grad(y.float().square().sum(), [*tensors.values()])
        by_hand = {k: t.detach() for k, t in tensors.items()}
        by_hand |= {k: by_hand[k].to(dtype) for k in ("x", "weight")}
        want = ops.modulated_conv2d_act(**by_hand, padding=1)
    assert y.dtype == dtype
    assert [g.dtype for g in gradients] == [t.dtype for t in tensors.values()]
    assert all(g.isfinite().all() and g.any() for g in gradients)
    assert torch.equal(y, want)


@HALF
def test_nothing_inside_an_op_is_cast(dtype: torch.dtype) -> None:
    """The demodulation is a matrix product in float32, which autocast would lower."""
    tensors = {k: t.detach().to(dtype) for k, t in layer_tensors().items()}
    tensors["styles"] = tensors["styles"].float()
    want = ops.modulated_conv2d_act(**tensors, padding=1)
    with torch.autocast("cpu", dtype):
        assert torch.equal(ops.modulated_conv2d_act(**tensors, padding=1), want)


@HALF
def test_conv2d_resample(dtype: torch.dtype) -> None:
    x, w = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 3, 3)
    with torch.autocast("cpu", dtype):
        y = ops.conv2d_resample(x, w, ops.setup_filter([1, 3, 3, 1]), down=2, padding=1)
        raw = torch.ops.gpseg.conv2d(x, w, [1, 1], [1, 1], False, [0, 0], 1)
    assert y.dtype == raw.dtype == dtype


LAYERS = {
    "conv2d_resample": lambda t: ops.conv2d_resample(t["x"], t["weight"], padding=1),
    "modulated_conv2d_act": lambda t: ops.modulated_conv2d_act(**t, padding=1),
    "bias_act": lambda t: ops.bias_act(t["x"], t["bias"], act="swish"),
}


@HALF
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backward_pass_keeps_the_types_of_its_forward(
    dtype: torch.dtype, layer: str, backend: str
) -> None:
    """Inside a region of autocast too, to the second order; 2^19 is infinite in float16."""
    tensors = layer_tensors()

    def gradients(inside: bool) -> list[Tensor]:
        y = LAYERS[layer](tensors)
        leaves = [tensors["x"], tensors["bias" if layer == "bias_act" else "weight"]]
        with torch.autocast("cpu", dtype, enabled=inside):
            firsts = torch.autograd.grad((y * 2**19).sum(), leaves, create_graph=True)
            loss = torch.stack([(g * 2.0**-10).square().sum() for g in firsts]).sum()
            seconds = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [g for g in (*firsts, *seconds) if g is not None]

    with ops.use_backend(backend):
        got, want = gradients(inside=True), gradients(inside=False)
    assert all(g.isfinite().all() for g in got)
    for g, wanted in zip(got, want, strict=True):
        assert torch.equal(g, wanted)


@HALF
def test_pointwise_ops_and_filters_keep_their_type(dtype: torch.dtype) -> None:
    x, f = torch.randn(1, 4, 6, 6), torch.ones(3)
    want = ops.bias_act(ops.filter2d(x, f), act="swish")
    with torch.autocast("cpu", dtype):
        y = ops.bias_act(ops.filter2d(x, f), act="swish")
    assert torch.equal(y, want)


def test_float64_is_never_lowered() -> None:
    tensors = {k: t.detach().double() for k, t in layer_tensors().items()}
    want = ops.modulated_conv2d_act(**tensors, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.modulated_conv2d_act(**tensors, padding=1), want)


@pytest.mark.parametrize("name", ["upfirdn2d", "bias_act", "conv2d", "modulated_conv2d_act"])
@pytest.mark.parametrize("key", ["AutocastCPU", "AutocastCUDA"])
def test_every_op_has_a_rule(name: str, key: str) -> None:
    ending = ["", "_backward", "_double_backward"] if name == "bias_act" else [""]
    ending += ["_backward"] if name == "modulated_conv2d_act" else []
    ending += ["_weight_grad"] if name == "conv2d" else []
    for suffix in ending:
        has = torch._C._dispatch_has_kernel_for_dispatch_key(f"gpseg::{name}{suffix}", key)
        assert has, name + suffix


def test_two_types_without_autocast_are_an_error() -> None:
    with pytest.raises(TypeError, match=r"weight is torch\.float32 but x is torch\.bfloat16"):
        ops.modulated_conv2d_act(**layer_tensors(torch.bfloat16), padding=1)


@pytest.mark.slow
def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {k: t.detach() for k, t in layer_tensors().items()}

    def layer(**tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ops.modulated_conv2d_act(**tensors, padding=1)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert relative_rms(compiled(**tensors), layer(**tensors)) < 1e-2


@pytest.mark.slow
def test_a_compiled_backward_pass() -> None:
    tensors = layer_tensors()
    results = []
    for layer in (
        ops.modulated_conv2d_act,
        torch.compile(ops.modulated_conv2d_act, fullgraph=True, backend="aot_eager"),
    ):
        y = layer(**tensors, padding=1)
        with torch.autocast("cpu", torch.float16):
            results.append(torch.autograd.grad((y * 2**19).sum(), [*tensors.values()]))
    for got, want in zip(*results, strict=True):
        assert got.isfinite().all()
        assert relative_rms(got, want) < 1e-6

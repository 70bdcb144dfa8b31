"""The modulated convolution and the synthesis layer: derivatives, float16, memory, bad arguments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import BACKENDS, is_slow
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpseg import ops
from gpseg.ops.bias_act import ACTIVATIONS
from gpseg.selftest import textbook
from gpseg.selftest.comparison import relative_rms
from gpseg.selftest.problems import BINOMIAL, UNEVEN

F64 = torch.float64
NOISE = {"none": None, "map": (), "per_sample": (2, 1)}


def layer(
    act: str = "linear",
    noise: str = "none",
    seed: int = 0,
    dtype: torch.dtype = F64,
    size: int = 4,
    **options: Any,
) -> tuple[Callable[..., Tensor], tuple[Tensor | None, ...]]:
    """A function of (x, weight, styles, bias, noise) for each module, and its leaves."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        t = torch.randn(*shape, generator=generator, dtype=F64)
        return t.to(dtype).requires_grad_()

    up, down = options.get("up", 1), options.get("down", 1)
    options = {"padding": 1, "resample_filter": ops.setup_filter(UNEVEN), "act": act, **options}
    out = size * up // down
    leading = NOISE[noise]
    leaves = (
        leaf(2, 2, size, size),
        leaf(3, 2, 3, 3),
        leaf(2, 2),
        leaf(3) if act != "linear" else None,
        None if leading is None else leaf(*leading, out, out),
    )

    def call(
        x: Tensor,
        weight: Tensor,
        styles: Tensor,
        bias: Tensor | None,
        noise: Tensor | None,
        module: Any = ops,
    ) -> Tensor:
        return module.modulated_conv2d_act(x, weight, styles, bias, noise=noise, **options)

    return call, leaves


@pytest.mark.parametrize(
    ("backend", "noise"),
    [(b, noise) for b in BACKENDS for noise in (["map"] if is_slow(b) else NOISE)],
)
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize(("act", "clamp"), [("linear", None), ("lrelu", 1.5)])
def test_gradients(
    act: str, clamp: float | None, up: int, down: int, demodulate: bool, noise: str, backend: str
) -> None:
    call, leaves = layer(act, noise, up=up, down=down, demodulate=demodulate, clamp=clamp)
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize(
    ("backend", "act"),
    [(b, act) for b in BACKENDS for act in (["swish"] if is_slow(b) else ACTIVATIONS)],
)
def test_gradients_of_each_activation(act: str, backend: str) -> None:
    call, leaves = layer(act, "per_sample", up=2, clamp=2.5, flip_weight=False)
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_element_by_element(backend: str) -> None:
    call, leaves = layer("swish", "map", size=2)
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(call, leaves)
        assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [4], [0, 3]])
def test_gradients_of_some_inputs_only(wanted: list[int], backend: str) -> None:
    call, leaves = layer("tanh", "map")
    leaves = tuple(t.detach().requires_grad_(i in wanted) for i, t in enumerate(leaves))
    inputs = [leaves[i] for i in wanted]

    def gradients(module: Any) -> tuple[Tensor, ...]:
        y = call(*leaves, module=module)
        firsts = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return *firsts, *torch.autograd.grad(sum(g.square().sum() for g in firsts), inputs)

    with ops.use_backend(backend):
        got = gradients(ops)
    for g, want in zip(got, gradients(textbook), strict=True):
        assert relative_rms(g, want) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("demodulate", [True, False])
def test_second_order_where_inputs_depend_on_each_other(demodulate: bool, backend: str) -> None:
    """As in a network: the styles of two layers come of one w, x of the first layer, dy of y."""
    w = torch.randn(2, 2, dtype=F64, requires_grad=True)
    x = torch.randn(2, 2, 4, 4, dtype=F64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=F64, requires_grad=True)
    options = {"padding": 1, "demodulate": demodulate, "act": "tanh"}

    def gradients(module: Any) -> tuple[Tensor, ...]:
        y = module.modulated_conv2d_act(x, weight, w + 1, **options)
        y = module.modulated_conv2d_act(y, weight, w.sin(), **options)
        firsts = torch.autograd.grad(y.square().sum(), (w, x), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in firsts), (w, x, weight))

    with ops.use_backend(backend):
        got = gradients(ops)
    for g, want in zip(got, gradients(textbook), strict=True):
        assert relative_rms(g, want) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("demodulate", [True, False])
def test_third_order_without_activation(demodulate: bool, backend: str) -> None:
    call, leaves = layer(size=3, demodulate=demodulate, gain=0.5)
    inputs = tuple(t for t in leaves if t is not None)

    def second(*inputs: Tensor) -> tuple[Tensor, ...]:
        y = call(*inputs, None, None).pow(2).sum()
        firsts = torch.autograd.grad(y, inputs, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in firsts), inputs, create_graph=True)

    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(second, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("up", [1, 2])
def test_no_weight_grad(up: int, demodulate: bool, backend: str) -> None:
    call, (x, weight, styles, bias, noise) = layer("tanh", "map", up=up, demodulate=demodulate)

    def score(module: Any) -> Tensor:
        return call(x, weight, styles, bias, noise, module=module).square().sum()

    firsts = torch.autograd.grad(score(textbook), (x, styles), create_graph=True)
    wanted = torch.autograd.grad(sum(g.square().sum() for g in firsts), (x, weight, styles))
    with ops.use_backend(backend):
        y = score(ops)
    with ops.no_weight_grad():
        dx, dw, ds = torch.autograd.grad(
            y, (x, weight, styles), create_graph=True, allow_unused=True
        )
        penalty = dx.square().sum() + ds.square().sum()
        inside = torch.autograd.grad(
            penalty, (x, weight, styles), retain_graph=True, allow_unused=True
        )
    assert dw is None
    assert inside[1] is None
    outside = torch.autograd.grad(penalty, (x, weight, styles))
    for g, want in zip(outside, wanted, strict=True):
        assert relative_rms(g, want) < 1e-9
    assert relative_rms(inside[0], wanted[0]) < 1e-9
    assert relative_rms(inside[2], wanted[2]) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_order_of_a_weight_gradient_inside_no_weight_grad(backend: str) -> None:
    """A weight gradient taken outside the context stays differentiable in x inside it."""
    call, (x, weight, styles, _, _) = layer()

    def gradient(module: Any) -> Tensor:
        y = call(x, weight, styles, None, None, module=module)
        return torch.autograd.grad(y.square().sum(), weight, create_graph=True)[0]

    (want,) = torch.autograd.grad(gradient(textbook).square().sum(), x)
    with ops.use_backend(backend):
        dw = gradient(ops)
    with ops.no_weight_grad():
        dx, none = torch.autograd.grad(dw.square().sum(), (x, weight), allow_unused=True)
    assert relative_rms(dx, want) < 1e-9
    assert none is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize(
    ("weight_scale", "style_scale"), [(1e4, 1.0), (1.0, 1e4), (3e4, 3e4), (1e-6, 1e-3)]
)
def test_float16_survives_any_scale_that_demodulation_cancels(
    weight_scale: float, style_scale: float, up: int, backend: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 6, 6, generator=generator).half().requires_grad_()
    weight = (
        (torch.rand(8, 32, 3, 3, generator=generator) * 2 - 1)
        .mul(weight_scale)
        .half()
        .requires_grad_()
    )
    styles = (torch.rand(2, 32, generator=generator) * 2 - 1).mul(style_scale).requires_grad_()
    options = {"padding": 1, "up": up, "resample_filter": ops.setup_filter(BINOMIAL)}
    with ops.use_backend(backend):
        y = ops.modulated_conv2d(x, weight, styles, **options)
        got = torch.autograd.grad(y, (x, styles), torch.ones_like(y))
    # in float64 the ε of the demodulation is compared with the scaled sum: scale the reference back up
    double = [t.detach().double() for t in (x, weight, styles)]
    double = [double[0], double[1] / weight_scale, double[2] / style_scale]
    double = [t.requires_grad_() for t in double]
    want = textbook.modulated_conv2d(*double, **options)
    dx, ds = torch.autograd.grad(want, (double[0], double[2]), torch.ones_like(want))
    assert relative_rms(y, want) < 5e-3
    assert relative_rms(got[0], dx) < 1e-2
    assert relative_rms(got[1] * style_scale, ds) < 2e-2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("styles_dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_styles_of_another_type(
    dtype: torch.dtype, styles_dtype: torch.dtype, backend: str
) -> None:
    call, leaves = layer("swish", "per_sample", dtype=dtype, up=2)
    styles = leaves[2].detach().to(styles_dtype).requires_grad_()
    inputs = (*leaves[:2], styles, *leaves[3:])
    double = [t.detach().double().requires_grad_() for t in inputs]

    def gradients(module: Any, inputs: Any) -> tuple[Tensor, ...]:
        y = call(*inputs, module=module)
        firsts = torch.autograd.grad(y.sum(), inputs, create_graph=True)
        return (
            y,
            *firsts,
            *torch.autograd.grad(sum(g.square().sum().double() for g in firsts), inputs),
        )

    with ops.use_backend(backend):
        got = gradients(ops, inputs)
    assert [t.dtype for t in got] == [dtype, *[t.dtype for t in inputs] * 2]
    types = {dtype, styles_dtype}
    worst = 0.1 if torch.bfloat16 in types else 2e-2 if torch.float16 in types else 1e-5
    for g, want in zip(got, gradients(textbook, double), strict=True):
        assert relative_rms(g, want) < worst


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation returns while this is on."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.numel())
        return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("up", [1, 2])
def test_no_weight_per_sample(up: int, backend: str) -> None:
    """Nothing as large as [N, O, I, k, k] is ever made, where the images are much smaller."""
    n, o, i = 8, 16, 16
    leaves = [torch.randn(n, i, 3, 3), torch.randn(o, i, 3, 3), torch.randn(n, i), torch.randn(o)]
    leaves = [t.requires_grad_() for t in leaves]
    f = ops.setup_filter(BINOMIAL)

    def all_directions(module: Any) -> None:
        y = module.modulated_conv2d_act(*leaves, up=up, padding=1, resample_filter=f)
        firsts = torch.autograd.grad(y.sum(), leaves, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in firsts), leaves)

    with Largest() as seen, ops.use_backend(backend):
        all_directions(ops)
    assert 0 < seen.elements < n * o * i * 3 * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_activation_is_modulated_conv2d(backend: str) -> None:
    call, (x, weight, styles, _, noise) = layer("linear", "map")
    with ops.use_backend(backend):
        plain = ops.modulated_conv2d(x, weight, styles, noise, padding=1)
        assert torch.equal(plain, call(x, weight, styles, None, noise))


def test_tensors_without_memory() -> None:
    _, leaves = layer("lrelu", "map")
    x, weight, styles, bias, noise = (None if t is None else t.to("meta") for t in leaves)
    y = ops.modulated_conv2d_act(x, weight, styles, bias, noise=noise, padding=1)
    assert (y.shape, y.device.type) == ((2, 3, 4, 4), "meta")


X, W, S = torch.zeros(2, 4, 6, 6), torch.zeros(3, 4, 3, 3), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[0]}, ValueError, "x must be"),
        ({"x": X.int()}, TypeError, "x must be float16"),
        ({"weight": W[0]}, ValueError, "weight must be"),
        ({"weight": W[:, :3]}, ValueError, r"weight \[3, 3, 3, 3\].*does not fit x"),
        ({"weight": W.half()}, TypeError, "weight is torch.float16 but x is torch.float32"),
        ({"styles": S[:1]}, ValueError, r"styles must be \[2, 4\], got \[1, 4\]"),
        ({"styles": S.int()}, TypeError, "styles must be float16"),
        ({"styles": S.to("meta")}, ValueError, "styles is on meta"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must be \[3\], got \[4\]"),
        ({"bias": torch.zeros(3).int()}, TypeError, "bias must be float16"),
        ({"bias": [0.0] * 3}, TypeError, "bias must be a tensor, got list"),
        ({"bias": torch.zeros(3, device="meta")}, ValueError, "bias is on meta"),
        ({"noise": torch.zeros(6, 6)}, ValueError, r"noise must be \[2, 1, 4, 4\] or \[4, 4\]"),
        ({"noise": torch.zeros(2, 3, 4, 4)}, ValueError, "noise must be"),
        ({"noise": torch.zeros(4, 4).int()}, TypeError, "noise must be float16"),
        ({"up": 0}, ValueError, "up must be an int of at least 1"),
        ({"down": "2"}, ValueError, "down must be an int of at least 1, got '2'"),
        ({"padding": -3}, ValueError, "the result would be"),
        ({"resample_filter": torch.ones(1, 1, 1)}, ValueError, "the filter must be"),
        ({"act": "mish"}, ValueError, "unknown activation 'mish'"),
        ({"clamp": -2}, ValueError, "clamp must be at least 0"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.modulated_conv2d_act(**{"x": X, "weight": W, "styles": S, **arguments})


LAYER = (1, 1, [1, 1, 1, 1], True, True, "lrelu", 0.2, 1.0, -1.0)
AFFINE = (1, 1, [1, 1, 1, 1], False, True, "linear", 0.0, 1.0, -1.0)
Y = torch.zeros(2, 3, 6, 6)
GRADIENT = {
    "dy": Y,
    "x": X,
    "weight": W,
    "styles": S,
    "bias": None,
    "noise": None,
    "f": None,
    "c": Y,
}


def gradient(layer: tuple[Any, ...], **tensors: Any) -> tuple[Tensor, ...]:
    return ops.modulated_conv2d_act_backward(*{**GRADIENT, **tensors}.values(), True, True, *layer)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"dy": Y[:, :, :1, :1]}, ValueError, r"dy must be \[2, 3, 6, 6\], got \[2, 3, 1, 1\]"),
        ({"dy": Y[0]}, ValueError, r"dy must be \[2, 3, 6, 6\], got \[3, 6, 6\]"),
        ({"dy": Y.to("meta")}, ValueError, "dy is on meta but x on cpu"),
        ({"dy": Y.int()}, TypeError, "dy must be float16"),
        ({"c": Y[:1]}, ValueError, r"c must be \[2, 3, 6, 6\], got \[1, 3, 6, 6\]"),
        ({"c": torch.empty(0)}, ValueError, r"c must be \[2, 3, 6, 6\], got \[0\]"),
        ({"x": X[0]}, ValueError, "x must be"),
        ({"weight": W[:, :3]}, ValueError, r"a weight \[3, 3, 3, 3\].*does not fit x"),
        ({"weight": W[:0]}, ValueError, r"a weight \[0, 4, 3, 3\] has no channels or no taps"),
        ({"weight": W.half()}, TypeError, "weight is torch.float16 but x is torch.float32"),
        ({"styles": S[:1]}, ValueError, r"styles must be \[2, 4\], got \[1, 4\]"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must be \[3\], got \[4\]"),
        ({"noise": torch.zeros(4, 4)}, ValueError, r"noise must be \[2, 1, 6, 6\] or \[6, 6\]"),
        ({"f": torch.ones(1, 1, 1)}, ValueError, "the filter must be"),
    ],
)
def test_the_gradient_refuses(
    tensors: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"modulated_conv2d_act_backward: {message}"):
        gradient(LAYER, **tensors)


def test_the_gradient_refuses_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        gradient((*LAYER[:5], "gelu", *LAYER[6:]))


def test_an_affine_layers_gradient_needs_no_convolution() -> None:
    dx, dweight, dstyles, dbias, dnoise = gradient(AFFINE, c=torch.empty(0))
    assert (dx.shape, dweight.shape, dstyles.shape) == (X.shape, W.shape, S.shape)
    assert dbias.numel() == dnoise.numel() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("out_c", [3, 8])
@pytest.mark.parametrize("weights", [True, False], ids=["weights too", "styles alone"])
def test_float16_sums_over_large_images(backend: str, out_c: int, weights: bool) -> None:
    """Of ToRGB's gradients: more pixels than float16 can count, cancelled by the weights and by small styles."""
    if is_slow(backend):
        pytest.skip("262,144 pixels in an emulator")
    x = torch.ones(1, 16, 512, 512).half() + 0.1 * torch.randn(16, 1, 1).half()
    w = (torch.randn(out_c, 16, 1, 1) / 512).requires_grad_(weights)
    s = torch.full((1, 16), 0.01).requires_grad_()

    def gradients(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        y = ops.modulated_conv2d(x, w, s, demodulate=False)
        return torch.autograd.grad(y, (s, w) if weights else (s,), torch.ones_like(y))

    wanted = gradients(x.float(), w)
    with ops.use_backend(backend):
        got = gradients(x, w.detach().half().requires_grad_(weights))
    for g, want in zip(got, wanted, strict=True):
        assert relative_rms(g, want) < 5e-3

"""bias_act: derivatives of every activation, the clamp's edge, scalars in double, bad arguments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import BACKENDS, is_slow
from torch import Tensor

from gpseg import backends, ops
from gpseg.ops.bias_act import ACTIVATIONS
from gpseg.selftest import textbook
from gpseg.selftest.comparison import relative_rms

F64 = torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clamp", [None, 0.6])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradients(act: str, clamp: float | None, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 2, 2, dtype=F64, generator=generator).requires_grad_()
    b = torch.randn(3, dtype=F64, generator=generator).requires_grad_()

    def call(x: Tensor, b: Tensor | None) -> Tensor:
        return ops.bias_act(x, b, act=act, clamp=clamp)

    fast = is_slow(backend)
    with ops.use_backend(backend):
        for arguments in ((x, b), (x, None), (x.detach(), b)):
            assert torch.autograd.gradcheck(call, arguments, fast_mode=fast)
            assert torch.autograd.gradgradcheck(call, arguments, fast_mode=fast)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_far_from_zero(act: str, backend: str) -> None:
    """Nothing overflows to NaN where the result and both derivatives are finite."""
    for dtype in (torch.float32, F64):
        x = torch.tensor([-1e4, -90.0, -30.0, -1e-3, 1e-3, 30.0, 90.0, 1e4], dtype=dtype)[None]
        want = x.double().requires_grad_()
        x.requires_grad_()
        with ops.use_backend(backend):
            y = ops.bias_act(x, act=act)
            dy = torch.ones_like(y).requires_grad_()
            (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
            (second,) = torch.autograd.grad(dx.sum(), x, materialize_grads=True)
        wanted = textbook.bias_act(want, act=act)
        (wanted_dx,) = torch.autograd.grad(wanted.sum(), want)
        rtol = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(y.double(), wanted, rtol=rtol, atol=1e-7)
        torch.testing.assert_close(dx.double(), wanted_dx, rtol=rtol, atol=1e-7)
        assert second.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "clamp"),
    [
        (torch.float16, 1.5),
        (torch.bfloat16, 1.5),
        (torch.float32, 1.5),
        (
            torch.float32,
            0.1,
        ),  # not a binary fraction: the limit itself is rounded, as torch.clamp rounds it
        (F64, 0.1),
    ],
)
@pytest.mark.parametrize("act", ["linear", "lrelu"])
def test_gradient_at_the_clamp(act: str, dtype: torch.dtype, clamp: float, backend: str) -> None:
    limit = torch.tensor(clamp, dtype=dtype)
    beyond = (
        torch.nextafter(limit.float(), torch.tensor(9.0)) if dtype == torch.float32 else limit * 2
    )
    x = torch.stack([limit, beyond.to(dtype), limit / 2, 4 * limit]).requires_grad_()
    with ops.use_backend(backend):
        y = ops.bias_act(x[None], act=act, gain=1, clamp=clamp)
        (dx,) = torch.autograd.grad(y.sum(), x)
    assert y[0].tolist() == [limit, limit, limit / 2, limit]
    assert dx.tolist() == [1, 0, 1, 0]
    if act == "linear":
        with ops.use_backend(backend):
            (dx,) = torch.autograd.grad(ops.bias_act(-x[None], gain=1, clamp=clamp).sum(), x)
        assert dx.tolist() == [-1, 0, -1, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_clamp_comes_after_gain(backend: str) -> None:
    with ops.use_backend(backend):
        y = ops.bias_act(torch.tensor([[1.0, -1.0, 0.01]]), gain=10, clamp=3)
    torch.testing.assert_close(y, torch.tensor([[3.0, -3.0, 0.1]]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_clamp_of_zero_is_a_clamp(backend: str) -> None:
    with ops.use_backend(backend):
        assert not ops.bias_act(torch.randn(2, 3), clamp=0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_scalars_stay_in_double(backend: str) -> None:
    one = torch.ones(1, 1, dtype=F64)
    with ops.use_backend(backend):
        assert ops.bias_act(one, gain=0.1).item() == 0.1
        assert ops.bias_act(one, clamp=0.1).item() == 0.1
        assert ops.bias_act(-one, act="lrelu", alpha=0.1, gain=1).item() == -0.1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(7,), (3, 7), (2, 7, 5), (2, 3, 7, 2, 2)])
def test_any_number_of_dimensions(size: tuple[int, ...], backend: str) -> None:
    dim = size.index(7)
    x, b = torch.randn(size, dtype=F64).requires_grad_(), torch.randn(7, dtype=F64).requires_grad_()
    dy = torch.randn(size, dtype=F64)
    want = textbook.bias_act(x, b, dim, "swish")
    wanted = torch.autograd.grad(want, (x, b), dy)
    with ops.use_backend(backend):
        y = ops.bias_act(x, b, dim, "swish")
        got = torch.autograd.grad(y, (x, b), dy)
    assert relative_rms(y, want) < 1e-9
    assert all(relative_rms(g, w) < 1e-9 for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias_dtype", [torch.bfloat16, torch.float32, F64])
def test_bias_of_another_type(bias_dtype: torch.dtype, backend: str) -> None:
    x = torch.randn(2, 4, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    b = torch.randn(4, dtype=bias_dtype, requires_grad=True)
    with ops.use_backend(backend):
        y = ops.bias_act(x, b, act="lrelu")
        dx, db = torch.autograd.grad(y.sum(), (x, b), create_graph=True)
        (ddb,) = torch.autograd.grad(dx.float().sum() + db.sum(), b, allow_unused=True)
    assert (y.dtype, dx.dtype, db.dtype) == (x.dtype, x.dtype, bias_dtype)
    assert ddb is None or ddb.dtype == bias_dtype
    want = textbook.bias_act(x.double(), b.double(), act="lrelu")
    assert relative_rms(y, want) < 3e-2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_third_derivative_is_refused(backend: str) -> None:
    x = torch.randn(2, 3, requires_grad=True)
    with ops.use_backend(backend):
        (dx,) = torch.autograd.grad(ops.bias_act(x, act="tanh").sum(), x, create_graph=True)
        (d2x,) = torch.autograd.grad(dx.sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiable twice"):
            torch.autograd.grad(d2x.sum(), x)


X = torch.zeros(1, 2, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X.long()}, TypeError, "x must be float16.*torch.int64"),
        ({"b": [0.0, 0.0]}, TypeError, "b must be a tensor, got list"),
        ({"b": torch.zeros(2).int()}, TypeError, "b must be float16"),
        ({"b": torch.zeros(3)}, ValueError, r"b must be \[2\] for dimension 1 of x, got \[3\]"),
        ({"b": torch.zeros(2, 1)}, ValueError, r"b must be \[2\]"),
        ({"b": torch.zeros(2, device="meta")}, ValueError, "b is on meta but x on cpu"),
        ({"dim": 4}, ValueError, r"dim 4 is not one of x \[1, 2, 3, 3\]"),
        ({"act": "gelu"}, ValueError, "unknown activation 'gelu'; there are: linear, relu"),
        ({"clamp": -1.0}, ValueError, "clamp must be at least 0, got -1"),
        ({"clamp": float("nan")}, ValueError, "clamp must be at least 0, got nan"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.bias_act(**{"x": X, **arguments})


B = torch.zeros(2)
SWISH = ("swish", 0.0, 1.0, -1.0)


@pytest.mark.parametrize(
    ("dy", "b", "dim", "error", "message"),
    [
        (X[:, :, :1, :1], B, 1, ValueError, r"dy must be \[1, 2, 3, 3\], got \[1, 2, 1, 1\]"),
        (X[0], None, 1, ValueError, r"dy must be \[1, 2, 3, 3\], got \[2, 3, 3\]"),
        (X.int(), None, 1, TypeError, "dy must be float16"),
        (X.to("meta"), None, 1, ValueError, "dy is on meta but x on cpu"),
        (X, torch.zeros(3), 1, ValueError, r"b must be \[2\] for dimension 1 of x, got \[3\]"),
        (X, B, 4, ValueError, r"dim 4 is not one of x \[1, 2, 3, 3\]"),
    ],
)
def test_the_gradients_refuse(
    dy: Tensor, b: Tensor | None, dim: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"bias_act_backward: {message}"):
        ops.bias_act_backward(dy, X, b, dim, *SWISH)
    with pytest.raises(error, match=f"bias_act_double_backward: {message}"):
        ops.bias_act_double_backward(X, None, dy, X, b, dim, *SWISH)


def test_the_gradients_refuse_an_unknown_activation() -> None:
    gelu = ("gelu", *SWISH[1:])
    with pytest.raises(ValueError, match="bias_act_backward: unknown activation 'gelu'"):
        ops.bias_act_backward(X, X, B, 1, *gelu)
    with pytest.raises(ValueError, match="bias_act_double_backward: unknown activation 'gelu'"):
        ops.bias_act_double_backward(X, None, X, X, B, 1, *gelu)


@pytest.mark.parametrize(
    ("ddx", "ddb", "b", "message"),
    [
        (X[:, :1], None, None, r"ddx must be \[1, 2, 3, 3\], got \[1, 1, 3, 3\]"),
        (None, B, None, "ddb is given but b is not"),
        (X, torch.zeros(1), B, r"ddb must be \[2\], got \[1\]"),
    ],
)
def test_the_second_gradient_refuses(
    ddx: Tensor | None, ddb: Tensor | None, b: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"bias_act_double_backward: {message}"):
        ops.bias_act_double_backward(ddx, ddb, X, X, b, 1, *SWISH)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_count_dimensions_from_either_end(backend: str) -> None:
    x, b = torch.randn(2, 3), torch.randn(3)
    with ops.use_backend(backend):
        for dim in (1, -1):
            dx, db = ops.bias_act_backward(x, x, b, dim, *SWISH)
            ddy, d2x, d2b = ops.bias_act_double_backward(x, b, x, x, b, dim, *SWISH)
            assert dx.shape == ddy.shape == d2x.shape == x.shape
            torch.testing.assert_close(db, dx.sum(0))
            torch.testing.assert_close(d2b, d2x.sum(0))


def kept(call: Callable[[], Tensor]) -> tuple[Tensor, set[int]]:
    """The result, and where what autograd keeps for it starts in memory."""
    places = set()

    def pack(t: Tensor) -> Tensor:
        places.add(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        return call(), places


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({"act": "lrelu"}, "y"),
        ({"act": "relu"}, "y"),
        ({"act": "lrelu", "clamp": 1.0}, "x"),
        ({"act": "lrelu", "gain": -1.0}, "x"),
        ({"act": "lrelu", "alpha": -0.1}, "x"),
        ({"act": "tanh"}, "x"),
        ({"act": "linear", "clamp": 1.0}, "x"),
        ({"act": "linear", "gain": 0.5}, None),
        ({"act": "linear", "gain": -1.0}, None),
    ],
)
def test_the_least_is_kept_that_tells_the_slope(options: dict[str, Any], keeps: str | None) -> None:
    x, b = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    y, places = kept(lambda: ops.bias_act(x, b, **options))
    assert [t.data_ptr() in places for t in (x, y)] == [keeps == "x", keeps == "y"]
    want = textbook.bias_act(x, b, **options)
    dy = torch.randn_like(y)
    for g, w in zip(*(torch.autograd.grad(z, (x, b), dy) for z in (y, want)), strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_linear_result_may_be_changed_in_place(backend: str) -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    b, dy = torch.randn(3, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    with ops.use_backend(backend):
        y = ops.bias_act(x, b, gain=0.5)
        y += 1
        dx, db = torch.autograd.grad(y, (x, b), dy, create_graph=True)
        (ddy,) = torch.autograd.grad((dx * x.detach()).sum() + db.sum(), dy)
    assert dx.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(dx, dy * 0.5)
    torch.testing.assert_close(db, dy.sum([0, 2, 3]) * 0.5)
    torch.testing.assert_close(ddy, (x + 1) * 0.5)


def test_no_bias_gradient_is_summed_that_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    biases = []
    backend = backends.get("eager")
    backward = backend.bias_act_backward

    def spy(dy: Tensor, x: Tensor, b: Tensor | None, *arguments: Any) -> Any:
        biases.append(b is not None)
        return backward(dy, x, b, *arguments)

    monkeypatch.setattr(backend, "bias_act_backward", spy)
    x, b = torch.randn(2, 3, requires_grad=True), torch.randn(3)
    with ops.use_backend("eager"):
        ops.bias_act(x, b, act="lrelu").sum().backward()
        ops.bias_act(x, b.requires_grad_(), act="lrelu").sum().backward()
    assert biases == [False, True]

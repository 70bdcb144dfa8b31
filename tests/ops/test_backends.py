"""Which backend serves a call: choice, force, refusal, threads, the backward pass."""

import threading
from types import SimpleNamespace

import pytest
import torch
from comparison import BACKENDS

from gpseg import backends, ops
from gpseg.backends.contract import Backend


def spy(monkeypatch: pytest.MonkeyPatch, name: str, function: str) -> list[str]:
    """Record the calls of a backend's function."""
    backend, calls = backends.get(name), []
    original = getattr(backend, function)

    def recorded(*args: object, **kwargs: object) -> object:
        calls.append(function)
        return original(*args, **kwargs)

    monkeypatch.setattr(backend, function, recorded)
    return calls


def test_every_backend_is_listed_and_eager_is_on() -> None:
    listed = ops.backends()
    assert tuple(listed) == backends.NAMES
    assert listed["eager"] is None
    assert all(reason is None or (reason and "\n" not in reason) for reason in listed.values())


def test_every_backend_has_the_same_functions() -> None:
    promised = {name for name in vars(Backend) if not name.startswith("_")}
    for name in backends.NAMES:
        assert promised <= set(dir(backends.get(name))), name


def test_unknown_name() -> None:
    with (
        pytest.raises(ValueError, match=r"no backend 'fast'; there are: .*eager"),
        ops.use_backend("fast"),
    ):
        pass


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that is off."""
    name = backends.NAMES[0]
    monkeypatch.setattr(backends, "_off", lambda n: "lacks its compiler" if n == name else None)
    return name


def test_a_backend_that_is_off_can_not_be_forced(off: str) -> None:
    assert ops.backends()[off] == "lacks its compiler"
    with pytest.raises(RuntimeError, match=f"{off}.*lacks its compiler"), ops.use_backend(off):
        pass


def test_a_backend_refuses_by_its_declarations(monkeypatch: pytest.MonkeyPatch) -> None:
    def available(device: torch.device | None = None) -> str | None:
        return None if device is None or device.index != 1 else "finds this one too old"

    picky = SimpleNamespace(
        DEVICES=("cuda",), DTYPES=frozenset({torch.float32}), available=available
    )
    monkeypatch.setattr(backends, "NAMES", ("picky",))
    monkeypatch.setattr(backends, "get", lambda name: picky)
    monkeypatch.setattr(backends, "_off", lambda name: None)
    backends._preferred.cache_clear()
    x = torch.zeros(1, 1)
    try:
        refusal = "'picky' can't serve this call: it serves cuda tensors, got cpu"
        with pytest.raises(RuntimeError, match=refusal), ops.use_backend("picky"):
            ops.bias_act(x)
        assert "float64" in str(backends.refusal("picky", torch.device("cuda"), torch.float64))
        assert backends.refusal("picky", torch.device("cuda"), torch.float32) is None
        assert backends.refusal("picky", torch.device("cuda:1"), torch.float32) == (
            "finds this one too old"
        )
        with pytest.raises(
            RuntimeError, match=r"no backend can serve torch.float32 on cpu: picky serves"
        ):
            ops.bias_act(x)
    finally:
        backends._preferred.cache_clear()


@pytest.mark.parametrize("name", [n for n in backends.NAMES if n != "eager"])
def test_a_device_that_a_backend_does_not_serve(name: str) -> None:
    devices = backends.get(name).DEVICES
    reason = backends.refusal(name, torch.device("meta"), torch.float32)
    assert reason is not None
    if name in BACKENDS:
        assert reason == f"serves {', '.join(devices)} tensors, got meta"


@pytest.mark.parametrize("name", BACKENDS)
def test_force_holds_inside_and_ends_with_the_context(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, name, "bias_act")
    with ops.use_backend(name):
        assert backends.forced_backend() == name
        with ops.use_backend(None):
            assert backends.forced_backend() is None
        with pytest.raises(KeyError), ops.use_backend("eager"):
            raise KeyError
        assert backends.forced_backend() == name
        ops.bias_act(torch.zeros(1, 1))
    assert calls == ["bias_act"]
    assert backends.forced_backend() is None


def test_the_first_that_can_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, BACKENDS[0], "bias_act")
    ops.bias_act(torch.zeros(1, 1))
    assert calls == ["bias_act"]


def test_force_is_of_this_thread_only() -> None:
    seen: list[str | None] = []
    with ops.use_backend("eager"):
        thread = threading.Thread(target=lambda: seen.append(backends.forced_backend()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize("forced", BACKENDS)
@pytest.mark.parametrize("outside", BACKENDS)
def test_the_backward_passes_run_on_the_backend_of_the_forward(
    forced: str, outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = ["bias_act_backward", "bias_act_double_backward", "upfirdn2d", "demod_act_backward"]
    calls = {n: [c for f in functions for c in [spy(monkeypatch, n, f)]] for n in BACKENDS}
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    weight, styles = (
        torch.randn(2, 2, 3, 3, requires_grad=True),
        torch.randn(1, 2, requires_grad=True),
    )
    with ops.use_backend(forced):
        y = ops.bias_act(ops.upfirdn2d(x, torch.ones(3)), act="swish")
        y = ops.modulated_conv2d_act(y, weight, styles, padding=1, act="swish")
    with ops.use_backend(outside):
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        torch.autograd.grad(dx.square().sum(), (x, weight, styles))
    assert all(calls[forced])
    assert forced == outside or not any(calls[outside])

"""Backends: which exist, what each declares it can serve, and which one serves a call.

Each lives in a module of its name, as `BACKEND`; `gpseg.backends.contract` says what it has to offer. Choice is made
from its declarations alone, never by trying and catching.
"""

import functools
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gpseg.backends.contract import Backend

NAMES = ("cuda", "triton", "cpp", "eager", "simt", "ttsem")
"""Every backend, fastest first: the first one that can serve a call does. So simt and ttsem, which are there to test
the CUDA and Triton kernels on the CPU, only ever serve when they are forced."""

_forced = threading.local()


@functools.cache
def get(name: str) -> Backend:
    """The backend of that name, whether it can be used or not.

    Raises:
        ValueError: there is no backend of that name.
    """
    if name not in NAMES:
        raise ValueError(f"no backend {name!r}; there are: {', '.join(NAMES)}")
    backend: Backend = importlib.import_module(f"gpseg.backends.{name}").BACKEND
    return backend


@functools.cache
def _off(name: str) -> str | None:
    return get(name).available()


def backends() -> dict[str, str | None]:
    """Each backend, in order of preference, with None if it can be used or the reason why it is off."""
    return {name: _off(name) for name in NAMES}


def refusal(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the backend can't serve tensors of this device and dtype; None if it can."""
    if (reason := _off(name)) is not None:
        return reason
    declared = get(name)
    if declared.DEVICES is not None and device.type not in declared.DEVICES:
        return f"serves {', '.join(declared.DEVICES)} tensors, got {device.type}"
    if dtype not in declared.DTYPES:
        return f"does not serve {dtype}"
    return declared.available(device)


@functools.cache
def _preferred(device: torch.device, dtype: torch.dtype) -> Backend:
    reasons = {name: refusal(name, device, dtype) for name in NAMES}
    for name, reason in reasons.items():
        if reason is None:
            return get(name)
    why = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    raise RuntimeError(f"no backend can serve {dtype} on {device}: {why}")


@functools.cache
def _demanded(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    if (reason := refusal(name, device, dtype)) is not None:
        raise RuntimeError(f"backend {name!r} can't serve this call: it {reason}")
    return get(name)


def forced_backend() -> str | None:
    """The name that `use_backend` forces in this thread, if any."""
    name: str | None = getattr(_forced, "name", None)
    return name


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one backend for every op called in this thread; None: choose freely.

    The backward pass of an op runs on the backend that its forward pass was forced to. Not so in a function that
    torch.compile compiled, whose graphs hold ops and no backends: each of its passes runs on what is forced in its
    thread when it runs, and for GPU tensors autograd runs the backward in threads of its own, where nothing is. Called
    within such a function it breaks the graph.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: the backend is off; the message says why.
    """
    if name is not None:
        get(name)
        if (reason := _off(name)) is not None:
            raise RuntimeError(f"backend {name!r} is off: {reason}")
    before = forced_backend()
    _forced.name = name
    try:
        yield
    finally:
        _forced.name = before


def select(x: Tensor) -> Backend:
    """The backend that serves ops on `x`.

    Raises:
        RuntimeError: the forced backend, or every backend, refuses; the message gives the reasons.
    """
    name = forced_backend()
    return _preferred(x.device, x.dtype) if name is None else _demanded(name, x.device, x.dtype)

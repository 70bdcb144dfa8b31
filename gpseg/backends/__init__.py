"""Backends: which exist, what each declares it can serve, and which one serves a call.

A backend is a module with the constants `DEVICES` (None: any) and `DTYPES`, a function `available()` that
returns None or one line saying why it is off, and the kernels, under the same names in every backend.
Choice is made from these declarations alone, never by trying and catching.
"""

import functools
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

NAMES = ("cpp", "eager")
"""Every backend, fastest first: the first one that can serve a call does."""

_forced = threading.local()


def module(name: str) -> ModuleType:
    """The backend's module, whether it can be used or not.

    Raises:
        ValueError: there is no backend of that name.
    """
    if name not in NAMES:
        raise ValueError(f"no backend {name!r}; there are: {', '.join(NAMES)}")
    return importlib.import_module(f"gpseg.backends.{name}")


@functools.cache
def _off(name: str) -> str | None:
    reason: str | None = module(name).available()
    return reason


def backends() -> dict[str, str | None]:
    """Each backend, in order of preference, with None if it can be used or the reason why it is off."""
    return {name: _off(name) for name in NAMES}


def refusal(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the backend can't serve tensors of this device and dtype; None if it can."""
    if (reason := _off(name)) is not None:
        return reason
    declared = module(name)
    if declared.DEVICES is not None and device.type not in declared.DEVICES:
        return f"serves {', '.join(declared.DEVICES)} tensors, got {device.type}"
    if dtype not in declared.DTYPES:
        return f"does not serve {dtype}"
    return None


@functools.cache
def _preferred(device: torch.device, dtype: torch.dtype) -> ModuleType:
    reasons = {name: refusal(name, device, dtype) for name in NAMES}
    for name, reason in reasons.items():
        if reason is None:
            return module(name)
    why = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    raise RuntimeError(f"no backend can serve {dtype} on {device}: {why}")


def forced_backend() -> str | None:
    """The name that `use_backend` forces in this thread, if any."""
    name: str | None = getattr(_forced, "name", None)
    return name


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one backend for every op called in this thread; None: choose freely.

    The backward pass of an op runs on the backend that its forward pass was forced to.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: the backend is off; the message says why.
    """
    if name is not None:
        module(name)
        if (reason := _off(name)) is not None:
            raise RuntimeError(f"backend {name!r} is off: {reason}")
    before = forced_backend()
    _forced.name = name
    try:
        yield
    finally:
        _forced.name = before


def select(x: Tensor) -> ModuleType:
    """The backend that serves ops on `x`.

    Raises:
        RuntimeError: the forced backend, or every backend, refuses; the message gives the reasons.
    """
    name = forced_backend()
    if name is None:
        return _preferred(x.device, x.dtype)
    if (reason := refusal(name, x.device, x.dtype)) is not None:
        raise RuntimeError(f"backend {name!r} can't serve this call: it {reason}")
    return module(name)

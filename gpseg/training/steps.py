"""What every training loop does around its steps."""

import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gpseg.errors import RunError
from gpseg.training.distributed import ALONE, Ranks
from gpseg.training.run_folder import RunFolder


@contextmanager
def short_collections() -> Iterator[None]:
    """Leave what is alive now out of Python's garbage collections until the end.

    Each step's graph makes Python look for cycles, every few steps among all objects there are, and torch alone has
    hundreds of thousands: a tenth of a step on a CPU.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Means:
    """Means of scalars over the steps since they were last taken, without waiting for the device in between."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Count in one step's scalars."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, ranks: Ranks = ALONE) -> dict[str, float]:
        """The means, over all processes, starting over."""
        totals = [*self._sums.values()]
        whole = ranks.mean(torch.stack(totals)).tolist() if totals else []
        means = {
            name: total / self._counts[name] for name, total in zip(self._sums, whole, strict=True)
        }
        self._sums, self._counts = {}, {}
        return means


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state, laid out in memory as its parameters are now.

    A fused optimiser walks through memory and takes for granted that parameters, gradients and state lie alike; a state
    that was saved when a weight lay otherwise would silently go to the wrong elements.

    Args:
        optimizer: an optimiser of the parameters that the state was saved for.
        state: what its `state_dict` gave.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_finite(values: dict[str, float], folder: RunFolder, remedy: str) -> None:
    """Stop a run whose numbers have become meaningless.

    Args:
        values: losses by name.
        folder: the run's folder.
        remedy: options that may help, for the message.

    Raises:
        RunError: a value isn't finite; the message names it and the last good state.
    """
    _stop_for([name for name, value in values.items() if not math.isfinite(value)], folder, remedy)


def check_state(state: Mapping[str, Any], folder: RunFolder, remedy: str) -> None:
    """Stop a run rather than save a state with a number in it that isn't finite.

    The losses of a step were computed from the weights before it: they don't tell what it made of them.

    Args:
        state: tensors in dicts and lists.
        folder: the run's folder.
        remedy: options that may help, for the message.

    Raises:
        RunError: as `check_finite`.
    """
    bad = [name for name, tensor in _tensors(state) if not bool(torch.isfinite(tensor).all())]
    _stop_for(bad[:1], folder, remedy)


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


def _stop_for(bad: list[str], folder: RunFolder, remedy: str) -> None:
    if bad:
        good = folder.last_state()
        kept = f"{good} is the last good state" if good else "no state was saved yet"
        raise RunError(
            f"{folder.path}: {', '.join(bad)} is not finite; {kept}; start again with {remedy}"
        )

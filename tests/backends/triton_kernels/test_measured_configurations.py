"""Every configuration that a measurement may choose gives right results, whatever it was written down for."""

import pytest
import torch

from gpseg import ops
from gpseg.backends.triton import launch
from gpseg.backends.triton.configurations import Configuration, Target
from gpseg.selftest.comparison import (
    BACKWARD,
    FORWARD,
    LAYOUTS,
    derivatives,
    relative_rms,
    tolerance,
    wanted,
)
from gpseg.selftest.problems import by_name

pytestmark = pytest.mark.skipif(
    ops.backends()["ttsem"] is not None, reason=str(ops.backends()["ttsem"])
)

PROBLEMS = ("upsample2d", "fir-1d", "swish", "layer-8", "to-rgb-8")


class Nth:
    """Takes the n-th configuration of every kernel that has so many, the last one of the others."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.most = 0
        self._usual = launch.configuration

    def __call__(
        self, kernel: str, dtype: torch.dtype, shape: str, target: Target
    ) -> Configuration:
        with pytest.MonkeyPatch.context() as before:
            before.setattr(launch, "configuration", self._usual)
            choices = [*launch._choices(kernel, dtype, shape, target).values()]
        self.most = max(self.most, len(choices))
        return choices[min(self.n, len(choices) - 1)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_all_are_right(name: str, layout: str) -> None:
    problem, dtype = by_name(name), torch.float16
    n, most = 0, 1
    while n < most:
        nth = Nth(n)
        for order in (FORWARD, BACKWARD):
            inputs = problem.tensors(dtype)
            with pytest.MonkeyPatch.context() as table, ops.use_backend("ttsem"):
                table.setattr(launch, "configuration", nth)
                got = derivatives(problem, ops, inputs, order, LAYOUTS[layout], dtype)
            for key, want in wanted(name, dtype, order).items():
                assert relative_rms(got[key], want) < tolerance(problem, dtype, order), (n, key)
        n, most = n + 1, nth.most
    assert most > 0, "no kernel was launched"

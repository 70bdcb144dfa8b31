"""The Triton kernels on CPU tensors, executed by the emulator that the tests bring: to prove them, not to use them."""

import torch

from gpseg.backends.contract import Backend
from gpseg.backends.triton import TritonBackend, launch


def _load(_: torch.device | None = None) -> str | None:
    if launch.emulate is None:
        return "runs in the tests only: `make test` in a checkout turns it on"
    return None


BACKEND: Backend = TritonBackend("ttsem", ("cpu",), _load)

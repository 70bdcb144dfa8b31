"""When the backends of GPUs are on, and the one line that says why one is off."""

import importlib
import importlib.util
import shutil
from types import SimpleNamespace

import pytest
import torch

from gpseg.backends import cuda, triton


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU of capability 9.0 and kernels that run on it."""
    compiled = SimpleNamespace(build_info=lambda: {"archs": ["sm_80", "sm_90", "compute_100"]})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(importlib, "import_module", lambda name: compiled)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Some GPU")
    return monkeypatch


@pytest.mark.usefixtures("gpu")
def test_on() -> None:
    assert cuda._load() is None
    assert triton._load() is None


def test_not_built(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(importlib.util, "find_spec", lambda name: None)
    assert "gpseg._cuda is not built, which needs nvcc: GPSEG_BUILD_CUDA=1" in str(cuda._load())


def test_no_gpu(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda._load() == "torch sees no CUDA GPU"
    assert triton._load() == "torch sees no GPU"


def test_does_not_load(gpu: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("undefined symbol: torch_something")

    gpu.setattr(importlib, "import_module", fail)
    reason = str(cuda._load())
    assert reason.startswith("gpseg._cuda does not load, build it for this torch with")
    assert reason.endswith("(undefined symbol: torch_something)")


@pytest.mark.parametrize("capability", [(7, 5), (6, 1)])
def test_a_gpu_older_than_what_was_built(
    capability: tuple[int, int], gpu: pytest.MonkeyPatch
) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda i: capability)
    assert cuda._load() == (
        "built for sm_80, sm_90, compute_100, which Some GPU does not run: set TORCH_CUDA_ARCH_LIST and build again"
    )


def test_an_old_gpu_beside_a_newer_one_is_refused_alone(gpu: pytest.MonkeyPatch) -> None:
    old, new = torch.device("cuda:0"), torch.device("cuda:1")
    gpu.setattr(torch.cuda, "device_count", lambda: 2)
    gpu.setattr(
        torch.cuda, "get_device_capability", lambda gpu: (7, 5) if gpu in (0, old) else (9, 0)
    )
    for backend in (cuda, triton):
        assert backend._load() is None
        assert backend._load(new) is None
        assert "Some GPU" in str(backend._load(old))


@pytest.mark.usefixtures("gpu")
def test_triton_needs_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "finds no C compiler: install gcc, or name one in CC" in str(triton._load())
    monkeypatch.setenv("CC", "/some/cc")
    assert triton._load() is None

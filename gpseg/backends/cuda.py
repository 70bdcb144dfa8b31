"""C++/CUDA kernels, compiled when the package is installed on a machine with nvcc."""

import importlib
import importlib.util

import torch

from gpseg.backends.compiled import CompiledBackend


def _load() -> str | None:
    build = "GPSEG_BUILD_CUDA=1 pip install --no-build-isolation ."
    if importlib.util.find_spec("gpseg._cuda") is None:
        return f"gpseg._cuda is not built, which needs nvcc: {build}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    try:
        importlib.import_module("gpseg._cuda")  # registers torch.ops.gpseg_cuda
    except ImportError as error:
        return f"gpseg._cuda does not load, build it for this torch with {build} ({error})"
    return None


BACKEND = CompiledBackend("gpseg_cuda", ("cuda",), _load, on_gpu=True)

"""C++/CUDA kernels, compiled when the package is installed on a machine with nvcc."""

import importlib
import importlib.util

import torch

from gpseg.backends.architectures import serves, unserved_gpu
from gpseg.backends.compiled import CompiledBackend


def _load(device: torch.device | None = None) -> str | None:
    build = "GPSEG_BUILD_CUDA=1 pip install --no-build-isolation ."
    if importlib.util.find_spec("gpseg._cuda") is None:
        return f"gpseg._cuda is not built, which needs nvcc: {build}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    try:
        compiled = importlib.import_module("gpseg._cuda")  # registers torch.ops.gpseg_cuda
    except ImportError as error:
        return f"gpseg._cuda does not load, build it for this torch with {build} ({error})"
    built = compiled.build_info()["archs"]
    unserved = unserved_gpu(device, lambda capability: serves(built, capability))
    if unserved is not None:
        return f"built for {', '.join(built)}, which {unserved} does not run: set TORCH_CUDA_ARCH_LIST and build again"
    return None


BACKEND = CompiledBackend("cuda", ("cuda",), _load, on_gpu=True)

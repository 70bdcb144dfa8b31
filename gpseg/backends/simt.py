"""The CUDA kernels on CPU tensors, under the emulator of tests/simt: to prove them, not to use them.

`make simt` builds the library; GPSEG_SIMT names another one (its variants with fault finders).
"""

import os
from pathlib import Path

import torch

from gpseg.backends.compiled import CompiledBackend

_BUILT = Path(__file__).parents[2] / "build" / "simt" / "libgpseg_simt.so"


def _load(_: torch.device | None = None) -> str | None:
    library = Path(os.environ.get("GPSEG_SIMT") or _BUILT)
    if not library.exists():
        return f"{library.name} is not built: run `make simt` in a checkout, or set GPSEG_SIMT"
    try:
        torch.ops.load_library(library)  # registers torch.ops.gpseg_simt
    except OSError as error:
        return f"{library} does not load: {error}"
    return None


BACKEND = CompiledBackend("simt", ("cpu",), _load, on_gpu=True)

"""C++ kernels for the CPU, compiled when the package is installed."""

import importlib

from gpseg.backends.compiled import CompiledBackend


def _load() -> str | None:
    build = "pip install --no-build-isolation ."
    try:
        importlib.import_module("gpseg._C")  # registers torch.ops.gpseg_cpp
    except ModuleNotFoundError:
        return f"gpseg._C is not built: {build}"
    except ImportError as error:
        return f"gpseg._C does not load, build it for this torch with {build} ({error})"
    return None


BACKEND = CompiledBackend("cpp", ("cpu",), _load)

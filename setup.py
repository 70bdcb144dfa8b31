"""Builds the kernels into `gpseg._C` and, where there is an nvcc, `gpseg._cuda`; everything else about
the package is in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        "gpseg is compiled against the torch you will run it with, which is not installed here: install torch"
        " first, then use `pip install --no-build-isolation .`"
    ) from error

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))  # build front ends leave it out

import cuda_toolkit  # noqa: E402

DEBUG = os.environ.get("GPSEG_DEBUG", "0") == "1"
LINEINFO = os.environ.get("GPSEG_LINEINFO", "0") == "1"

TORCH_TARGET = ("TORCH_TARGET_VERSION", "0x020d000000000000")  # torch 2.13 and later

OPTIMISED = [
    "-O3",
    "-g0",
    "-fopenmp-simd",  # `#pragma omp simd`, without the OpenMP runtime
    # What vectorising needs, and no more: NaN and infinity keep their meaning.
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]
CXX = ["-O0", "-g"] if DEBUG else OPTIMISED

NVCC = [
    *(["-O0", "-g", "-G"] if DEBUG else ["-O3"]),
    *(["-lineinfo"] if LINEINFO and not DEBUG else []),
    "-Xfatbin=-compress-all",
    # torch's build turns these operators off, the kernels use them
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_HALF2_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
]


def sources(*patterns: str) -> list[str]:
    """Files under csrc that match, relative to the root."""
    csrc = ROOT / "csrc"
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in csrc.glob(pattern))


def cpu_extension() -> Extension:
    """gpseg._C, which knows nothing of CUDA."""
    return cpp_extension.CppExtension(
        "gpseg._C",
        sources("*.cpp", "common/*.cpp", "cpu/**/*.cpp"),
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("**/*.h", "**/*.inl"),
        define_macros=[TORCH_TARGET],
        extra_compile_args=CXX,
        extra_link_args=[] if DEBUG else ["-s"],
    )


def cuda_extension(toolkit: cuda_toolkit.Toolkit) -> Extension:
    """gpseg._cuda: the same ops for CUDA tensors.

    It needs nothing but the driver at run time: of CUDA the runtime is linked in, of torch the part
    that every build of torch has.
    """
    architectures = cuda_toolkit.architectures(toolkit)
    names = list(dict.fromkeys(name for a in architectures for name in a.names))
    print(f"gpseg: CUDA {toolkit.version_string} in {toolkit.home}, for {', '.join(names)}")
    cpp_extension.CUDA_HOME = str(toolkit.home)
    return cpp_extension.CppExtension(
        "gpseg._cuda",
        sources("ops.cpp", "cuda/*.cpp", "cuda/*.cu"),
        include_dirs=[str(ROOT / "csrc"), *map(str, toolkit.include_dirs)],
        depends=sources("**/*.h", "cuda/**/*.cuh"),
        define_macros=[
            TORCH_TARGET,
            ("GPSEG_CUDA", None),
            ("GPSEG_NVCC_VERSION", f'"{toolkit.version_string}"'),
            ("GPSEG_CUDA_ARCHS", f'"{",".join(names)}"'),
        ],
        library_dirs=list(map(str, toolkit.library_dirs)),
        libraries=["cudart_static", "rt", "pthread", "dl"],
        extra_compile_args={"cxx": CXX, "nvcc": NVCC + [a.flag for a in architectures]},
        extra_link_args=[] if DEBUG else ["-s"],
    )


def extensions() -> list[Extension]:
    """The modules to build here."""
    try:
        return [cpu_extension(), cuda_extension(cuda_toolkit.to_build_with(torch.version.cuda))]
    except cuda_toolkit.NoToolkitError as error:
        print(f"gpseg: without CUDA kernels, because {error}")
        return [cpu_extension()]
    except cuda_toolkit.ToolkitError as error:
        raise SystemExit(f"gpseg: {error}") from None


class BuildApart(cpp_extension.BuildExtension):
    """Keeps the objects of each module apart: both compile ops.cpp, each in its own way."""

    def build_extension(self, ext: Extension) -> None:
        shared = self.build_temp
        self.build_temp = str(Path(shared) / ext.name)
        super().build_extension(ext)
        self.build_temp = shared


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildApart})

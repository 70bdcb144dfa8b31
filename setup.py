"""Builds the C++ kernels into `gpseg._C`; everything else about the package is in pyproject.toml."""

import os
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        "gpseg is compiled against the torch you will run it with, which is not installed here: install torch"
        " first, then use `pip install --no-build-isolation .`"
    ) from error

ROOT = Path(__file__).parent
DEBUG = os.environ.get("GPSEG_DEBUG", "0") == "1"

OPTIMISED = [
    "-O3",
    "-g0",
    "-fopenmp-simd",  # `#pragma omp simd`, without the OpenMP runtime
    # What vectorising needs, and no more: NaN and infinity keep their meaning.
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]


def sources(*patterns: str) -> list[str]:
    """Files under csrc that match, relative to the root."""
    csrc = ROOT / "csrc"
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in csrc.rglob(pattern))


setup(
    ext_modules=[
        CppExtension(
            "gpseg._C",
            sources("*.cpp"),
            include_dirs=[str(ROOT / "csrc")],
            depends=sources("*.h", "*.inl"),
            define_macros=[("TORCH_TARGET_VERSION", "0x020d000000000000")],  # torch 2.13 and later
            extra_compile_args=["-O0", "-g"] if DEBUG else OPTIMISED,
            extra_link_args=[] if DEBUG else ["-s"],
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
)

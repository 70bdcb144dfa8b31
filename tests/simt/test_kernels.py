"""The package's kernels under the fault finders: whole test files again, in a process that loads another library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simt import build

ROOT = Path(__file__).parents[2]

GRID = ("tests/ops/test_grid.py", "tests/ops/test_fused_conv.py")


def run(library: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run pytest with this library as the backend simt; gives its summary, and fails with its report."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments],
        env=os.environ | environment | {"GPSEG_SIMT": str(library), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    summary = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "skipped" not in summary, summary
    return summary


@pytest.fixture(scope="module", autouse=True)
def emulator() -> None:
    if (reason := build.missing()) is not None:
        pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_fault_in_any_kernel() -> None:
    """Bounds, races within and between blocks, memory that nothing wrote, misaligned vectors: none, anywhere."""
    library = build.build("check")
    tests = [*GRID, "tests/backends/test_cuda.py"]
    summary = run(library, {}, "-k", "(simt or fused_conv) and not 31_elements", *tests)
    assert int(summary.split(" passed")[0].split()[-1]) > 4000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sanitizers_find_nothing() -> None:
    """g++'s address and undefined-behaviour sanitizers, over the small grid."""
    summary = run(build.build("asan"), build.asan_environment(), "-k", "simt or fused_conv", *GRID)
    assert int(summary.split(" passed")[0].split()[-1]) > 1500


@pytest.mark.slow
def test_a_fault_in_a_kernel_of_the_package_is_found(tmp_path: Path) -> None:
    """The way from a kernel of csrc to a report is not blind: a barrier is taken out of a copy of the sources."""
    kernels = tmp_path / "csrc"
    subprocess.run(["cp", "-r", str(ROOT / "csrc"), str(kernels)], check=True)
    source = kernels / "cuda" / "kernels" / "implicit_gemm.cuh"
    text = source.read_text()
    barrier = "    cp_async_wait<kStages - 2>();\n    __syncthreads();\n    if (k + 1"
    assert text.count(barrier) == 1
    source.write_text(text.replace(barrier, barrier.replace("    __syncthreads();\n", "")))
    library = build.build("check", root=tmp_path, out=tmp_path / "build")
    with pytest.raises(AssertionError, match=r"implicit_gemm\.cuh:\d+: race"):
        run(library, {}, "tests/ops/test_fused_conv.py")

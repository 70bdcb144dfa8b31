"""The emulator itself: right kernels give right numbers, and a fault planted in one is found at its line."""

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.simt import build

SOURCE = Path(__file__).with_name("faults.cu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


class Kernels:
    """faults.cu as a library, called on tensors. A call returns what was found wrong, "" if nothing."""

    def __init__(self, variant: build.Variant, fault: str | None = None) -> None:
        defines = [] if fault is None else [f"FAULT_{fault}"]
        self.library = ctypes.CDLL(str(build.build_source(SOURCE, variant, defines)))
        for name in ("simt_take_faults", "simt_count_json"):
            getattr(self.library, name).restype = ctypes.c_char_p

    def __call__(self, name: str, *arguments: Tensor | int, outputs: Sequence[Tensor] = ()) -> str:
        written = {output.data_ptr() for output in outputs}
        passed: list[ctypes.c_void_p | int] = []
        for i, argument in enumerate(arguments):
            if isinstance(argument, Tensor):
                address = ctypes.c_void_p(argument.data_ptr())
                size = ctypes.c_size_t(argument.nbytes)
                initialised = argument.data_ptr() not in written
                self.library.simt_track(
                    address, size, argument.element_size(), initialised, f"argument {i}".encode()
                )
                passed.append(address)
            else:
                passed.append(argument)
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p
        problem = function(*passed).decode()
        faults = self.library.simt_take_faults().decode()
        self.library.simt_untrack_all()
        return problem + faults

    def counts(self) -> list[dict]:
        return json.loads(self.library.simt_count_json())


load = cache(Kernels)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, check_device=False
    )


# Each runs one kernel, compares with torch if it ran, and returns what was found wrong. Outputs start as NaN,
# so that one that is left unwritten shows.


def unwritten(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def run_fir(kernels: Kernels, dtype: torch.dtype = torch.float32) -> str:
    h, w = 19, 45
    x, f, y = torch.randn(h, w).to(dtype), torch.randn(4, 4), unwritten(h, w, dtype=dtype)
    found = kernels(f"fir_{name_of(dtype)}", x, f, y, h, w, outputs=[y])
    if not found:
        padded = torch.nn.functional.pad(x.double(), (2, 1, 2, 1))[None, None]
        close(
            y,
            torch.nn.functional.conv2d(padded, f.double()[None, None])[0, 0],
            TOLERANCE[dtype] * 4,
        )
    return found


def run_bias_act(kernels: Kernels) -> str:
    x, b, y = torch.randn(4, 3, 40), torch.randn(3), unwritten(4, 3, 40)
    found = kernels("bias_act_float32", x, b, y, x.numel(), 40, 3, outputs=[y])
    if not found:
        expected = 1.5 * torch.nn.functional.leaky_relu(x + b[:, None], 0.2)
        close(y, expected, TOLERANCE[x.dtype])
    return found


def run_sum_squares(kernels: Kernels) -> str:
    x, sums = torch.randn(5, 1000, 2).half(), torch.zeros(5)
    found = kernels("sum_squares_float16", x, sums, 5, 1000)
    if not found:
        close(sums, x.double().square().sum((1, 2)), TOLERANCE[sums.dtype])
    return found


def run_sum_all(kernels: Kernels) -> str:
    x, parts, finished = torch.randn(1000), unwritten(7), torch.zeros(1, dtype=torch.int32)
    total = unwritten(1)
    found = kernels("sum_all_float32", x, parts, finished, total, 1000, 7, outputs=[parts, total])
    if not found:
        close(total[0], x.double().sum(), TOLERANCE[x.dtype] * 10)
    return found


def run_gemm(kernels: Kernels, dtype: torch.dtype = torch.float16) -> str:
    m, n, k = 100, 136, 104
    a, b, c = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), unwritten(m, n)
    found = kernels(f"gemm_{name_of(dtype)}", a, b, c, m, n, k, outputs=[c])
    if not found:
        close(c, a.double() @ b.double(), TOLERANCE[c.dtype] * 10)
    return found


def run_transpose(kernels: Kernels, padded: bool = True) -> str:
    x, y = torch.randn(32, 32), unwritten(32, 32)
    found = kernels("transpose_float32", x, y, int(padded), outputs=[y])
    if not found:
        assert torch.equal(y, x.T)
    return found


def run_copy(kernels: Kernels, stride: int = 1) -> str:
    x, y = torch.randn(256 * stride), unwritten(256)
    found = kernels("copy_float32", x, y, 256, stride, outputs=[y])
    if not found:
        assert torch.equal(y, x[::stride])
    return found


def run_fill(kernels: Kernels, each: int = 128) -> str:
    y = unwritten(128)
    found = kernels("fill_float32", y, each, outputs=[y])
    if not found:
        assert torch.equal(y, torch.full((128,), each - 1.0))
    return found


Run = Callable[[Kernels], str]
RUNS: dict[str, Run] = {
    **{f"fir-{name_of(dtype)}": partial(run_fir, dtype=dtype) for dtype in DTYPES},
    "bias_act": run_bias_act,
    "sum_squares": run_sum_squares,
    "sum_all": run_sum_all,
    **{f"gemm-{name_of(dtype)}": partial(run_gemm, dtype=dtype) for dtype in DTYPES[1:]},
    "transpose": run_transpose,
    "copy": run_copy,
    "fill": run_fill,
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("variant", ["plain", "check"])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_right_kernels(
    run: Run, variant: build.Variant, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMT_SEED", str(seed))
    torch.manual_seed(seed)
    assert run(load(variant)) == ""


@dataclass(frozen=True)
class Planted:
    """A fault in faults.cu, what says so, and how it is told where the line isn't the whole answer."""

    run: Run
    message: str
    plain: str = (
        ""  # what a plain build raises; "" if it can't know, "wrong" if its numbers show it
    )
    asan: str = ""  # what the sanitizers say, at the line


PLANTED = {
    "NO_BARRIER": Planted(run_fir, "race", plain="wrong"),
    "STATIC_OVERRUN": Planted(run_fir, "out-of-bounds write", asan="out of bounds"),
    "OUTSIDE": Planted(run_fir, "out-of-bounds read", asan="heap-buffer-overflow"),
    "EARLY_RETURN": Planted(run_fir, "__syncthreads", plain="__syncthreads", asan="__syncthreads"),
    "MISALIGNED": Planted(run_bias_act, "misaligned", plain="misaligned", asan="misaligned"),
    "UNALIGNED": Planted(run_gemm, "misaligned", plain="misaligned"),
    "UNINITIALISED": Planted(run_bias_act, "read of unwritten memory", plain="wrong"),
    "DYNAMIC_OVERRUN": Planted(run_sum_squares, "out-of-bounds write", asan="heap-buffer-overflow"),
    "UNWRITTEN": Planted(run_sum_squares, "read of unwritten memory", plain="wrong"),
    "WRONG_MASK": Planted(run_sum_squares, "not in the mask", plain="not in the mask"),
    "NO_ATOMIC": Planted(run_sum_squares, "different blocks"),
    "NO_FENCE": Planted(run_sum_all, "different blocks"),
    "NO_WAIT": Planted(run_gemm, "never waited for", plain="never waited for"),
    "WAIT_TOO_FEW": Planted(run_gemm, "has not been waited to bring", plain="never waited for"),
    "REFILL": Planted(run_gemm, "race"),
    "BLOCK_LIMIT": Planted(run_bias_act, "1024 threads", plain="1024 threads"),
    "NO_OPT_IN": Planted(run_fill, "cudaFuncSetAttribute", plain="cudaFuncSetAttribute"),
}


def marked_line(marker: str, name: str) -> str:
    """`faults.cu:42` for the line that ends in `// marker: NAME`."""
    for number, line in enumerate(SOURCE.read_text().splitlines(), 1):
        if (found := re.search(rf"// {marker}: (.*)$", line)) and name in found[1].split(", "):
            return f"{SOURCE.name}:{number}"
    raise AssertionError(f"no line is marked {name}")


@pytest.mark.parametrize("name", PLANTED)
def test_check_finds_the_line(name: str) -> None:
    planted = PLANTED[name]
    found = planted.run(load("check", name))
    line = marked_line("fault", name)
    assert any(
        planted.message in text and re.search(rf"\b{re.escape(line)}\b", text)
        for text in found.splitlines()
    ), found


@pytest.mark.parametrize("name", [name for name, planted in PLANTED.items() if planted.plain])
def test_plain_build_shows(name: str) -> None:
    planted = PLANTED[name]
    if planted.plain == "wrong":
        with pytest.raises(AssertionError):
            planted.run(load("plain", name))
    else:
        found = planted.run(load("plain", name))
        assert planted.plain in found
        assert marked_line("fault", name) in found


def test_launches_work_after_an_abandoned_one() -> None:
    kernels = load("plain", "EARLY_RETURN")
    assert "__syncthreads" in run_fir(kernels)
    assert run_gemm(kernels) == ""


@cache
def sanitized() -> dict[str, str]:
    """What the right kernels (RIGHT) and each planted fault print under g++'s sanitizers.

    They have to be there when Python starts, and end the process they find something in. So: another Python, which
    imports torch once and forks for each.
    """
    names = [name for name, planted in PLANTED.items() if planted.asan]
    build.build_source(SOURCE, "asan")
    for name in names:
        build.build_source(SOURCE, "asan", [f"FAULT_{name}"])
    program = f"""
import os
from tests.simt.test_simt import PLANTED, RUNS, load
for name in ["RIGHT", *{names!r}]:
    print(f"== {{name}}", flush=True)
    if os.fork() == 0:
        kernels = load("asan", None if name == "RIGHT" else name)
        for run in RUNS.values() if name == "RIGHT" else [PLANTED[name].run]:
            print(run(kernels), end="", flush=True)
        os._exit(0)
    print("ended with", os.wait()[1], flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **build.asan_environment()},
        cwd=build.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    parts = re.split(r"^== (\w+)\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_right_kernels_under_sanitizers() -> None:
    assert sanitized()["RIGHT"] == "ended with 0\n"


@pytest.mark.parametrize("name", [name for name, planted in PLANTED.items() if planted.asan])
def test_sanitizers_find_the_line(name: str) -> None:
    found = sanitized()[name]
    assert PLANTED[name].asan in found
    assert marked_line("fault", name) in found


def counted(run: Run, marker: str, space: str) -> dict:
    """The one row of the table for a `// count: marker` line."""
    kernels = load("check")
    kernels.library.simt_count_start()
    assert run(kernels) == ""
    line = marked_line("count", marker)
    [row] = [row for row in kernels.counts() if row["line"] == line and row["space"] == space]
    return row


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_sectors(stride: int) -> None:
    load_row = counted(partial(run_copy, stride=stride), "load", "global")
    warps, bytes_of_warp, sectors = 8, 32 * 4, 4
    assert load_row == {
        "line": marked_line("count", "load"),
        "space": "global",
        "kind": "load",
        "bytes": 4,
        "requests": warps,
        "units": warps * sectors * stride,
        "ideal": warps * sectors,
        "moved": warps * bytes_of_warp,
    }
    store_row = counted(partial(run_copy, stride=stride), "store", "global")
    assert store_row["kind"] == "store"
    assert store_row["units"] == store_row["ideal"] == warps * sectors


@pytest.mark.parametrize("padded", [True, False])
def test_bank_conflicts(padded: bool) -> None:
    run = partial(run_transpose, padded=padded)
    row, column = counted(run, "row", "shared"), counted(run, "column", "shared")
    assert row["units"] == row["ideal"] == row["requests"] == 32
    assert column["ideal"] == column["requests"] == 32
    assert column["units"] == (32 if padded else 32 * 32)


def test_counts_of_asynchronous_copies() -> None:
    kernels = load("check")
    kernels.library.simt_count_start()
    assert run_gemm(kernels) == ""
    row = {r["space"]: r for r in kernels.counts() if r["line"] == marked_line("fault", "REFILL")}
    blocks, stages, warps, each = 2 * 3, 4, 4, 2
    assert row["shared"]["requests"] == blocks * stages * warps * each
    assert row["shared"]["kind"] == "store"
    assert row["global"]["bytes"] == row["shared"]["bytes"] == 16


def test_only_some_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(512), unwritten(512)
    monkeypatch.setenv("SIMT_BLOCKS", "-2:1")
    assert load("plain")("copy_float32", x, y, 512, 1, outputs=[y]) == ""
    assert torch.equal(y[256:384], x[256:384])
    assert y[:256].isnan().all() and y[384:].isnan().all()

"""The emulator itself: right kernels give right numbers, and a fault planted in one is found at its line."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.emulated_triton import emulator

if (reason := emulator.missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

from ttsem.interp import Interp
from ttsem.memory import Memory
from ttsem.sanitize import KernelFault

from gpseg.backends.triton import bias_act
from tests.emulated_triton import faults

SOURCE = Path(faults.__file__)
GAIN = 3.0


def scale(x: Tensor, y: Tensor, fault: str = "") -> None:
    """y = 3 · x by `faults.scale_kernel`."""
    rows, columns = x.shape
    emulator.run(faults.scale_kernel, rows, x, y, columns, x.stride(0), GAIN, fault, BLOCK=8)


def line_of(fault: str) -> int:
    (line,) = (
        n
        for n, text in enumerate(SOURCE.read_text().splitlines(), 1)
        if f"# fault: {fault}" in text
    )
    return line


def matrix(rows: int = 3, columns: int = 5) -> Tensor:
    return torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_right_kernel(rows: int, dtype: torch.dtype) -> None:
    x = matrix(rows).to(dtype)
    y = torch.full_like(x, torch.nan)
    scale(x, y)
    assert torch.equal(y, GAIN * x)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("store past the end", "writes 3 element.*past the end of the tensor passed as `y`"),
        ("load past the end", "reads 3 element.*past the end of the tensor passed as `x`"),
        ("load before the start", "reads 1 element.*before the start of the tensor passed as `x`"),
        ("row stride", "reads 2 element.*past the end of the tensor passed as `x`"),
        ("two write one", "write-write"),
        ("one reads what another writes", "read-write"),
    ],
)
def test_a_fault_is_found_at_its_line(fault: str, kind: str) -> None:
    x = matrix()
    with pytest.raises(KernelFault, match=kind) as caught:
        scale(x, torch.full_like(x, torch.nan), fault)
    found = str(caught.value)
    assert f"{SOURCE.name}:{line_of(fault)}:" in found, found


def test_what_is_not_written_stays() -> None:
    x = matrix()
    y = torch.full_like(x, torch.nan)
    scale(x, y, "nothing written")
    assert y[0].isnan().all()
    assert not y[1:].isnan().any()


@pytest.mark.parametrize("fault", ["load past the end", "load before the start"])
def test_what_lies_around_a_view_is_outside(fault: str) -> None:
    whole = matrix(5, 5)
    y = torch.full((3, 5), torch.nan)
    scale(whole[1:4], y)
    assert torch.equal(y, GAIN * whole[1:4])
    with pytest.raises(KernelFault, match="passed as `x`"):
        scale(whole[1:4], y, fault)


def test_strided_views_are_read_and_written_in_place() -> None:
    x, whole = matrix(4, 7)[1:, 2:], torch.zeros(3, 2, 5)
    scale(x, whole.as_strided((15,), (1,), 10))
    assert torch.equal(whole.flatten()[10:25].reshape(3, 5), GAIN * x)


def test_tensors_that_share_memory_do_so_in_the_emulation() -> None:
    x = matrix()
    scale(x, x)
    assert torch.equal(x, GAIN * matrix())
    whole = matrix(4, 5)
    with pytest.raises(KernelFault, match="read-write"):
        scale(whole[:3], whole[1:])


def test_kernels_are_compiled_for_their_arguments() -> None:
    """Alignment, an integer of 1, and types make another kernel of it, as they do on a GPU."""
    x = torch.arange(40.0)
    for columns, stride in [(1, 1), (1, 16), (8, 8), (5, 8), (5, 5)]:
        for dtype in (torch.float32, torch.bfloat16):
            view = x.to(dtype).as_strided((2, columns), (stride, 1), 3)
            y = torch.full((2, columns), torch.nan, dtype=dtype)
            scale(view, y)
            assert torch.equal(y, GAIN * view)


def test_a_launch_that_was_seen_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    run = Interp.run_grid
    monkeypatch.setattr(Interp, "run_grid", lambda *args: runs.append(args) or run(*args))

    def ran(*args: Any) -> int:
        before = len(runs)
        scale(*args)
        return len(runs) - before

    x = matrix(2, 7)
    for times, expected in [(x, 1), (x.clone(), 0), (x + 1, 1), (torch.cat([x, x], 1)[:, :7], 1)]:
        for y in (torch.full((2, 7), torch.nan), torch.full((2, 7), torch.nan)):
            assert ran(times, y) == expected
            assert torch.equal(y, GAIN * times)
            expected = 0
    assert ran(x, torch.zeros(2, 7)) == 1  # what is overwritten might have counted
    whole = torch.cat([x, x])
    assert ran(whole[:2], whole[2:]) == 1  # one piece of memory instead of two
    for _ in range(2):
        with pytest.raises(KernelFault):
            scale(x, torch.zeros(2, 7), "store past the end")


def test_too_many_accesses_to_look_for_races(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Memory.__init__

    def small(memory: Memory) -> None:
        made(memory)
        memory.access_budget = 8

    monkeypatch.setattr(Memory, "__init__", small)
    x = matrix()
    scale(x, torch.empty_like(x))  # each program's rows are apart: no log is needed
    with pytest.raises(AssertionError, match="too many accesses"):
        scale(x, torch.empty_like(x), "one reads what another writes")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_arithmetic_of_half_types_is_exact(dtype: torch.dtype) -> None:
    a, b, c = torch.randn(3, 512, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.full_like(a, torch.nan)
    emulator.run(faults.arithmetic_kernel, 2, a, b, c, y, BLOCK=256)
    assert torch.equal(y, a * b + c)


def test_scalars() -> None:
    y = torch.full((2,), torch.nan, dtype=torch.float64)
    emulator.run(faults.scalars_kernel, 1, y, 0.1, 0.1)
    assert y.tolist() == [0.1, torch.tensor(0.1).item()]


def test_tuples_carried_through_loops() -> None:
    x = torch.randn(6, 16)
    y = torch.full((2, 16), torch.nan)
    emulator.run(faults.sums_kernel, 1, x, y, ROWS=6, BLOCK=16)
    torch.testing.assert_close(y, torch.stack([x[::2].sum(0), x[1::2].sum(0)]))


def test_a_fault_in_a_kernel_of_the_package_is_found(tmp_path: Path) -> None:
    """The way from a call of the backend to a report is not blind: a mask is taken out of a copy of its kernels."""
    text, planted = re.subn(
        r"(tl\.store\(y_ptr.*), mask=\w+\)", r"\1)", Path(bias_act.__file__).read_text()
    )
    assert planted == 1
    copy = tmp_path / "bias_act.py"
    copy.write_text(text)
    spec = importlib.util.spec_from_file_location("bias_act_with_a_fault", copy)
    faulty = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faulty)
    line = 1 + text[: text.index("tl.store(y_ptr")].count("\n")
    call = torch.ones(2, 3, 5, 1), None, 1, "linear", 0.0, 1.0, -1.0
    assert bias_act.bias_act(*call).sum() == 30
    report = rf"bias_act\.py:{line}: tl\.store.*writes 2 element.*passed as `y_ptr`"
    with pytest.raises(KernelFault, match=report):
        faulty.bias_act(*call)

"""`python -m gpseg`."""

import importlib.machinery
import platform
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import gpseg
from gpseg import __main__ as command
from gpseg import backends, ops

ROOT = Path(__file__).parents[1]


def test_prints_versions_devices_and_backends() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpseg"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for name, value in (
        ("gpseg", gpseg.__version__),
        ("torch", torch.__version__),
        ("Python", platform.python_version()),
    ):
        assert f"{name:<14}{value}" in lines
    assert any(line.startswith("device        cpu, ") for line in lines)
    table = [line.split(maxsplit=1) for line in lines[lines.index("backend       state") + 1 :]]
    wanted = {**ops.backends(), "ttsem": "the emulator is for tests"}
    assert [name for name, _ in table] == list(wanted)
    assert all((state == "on") == (wanted[name] is None) for name, state in table)


def test_gives_the_reason_of_a_backend_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    name = backends.NAMES[0]
    monkeypatch.setattr(backends, "_off", lambda n: "no compiler" if n == name else None)
    assert f"{name:<14}off: no compiler" in command.describe()


def module_with(info: dict[str, object]) -> types.SimpleNamespace:
    return types.SimpleNamespace(build_info=lambda: info)


def test_describes_the_kernels_that_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = {"compiler": "gcc 99", "isa_compiled": ["baseline", "avx2"], "isa": "avx2"}
    cuda = {"nvcc": "13.0", "cuda": 13000, "archs": ["sm_90", "compute_90"]}
    monkeypatch.setitem(sys.modules, "gpseg._C", module_with(cpu))
    monkeypatch.setitem(sys.modules, "gpseg._cuda", module_with(cuda))
    lines = command.describe().splitlines()
    assert "CPU kernels   avx2 in use, of baseline, avx2; gcc 99" in lines
    assert "CUDA kernels  sm_90, compute_90; nvcc 13.0" in lines


def test_works_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in "gpseg._C", "gpseg._cuda":
        monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    lines = command.describe().splitlines()
    assert "CPU kernels   not built" in lines
    assert "CUDA kernels  not built" in lines


def test_says_why_kernels_do_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / f"_cuda{suffix}").write_bytes(b"not a library")
    monkeypatch.setattr(gpseg, "__path__", [str(tmp_path), *gpseg.__path__])
    monkeypatch.delitem(sys.modules, "gpseg._cuda", raising=False)
    importlib.invalidate_caches()
    (line,) = (x for x in command.describe().splitlines() if x.startswith("CUDA kernels"))
    assert "do not load" in line
    assert f"_cuda{suffix}" in line


@pytest.mark.parametrize(
    ("module", "version"),
    [(types.SimpleNamespace(__version__="9.9"), "9.9"), (None, "not installed")],
)
def test_names_tritons_version(
    module: object, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", module)
    assert f"Triton        {version}" in command.describe().splitlines()


def test_refuses_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpseg", "--frobnicate"])
    with pytest.raises(SystemExit, match="2"):
        command.main()

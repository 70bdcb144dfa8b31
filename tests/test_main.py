"""`python -m gpseg`."""

import platform
import subprocess
import sys
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
    assert [name for name, _ in table] == list(ops.backends())
    assert all((state == "on") == (ops.backends()[name] is None) for name, state in table)


def test_gives_the_reason_of_a_backend_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    name = backends.NAMES[0]
    monkeypatch.setattr(backends, "_off", lambda n: "no compiler" if n == name else None)
    assert f"{name:<14}off: no compiler" in command.describe()


def test_describes_the_kernels_that_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {
        "compiler": "gcc 99",
        "isa_compiled": ["baseline", "avx2"],
        "isa": "avx2",
        "cuda_archs": ["sm_90"],
    }
    monkeypatch.setattr(command, "build_info", lambda: info)
    text = command.describe()
    assert "avx2 in use, of baseline, avx2; gcc 99" in text
    assert "CUDA kernels  sm_90" in text


def test_works_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpseg._C", None)  # makes its import fail
    assert command.build_info() == {}
    assert "CPU kernels" not in command.describe()


def test_refuses_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpseg", "--frobnicate"])
    with pytest.raises(SystemExit, match="2"):
        command.main()

"""What holds for all tests: their order, and Triton's kernels run on the CPU, as the backend ttsem."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.emulated_triton import emulator

emulator.install()


@pytest.fixture
def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """`python -m <module> <args>` in a folder: its exit code and the lines on stderr."""

    def call(folder: Path, module: str, *args: str) -> tuple[int, list[str]]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [module, *args])
        with pytest.raises(SystemExit) as caught:
            runpy.run_module(module, run_name="__main__")
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().err.strip().splitlines()

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests go first, so that none of them is left to run when the other processes are done."""
    items.sort(key=_patience, reverse=True)


def _patience(item: pytest.Item) -> float:
    """Seconds that a test may take as it is marked; 1 for those that are only marked slow."""
    timeout = item.get_closest_marker("timeout")
    if timeout is not None:
        return float(timeout.args[0])
    return 1.0 if item.get_closest_marker("slow") else 0.0

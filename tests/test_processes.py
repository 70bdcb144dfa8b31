"""Work in a process of its own comes back, fails and ends as it should."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpseg.errors import RunError
from gpseg.processes import in_fresh_process, memory_of_this_process

ROOT = Path(__file__).parents[1]


def process() -> int:
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError("no")


def sleep(file: Path) -> None:
    file.write_text(str(os.getpid()))
    time.sleep(60)


def peak_of(size: int) -> int | None:
    before = memory_of_this_process("VmRSS") or 0
    bytearray(os.urandom(size))
    return (memory_of_this_process("VmHWM") or 0) - before


def test_every_process_is_a_new_one() -> None:
    processes = {in_fresh_process(process) for _ in range(2)}
    assert len(processes | {os.getpid()}) == 3


def test_what_goes_wrong_there_is_said_here() -> None:
    with pytest.raises(ValueError, match="no"):
        in_fresh_process(fail)
    with pytest.raises(RunError, match=r"died \(SIGKILL: most likely .* memory\)"):
        in_fresh_process(die)
    with pytest.raises(RunError, match=r"died \(exit code 3: its error is above\)"):
        in_fresh_process(os._exit, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_its_peak_of_memory_counts_what_is_gone() -> None:
    assert in_fresh_process(peak_of, 50_000_000) >= 50_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_who_waits_for_it(number: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = (
        "import signal, sys, pathlib; from tests.test_processes import sleep, in_fresh_process\n"
        # A shell starts what runs in the background with Ctrl-C ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "in_fresh_process(sleep, pathlib.Path(sys.argv[1]))"
    )
    waiting = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    until(lambda: file.exists() and file.read_text())
    pid = int(file.read_text())
    waiting.send_signal(number)
    assert waiting.wait(10) != 0
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in state(pid))


def state(pid: int) -> str:
    status = Path(f"/proc/{pid}/status")
    return status.read_text().split("State:")[1].split()[0] if status.exists() else "Z"


def until(happened) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)

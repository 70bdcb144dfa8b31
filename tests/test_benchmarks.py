"""The benchmarks run; speed itself is not tested."""

import subprocess
import sys
from pathlib import Path

from gpseg.selftest.timing import contestants

ROOT = Path(__file__).parents[1]


def test_prints_a_row_with_every_contestant() -> None:
    options = ["to-rgb-64", "--directions", "backward", "--seconds", "0", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *_, header, row = done.stdout.splitlines()
    assert header.split() == [c.name for c in contestants()]
    assert row.startswith("to-rgb-64 ")
    assert row.count("x ") == len(contestants()) - 1


def test_refuses_an_unknown_problem() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "upsample"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no problem upsample; there are: upsample2d-256" in done.stderr

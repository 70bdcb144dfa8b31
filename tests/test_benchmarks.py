"""The benchmarks run, and their arithmetic is right; speed itself is not tested."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.problems import NAMED, SMALL, by_name
from benchmarks.timing import contestants, interleaved
from gpseg import ops

ROOT = Path(__file__).parents[1]


def test_names_are_unique_and_ops_exist() -> None:
    problems = (*SMALL, *NAMED)
    assert len({p.name for p in problems}) == len(problems)
    assert all(p.op in ops.__all__ for p in problems)
    assert by_name("layer-up-64").sizes["x"] == (4, 128, 32, 32)


def test_a_slowdown_of_the_machine_does_not_change_the_ratio() -> None:
    now, speed = 0.0, 1.0

    def work(duration: float) -> None:
        nonlocal now, speed
        now += duration * speed
        speed *= 1.01

    calls = {"textbook": lambda: work(8.0), "fast": lambda: work(2.0)}
    timings = interleaved(calls, 0, clock=lambda: now, least_rounds=50)
    assert timings["textbook"].ratio == 1
    assert timings["fast"].ratio == pytest.approx(4 / 1.01)
    assert timings["fast"].low == pytest.approx(timings["fast"].high)
    assert timings["fast"].median > 2.5


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
    assert header.split() == contestants()
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

"""All checks, then the benchmark, into one file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from gpseg import ops
from gpseg.errors import InputError, RunError
from gpseg.selftest import benchmark, checks
from gpseg.selftest.problems import BY_NAME
from gpseg.selftest.report import (
    Report,
    check_line,
    check_table,
    default_path,
    environment,
    race_table,
)
from gpseg.selftest.timing import on_gpu, serving_backends

SHOWN = 20
"""Failures on the screen; the file has all."""


@dataclass
class SelftestConfig:
    """Options of the self-test."""

    out: Path | None = None
    """File for the results. Default: gpseg-selftest-<gpu>-<date>.json."""
    backends: tuple[str, ...] = ()
    """Backends to test, such as cuda or cpp. Default: those that are on and serve by themselves."""
    problems: tuple[str, ...] = ()
    """Problems to test and time, by the names that the results give them. Default: all."""
    benchmark: bool = True
    """Whether to measure speed too, where there is a GPU."""
    quick: bool = False
    """Measure fewer types and sizes; everything is checked nonetheless."""
    seconds: float = 1.0
    """Measure each problem for this long, all contestants together; compiling comes on top."""


def selftest(config: SelftestConfig) -> None:
    """Check, measure, and write the file.

    The file is written after each part, so that it tells of the parts before one that brings the process down.

    Raises:
        InputError: an option is wrong.
        RunError: a check failed.
    """
    backends = _backends(config.backends)
    _check_names(config.problems)
    # some of what is measured here is measured with memory being poisoned: nothing to keep for other runs
    os.environ.pop("GPSEG_ROUTES", None)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ["cpu", *(f"cuda:{i}" for i in range(gpus))]
    path = config.out or default_path()
    report = Report(environment())
    report.write(path)
    print("\n".join(report.environment["description"]))

    cases = [c for c in checks.cases(backends, devices) if _asked(config, c.problem)]
    for case in tqdm(cases, "checks", unit="check", disable=None):
        report.checks += checks.rows(case)
    report.write(path)
    _print_checks(report)

    if not gpus:
        print("There is no GPU: nothing about one was checked or measured.")
    elif config.benchmark:
        _measure(config, backends, torch.device(devices[1]), report)
    report.complete = True
    report.write(path)
    print(f"Wrote {path}. To share it, open an issue in gpseg's repository and attach the file.")
    if wrong := report.count("failed", "error"):
        raise RunError(f"{wrong} of {len(report.checks)} checks failed; {path} lists them")


def _backends(named: Sequence[str]) -> list[str]:
    if not named:
        return serving_backends()
    state = ops.backends()
    for name in named:
        if name not in state:
            raise InputError(f"--backends: no backend {name}; there are: {', '.join(state)}")
        if state[name] is not None:
            raise InputError(f"--backends: {name} is off: {state[name]}")
    return list(named)


def _check_names(problems: Sequence[str]) -> None:
    for name in problems:
        if name not in BY_NAME:
            raise InputError(f"--problems: no problem {name}; there are: {', '.join(BY_NAME)}")


def _asked(config: SelftestConfig, problem: str) -> bool:
    return not config.problems or problem in config.problems


def _print_checks(report: Report) -> None:
    print(f"\n{check_table(report.checks)}\n")
    wrong = [row for row in report.checks if row.finding.outcome in ("failed", "error")]
    for row in wrong[:SHOWN]:
        print(check_line(row))
    if len(wrong) > SHOWN:
        print(f"… and {len(wrong) - SHOWN} more")
    passed, skipped = report.count("passed"), report.count("skipped")
    print(f"{passed} checks passed, {len(wrong)} failed, {skipped} were skipped.")


def _measure(
    config: SelftestConfig, backends: Sequence[str], device: torch.device, report: Report
) -> None:
    print(
        f"\nOn {device}, median time, and times as fast as the first [20th to 80th percentile];"
        " with cudnn.benchmark, TF32 allowed"
    )
    timer = on_gpu(device)
    races = [r for r in benchmark.races(config.quick) if _asked(config, r.problem.name)]
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        for race in tqdm(races, "benchmark", unit="problem", disable=None):
            rows = benchmark.rows(race, backends, device, timer, config.seconds)
            report.benchmark += rows
            tqdm.write(race_table(rows))

"""The file that someone with a GPU can send, and the same in short for themselves."""

import dataclasses
import json
import platform
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import gpseg
from gpseg.__main__ import describe, triton_version
from gpseg.atomic import replacing
from gpseg.errors import InputError
from gpseg.selftest.benchmark import RaceResult
from gpseg.selftest.checks import CheckResult, Finding, Outcome
from gpseg.selftest.timing import machine

FORMAT = 1
"""Version of the file's layout."""


def environment() -> dict[str, Any]:
    """What results depend on besides the package: processor, GPUs, driver, libraries."""
    gpus = [
        torch.cuda.get_device_properties(i)
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    return {
        "gpseg": gpseg.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "triton": triton_version(),
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "driver": _driver(),
        "platform": platform.platform(),
        "processor": machine(),
        "threads": torch.get_num_threads(),
        "gpus": [
            {
                "name": gpu.name,
                "capability": [gpu.major, gpu.minor],
                "memory": gpu.total_memory,
                "processors": gpu.multi_processor_count,
            }
            for gpu in gpus
        ],
        "description": describe().splitlines(),
    }


def _driver() -> str | None:
    """Version of the GPU's driver, which torch does not tell."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def default_path() -> Path:
    """`gpseg-selftest-<gpu>-<date>.json` in the current folder."""
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no-gpu"
    slug = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    return Path(f"gpseg-selftest-{slug}-{time.strftime('%Y-%m-%d-%H%M%S')}.json")


@dataclass
class Report:
    """All that is known so far; `complete` once nothing is left to do."""

    environment: dict[str, Any]
    checks: list[CheckResult] = field(default_factory=list)
    benchmark: list[RaceResult] = field(default_factory=list)
    complete: bool = False

    def count(self, *outcomes: Outcome) -> int:
        """Checks with one of these outcomes."""
        return sum(row.finding.outcome in outcomes for row in self.checks)

    def write(self, path: Path) -> None:
        """Write or replace the file.

        Raises:
            InputError: the path can't be written to.
        """
        content = {
            "format": FORMAT,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "complete": self.complete,
            "environment": self.environment,
            "checks": [_flat_check(row) for row in self.checks],
            "benchmark": [_flat_race(row) for row in self.benchmark],
        }
        try:
            with replacing(path) as temporary:
                temporary.write_text(dump(content))
        except OSError as error:
            raise InputError(f"--out {path}: can't be written ({error.strerror})") from error


def _flat_check(row: CheckResult) -> dict[str, Any]:
    case, finding = dataclasses.asdict(row.case), dataclasses.asdict(row.finding)
    return {**case, "route": row.route, **finding}


def _flat_race(row: RaceResult) -> dict[str, Any]:
    flat = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    race, timing = flat.pop("race"), flat.pop("timing")
    measured = {} if timing is None else dataclasses.asdict(timing)
    if timing is not None:
        measured["times"] = [float(f"{t:.4g}") for t in timing.times]
    return {**dataclasses.asdict(race), "problem": race.problem.name, **flat, **measured}


def dump(content: dict[str, Any]) -> str:
    """A file's text: JSON with each row of a list on a line of its own."""
    members = []
    for key, value in content.items():
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        else:
            text = json.dumps(value, indent=1)
        members.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(members) + "\n}\n"


def check_table(rows: Iterable[CheckResult]) -> str:
    """Counts by check, backend, device and type, and how much of its tolerance the worst error takes up."""
    groups: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
    for row in rows:
        case = row.case
        route = f", {row.route}" if row.route else ""
        groups[case.check, case.backend + route, case.device, case.dtype].append(row.finding)
    heads = ["check", "backend", "device", "type", "passed", "failed", "error", "skipped", "worst"]
    lines = [heads]
    for key, findings in sorted(groups.items()):
        counts = [sum(f.outcome == outcome for f in findings) for outcome in heads[4:8]]
        shares = [f.error / f.tolerance for f in findings if f.error is not None and f.tolerance]
        worst = f"{max(shares):.0%}" if shares else ""
        lines.append([*key, *map(str, counts), worst])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 4 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def check_line(row: CheckResult) -> str:
    """What was checked and what came of it."""
    case, finding = row.case, row.finding
    route = [row.route] if row.route else []
    what = [case.check, case.problem, case.backend, *route, case.device, case.dtype]
    line = f"{finding.outcome}: {' '.join([*what, case.layout, case.direction])}"
    if finding.error is not None and finding.tolerance is not None:
        line += f": error {finding.error:.1e}, tolerance {finding.tolerance:.1e}"
    return f"{line} ({finding.detail})"


def race_table(rows: Sequence[RaceResult]) -> str:
    """One race: milliseconds, times as fast as the first contestant with their spread, and rates achieved."""
    race = rows[0].race
    lines = [f"{race.problem.name} {race.dtype} {race.layout} {race.direction}"]
    for row in rows:
        line = f"  {row.contestant:24}"
        if row.timing is None:
            lines.append(f"{line}{row.error}")
            continue
        t = row.timing
        line += f"{t.median * 1e3:10.3f} ms{t.ratio:7.2f}x [{t.low:.2f} {t.high:.2f}]"
        line += _rate(row.bytes_per_second, 1e9, "GB/s", row.of_bandwidth)
        line += _rate(row.operations_per_second, 1e12, "TFLOP/s", row.of_peak)
        lines.append(line)
    return "\n".join(lines)


def _rate(rate: float | None, unit: float, name: str, share: float | None) -> str:
    if rate is None:
        return ""
    return f"{rate / unit:10.1f} {name}" + ("" if share is None else f" {share:.0%}")

"""What results depend on besides the code: the machine, its load, the libraries, and which revision this is."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import gpseg
from benchmarks.rates import last_cache
from gpseg.selftest.timing import machine

ROOT = Path(__file__).parents[1]


def environment(threads: int, device: torch.device) -> dict[str, Any]:
    """Facts by name, as JSON takes them."""
    revision, dirty = revision_of(ROOT)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "processor": machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "last_cache": last_cache(device),
        "capabilities": sorted(k for k, on in torch.cpu.get_capabilities().items() if on is True),
        "threads": threads,
        "load": [*os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpseg": gpseg.__version__,
        "revision": revision,
        "dirty": dirty,
    }


def revision_of(tree: Path) -> tuple[str | None, bool | None]:
    """The commit that a checkout is at, and whether files differ from it; None where it is no checkout."""
    try:
        revision = git(tree, "rev-parse", "--short=12", "HEAD")
        return revision, bool(git(tree, "status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def git(tree: Path, *arguments: str) -> str:
    """What git says about a checkout.

    Raises:
        CalledProcessError: git fails; its `stderr` says why.
        OSError: there is no git.
    """
    done = subprocess.run(
        ["git", "-C", str(tree), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def described(environment: dict[str, Any]) -> list[str]:
    """The facts in lines to read."""
    tree = {True: "with changes", False: "clean", None: ""}[environment["dirty"]]
    load = environment["load"] or []
    return [
        f"{environment['gpu'] or environment['processor']}, {environment['cores']} cores,"
        f" last cache {environment['last_cache'] / 2**20:.0f} MiB, {environment['threads']} threads,"
        f" load average {' '.join(f'{x:.1f}' for x in load) or 'unknown'}",
        f"torch {environment['torch']}, Python {environment['python']}, gpseg {environment['gpseg']},"
        f" revision {environment['revision'] or 'unknown'} {tree}".rstrip(),
    ]

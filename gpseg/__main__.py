"""`python -m gpseg`: what is installed, what it runs on, and which backends serve the operators."""

import argparse
import importlib
import os
import platform
from collections.abc import Callable
from typing import Any

import torch

import gpseg
from gpseg import ops


def kernels(module: str, summary: Callable[[dict[str, Any]], str]) -> str:
    """What a module of compiled kernels says of itself, in short, or why it says nothing."""
    try:
        return summary(importlib.import_module(module).build_info())
    except ModuleNotFoundError:
        return "not built"
    except ImportError as error:
        return f"do not load: {error}"


def cpu_summary(info: dict[str, Any]) -> str:
    """Instruction sets and compiler of gpseg._C."""
    return f"{info['isa']} in use, of {', '.join(info['isa_compiled'])}; {info['compiler']}"


def cuda_summary(info: dict[str, Any]) -> str:
    """Architectures and compiler of gpseg._cuda."""
    return f"{', '.join(info['archs'])}; nvcc {info['nvcc']}"


def triton_version() -> str | None:
    """Version of Triton; None without it."""
    try:
        return str(importlib.import_module("triton").__version__)
    except ImportError:
        return None


def devices() -> list[str]:
    """The processor and every GPU, as a person would name them."""
    cpu = f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return [cpu, *(f"cuda:{i}, {torch.cuda.get_device_name(i)}" for i in gpus)]


def describe() -> str:
    """Versions, devices and a table of the backends, with the reason where one is off."""
    facts = [
        ("gpseg", gpseg.__version__),
        ("torch", torch.__version__),
        ("Python", platform.python_version()),
        *(("device", device) for device in devices()),
        ("CPU kernels", kernels("gpseg._C", cpu_summary)),
        ("CUDA kernels", kernels("gpseg._cuda", cuda_summary)),
        ("Triton", triton_version() or "not installed"),
    ]
    lines = [f"{name:<14}{value}" for name, value in facts]
    lines += ["", f"{'backend':<14}state"]
    for name, reason in ops.backends().items():
        lines.append(f"{name:<14}{'on' if reason is None else f'off: {reason}'}")
    return "\n".join(lines)


def main() -> None:
    """Print the description."""
    argparse.ArgumentParser(
        prog="python -m gpseg",
        description="Print versions, devices and the operators' backends, fastest first, and why one is off."
        " Commands: python -m gpseg.pretrain, .train, .predict, .generate, .evaluate, .convert, .selftest; each has --help.",
    ).parse_args()
    print(describe())


if __name__ == "__main__":
    main()

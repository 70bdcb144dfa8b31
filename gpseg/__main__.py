"""`python -m gpseg`: what is installed, what it runs on, and which backends serve the operators."""

import argparse
import importlib
import os
import platform
from typing import Any

import torch

import gpseg
from gpseg import ops


def build_info() -> dict[str, Any]:
    """What the compiled kernels say of themselves; empty where they are not built."""
    try:
        compiled = importlib.import_module("gpseg._C")
    except ImportError:
        return {}
    info: dict[str, Any] = compiled.build_info()
    return info


def devices() -> list[str]:
    """The processor and every GPU, as a person would name them."""
    cpu = f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return [cpu, *(f"cuda:{i}, {torch.cuda.get_device_name(i)}" for i in gpus)]


def describe() -> str:
    """Versions, devices and a table of the backends, with the reason where one is off."""
    kernels = build_info()
    facts = [
        ("gpseg", gpseg.__version__),
        ("torch", torch.__version__),
        ("Python", platform.python_version()),
        *(("device", device) for device in devices()),
    ]
    if kernels:
        built = ", ".join(kernels["isa_compiled"])
        facts.append(("CPU kernels", f"{kernels['isa']} in use, of {built}; {kernels['compiler']}"))
        if kernels["cuda_archs"]:
            facts.append(("CUDA kernels", ", ".join(kernels["cuda_archs"])))
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
        " Commands: python -m gpseg.pretrain, .train, .predict; each has --help.",
    ).parse_args()
    print(describe())


if __name__ == "__main__":
    main()

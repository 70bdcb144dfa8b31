"""`python -m benchmarks`: one table of median times and of ratios to the textbook composition, of the same run."""

import argparse
import os
import time

import torch

from gpseg.selftest.problems import NAMED
from gpseg.selftest.timing import (
    DIRECTIONS,
    contestants,
    inputs,
    interleaved,
    machine,
    on_cpu,
    prepare,
)

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DTYPES = ("float32", "float64", "bfloat16", "float16")


def parse() -> argparse.Namespace:
    """The command line."""
    names = [p.name for p in NAMED]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "problems", nargs="*", metavar="PROBLEM", help=f"of {', '.join(names)}; default: all"
    )
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--channels-last", action="store_true", help="layout of images and weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3, help="for each row of the table")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: this process's processor time, for a machine that is busy otherwise; with one thread",
    )
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.problems if name not in names]:
        parser.error(f"no problem {unknown[0]}; there are: {', '.join(names)}")
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    problems = [p for p in NAMED if not arguments.problems or p.name in arguments.problems]
    names = [c.name for c in contestants()]
    layout = "channels_last" if arguments.channels_last else "NCHW"
    print(
        f"{machine()}, {arguments.threads} threads, torch {torch.__version__}, {arguments.dtype}, {layout}"
    )
    print("load average " + " ".join(f"{load:.1f}" for load in os.getloadavg()))
    print(
        f"median ms of {arguments.clock} time, and times as fast as the textbook [20th to 80th percentile]"
    )
    print(
        f"\n{'':36}"
        + "".join(f"{name:>10}" if i == 0 else f"{name:>29}" for i, name in enumerate(names))
    )
    for problem in problems:
        for direction in arguments.directions:
            tensors = inputs(problem, dtype, arguments.channels_last)
            calls = {c.name: prepare(problem, c, direction, tensors) for c in contestants()}
            timer = on_cpu(CLOCKS[arguments.clock])
            reference, *others = interleaved(calls, arguments.seconds, timer).values()
            row = f"{problem.name:26}{direction:10}{reference.median * 1e3:10.2f}"
            for t in others:
                spread = f"[{t.low:.1f} {t.high:.1f}]"
                row += f"{t.median * 1e3:10.2f}{t.ratio:6.1f}x {spread:11}"
            print(row.rstrip(), flush=True)


if __name__ == "__main__":
    main()

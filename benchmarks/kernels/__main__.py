"""`python -m benchmarks.kernels`: what the CUDA and Triton kernels take and move, as Markdown; with --check, against the
budgets.

Resources of CUDA's are read from the built gpseg._cuda, those of Triton's from what it compiles ahead of time; accesses are
counted under the emulators of tests/. No GPU is needed, and either half does without the other.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import roofline
from benchmarks.kernels import (
    budgets,
    comparison,
    counts,
    resources,
    tables,
    triton_counts,
    triton_resources,
)
from benchmarks.kernels.budgets import Half
from benchmarks.kernels.resources import UnavailableError


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="print what misses its budget; exit 1 if anything does"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="put what is measured into budgets.json and docs/kernels.md; limits stay as they are",
    )
    parser.add_argument("--every", action="store_true", help="a row for each instance of a kernel")
    parser.add_argument("--module", type=Path, help="of another build than the installed one")
    return parser.parse_args()


def available(what: str, measures: Mapping[Half, Callable[[], Any]]) -> dict[Half, Any]:
    """What can be measured here; of the rest it says why not."""
    found: dict[Half, Any] = {}
    for half, measure in measures.items():
        try:
            found[half] = measure()
        except UnavailableError as error:
            print(f"no {what} of {half}'s kernels: {error}", file=sys.stderr)
    return found


def main() -> None:
    """Measure, then compare, write or print."""
    arguments = parse()
    measured = available(
        "resources",
        {
            "cuda": lambda: resources.measure(arguments.module or resources.built()),
            "triton": triton_resources.measure,
        },
    )
    counted = available("counts", {"cuda": counts.measure, "triton": triton_counts.measure})
    if not measured and (arguments.check or arguments.write):
        sys.exit("there are no resources to compare")
    table = budgets.read()
    if arguments.write:
        if len(measured) + len(counted) < 4:
            sys.exit("to write, everything must be measured")
        for half, found in measured.items():
            if missing := budgets.architectures(table, half) - found.keys():
                sys.exit(f"{half}: not for {', '.join(sorted(missing))}, which have budgets")
            table = budgets.updated(table, half, found)
        table = budgets.recounted(table, [c for found in counted.values() for c in found])
        budgets.write(table)
    parts = {
        **{
            f"{half} resources": tables.resources_table(found, arguments.every)
            for half, found in measured.items()
        },
        **{f"{half} counts": tables.COUNTS[half](found) for half, found in counted.items()},
        "exceptions": tables.exceptions_table(table),
        "roofline": roofline.table(),
    }
    if len(measured) == len(counted) == 2:
        parts["side by side"] = comparison.table(measured, counted)
    if arguments.write:
        text = tables.DOCUMENT.read_text()
        for name, content in parts.items():
            text = tables.with_part(text, name, content)
        tables.DOCUMENT.write_text(text)
    if arguments.check or arguments.write:
        misses = [
            miss
            for half, found in measured.items()
            for miss in budgets.resource_misses(table, half, found)
        ]
        misses += [
            miss
            for half, found in counted.items()
            for miss in budgets.count_misses(table, half, found)
        ]
        sys.exit("\n".join(misses) or 0)
    print("\n\n".join(parts.values()))


if __name__ == "__main__":
    main()

"""`python -m benchmarks.kernels`: what the CUDA kernels take and move, as Markdown; with --check, against the budgets.

Resources are read from the built gpseg._cuda, accesses are counted under the emulator of tests/simt. No GPU is needed.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import roofline
from benchmarks.kernels import budgets, counts, resources, tables


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


def main() -> None:
    """Measure, then compare, write or print."""
    arguments = parse()
    try:
        measured = resources.measure(arguments.module or resources.built())
    except resources.UnavailableError as error:
        if arguments.write or arguments.check:
            sys.exit(f"no resources to measure: {error}")
        print(f"no resources to measure: {error}", file=sys.stderr)
        measured = {}
    table = budgets.read()
    if arguments.write and (missing := budgets.architectures(table) - measured.keys()):
        sys.exit(f"the module was not built for {', '.join(sorted(missing))}, which have budgets")
    counted = counts.measure()
    if arguments.write:
        table = budgets.updated(table, measured, counted)
        budgets.write(table)
    parts = {
        "resources": tables.resources_table(measured, arguments.every),
        "counts": tables.counts_table(counted),
        "exceptions": tables.exceptions_table(table),
        "roofline": roofline.table(),
    }
    if arguments.write:
        text = tables.DOCUMENT.read_text()
        for name, content in parts.items():
            text = tables.with_part(text, name, content)
        tables.DOCUMENT.write_text(text)
    if arguments.check or arguments.write:
        misses = [
            *budgets.resource_misses(table, measured),
            *budgets.count_misses(table, counted),
        ]
        sys.exit("\n".join(misses) or 0)
    print("\n\n".join(parts.values()))


if __name__ == "__main__":
    main()

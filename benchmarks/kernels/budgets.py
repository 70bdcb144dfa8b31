"""The committed table of budgets, and what measurements miss of it.

Resources are compared with what was measured when the table was last written: registers may grow up to the next
multiple of 8, in which hardware hands them out, so that occupancy stays; 16-byte accesses and tensor-core instructions
may not become fewer, spills and blocks on a multiprocessor not worse. Counts are compared with fixed ratios. What is beyond
a limit for a reason is listed as an exception, with its value and the reason.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.kernels.counts import Counts, Line
from benchmarks.kernels.resources import Kernel, Resources

PATH = Path(__file__).with_name("budgets.json")

Measured = Mapping[str, Mapping[Kernel, Resources]]
Budgets = dict[str, Any]


def read(path: Path = PATH) -> Budgets:
    """The committed table."""
    budgets: Budgets = json.loads(path.read_text())
    return budgets


def write(budgets: Budgets, path: Path = PATH) -> None:
    """A line a kernel, a line an exception."""
    parts = []
    for section, content in budgets.items():
        if isinstance(content, dict):
            lines = [f"  {json.dumps(k)}: {_line(v)}" for k, v in content.items()]
            text = "{\n" + ",\n".join(lines) + "\n }"
        elif isinstance(content, list):
            text = "[\n" + ",\n".join(f"  {_line(entry)}" for entry in content) + "\n ]"
        else:
            text = _line(content)
        parts.append(f" {json.dumps(section)}: {text}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def budget_of(resources: Resources) -> dict[str, int]:
    """What a kernel that was measured so is held to from then on."""
    return {
        "registers": min(-(-resources.registers // 8) * 8, 255),
        "blocks": resources.blocks,
        "loads": resources.loads,
        "stores": resources.stores,
        "mma": resources.mma,
    }


def updated(budgets: Budgets, measured: Measured, counts: Iterable[Counts]) -> Budgets:
    """The table with what is measured now; its limits and which exceptions there are stay."""
    resources = {
        str(kernel): {a: budget_of(found[kernel]) for a, found in measured.items()}
        for kernel in sorted({kernel for found in measured.values() for kernel in found})
    }
    spills = {(str(k), a): r.spills for a, found in measured.items() for k, r in found.items()}
    ratios = {(c.name, what): value for c in counts for what, value, _ in _ratios(c)}
    return {
        **budgets,
        "resources": resources,
        "spilling": [
            {
                **entry,
                "spills": spills.get((entry["kernel"], entry["architecture"]), entry["spills"]),
            }
            for entry in budgets["spilling"]
        ],
        "exceptions": [
            {**entry, "ratio": ratios.get((entry["op"], entry["what"]), entry["ratio"])}
            for entry in budgets["exceptions"]
        ],
    }


def architectures(budgets: Budgets) -> set[str]:
    """Those that there are budgets for."""
    return {
        architecture for of_kernel in budgets["resources"].values() for architecture in of_kernel
    }


def resource_misses(budgets: Budgets, measured: Measured) -> Iterator[str]:
    """What is worse than its budget, or has none; a line each."""
    spilling = {(e["kernel"], e["architecture"]): e["spills"] for e in budgets["spilling"]}
    for architecture, found in measured.items():
        for kernel, resources in found.items():
            where = f"{kernel}, {architecture}"
            budget = budgets["resources"].get(str(kernel), {}).get(architecture)
            if budget is None:
                yield f"{where}: has no budget"
                continue
            allowed = spilling.get((str(kernel), architecture), 0)
            if resources.spills > allowed:
                yield f"{where}: {resources.spills} instructions on local memory, allowed {allowed}"
            elif resources.spills < allowed:
                yield f"{where}: is listed with {allowed} spills but has {resources.spills}"
            if resources.stack and not allowed:
                yield f"{where}: {resources.stack} bytes of local memory, allowed 0"
            if resources.registers > budget["registers"]:
                yield f"{where}: {resources.registers} registers, allowed {budget['registers']}"
            for what, least in budget.items():
                if what != "registers" and getattr(resources, what) < least:
                    yield f"{where}: {what} {getattr(resources, what)}, at least {least}"
    there = {str(kernel) for found in measured.values() for kernel in found}
    for name in budgets["resources"].keys() - there if measured else ():
        yield f"{name}: has a budget but is not in the module"


def count_misses(budgets: Budgets, counts: Iterable[Counts]) -> Iterator[str]:
    """Ratios beyond their limit or the value listed for them, and exceptions without need; a line each."""
    excused = {(e["op"], e["what"]): e["ratio"] for e in budgets["exceptions"]}
    for count in counts:
        for what, ratio, line in _ratios(count):
            limit = budgets["limits"][what]
            listed = excused.get((count.name, what))
            if ratio > max(limit, listed or 0):
                at = f" at {line.line}" if line else ""
                yield f"{count.name}: {what} ÷ ideal is {ratio}{at}, allowed {listed or limit}"
            elif listed is not None and ratio <= limit:
                yield f"{count.name}: {what} is listed as an exception but is {ratio}"
            excused.pop((count.name, what), None)
    for name, what in excused:
        yield f"{name}: {what} is listed as an exception but not counted"


def _ratios(count: Counts) -> Iterator[tuple[str, float, Line | None]]:
    yield "bytes", count.bytes, None
    if count.sectors is not None:
        yield "sectors", count.sectors.ratio, count.sectors
    if count.wavefronts is not None:
        yield "wavefronts", count.wavefronts.ratio, count.wavefronts

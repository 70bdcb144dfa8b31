"""The committed table of budgets, and what measurements miss of it.

Resources are compared with what was measured when the table was last written: registers may grow up to the next
multiple of 8, in which hardware hands them out, so that occupancy stays; 16-byte accesses and tensor-core instructions
may not become fewer, spills and blocks on a multiprocessor not worse. Shared memory must not exceed the architecture's,
and Triton's convolutions in half types must use the tensor-core instructions that the architecture reaches its peak
with. Counts are compared with fixed ratios. What is beyond a limit for a reason is listed as an exception, with its value
and the reason.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from benchmarks.kernels.resources import MMA_FAMILIES, SHARED, Kernel, Resources

PATH = Path(__file__).with_name("budgets.json")

Measured = Mapping[str, Mapping[Kernel, Resources]]
"""Kernels by architecture."""

Half = Literal["cuda", "triton"]
"""Whose kernels; a section of the table each."""

TRITON = "triton "
"""Names of Triton's kernels, and of what is counted of them, start so."""

Budgets = dict[str, Any]


class Counted(Protocol):
    """What was counted of an op's kernels on one problem."""

    @property
    def name(self) -> str:
        """By which the table knows it."""

    @property
    def ratios(self) -> list[tuple[str, float, str]]:
        """What was counted, over its ideal, and the source line that it was counted at, if it was at one."""


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
    known = {} if resources.blocks is None else {"blocks": resources.blocks}
    return {
        "registers": -(-resources.registers // 8) * 8,
        **known,
        "loads": resources.loads,
        "stores": resources.stores,
        "mma": resources.mma,
    }


def updated(budgets: Budgets, half: Half, measured: Measured) -> Budgets:
    """The table with the resources that are measured now; which exceptions there are stays."""
    found = {(str(k), a): r for a, kernels in measured.items() for k, r in kernels.items()}

    def renewed(section: str, what: str, attribute: str) -> list[dict[str, Any]]:
        return [
            {**entry, what: getattr(found[key], attribute)}
            if (key := (entry["kernel"], entry["architecture"])) in found
            else entry
            for entry in budgets[section]
        ]

    return {
        **budgets,
        half: {
            str(kernel): {
                a: budget_of(kernels[kernel])
                for a, kernels in measured.items()
                if kernel in kernels
            }
            for kernel in sorted({kernel for kernels in measured.values() for kernel in kernels})
        },
        "spilling": renewed("spilling", "spills", "spills"),
        "other_mma": renewed("other_mma", "family", "mma_family"),
    }


def recounted(budgets: Budgets, counts: Iterable[Counted]) -> Budgets:
    """The table with what is counted now; its limits and which exceptions there are stay."""
    ratios = {(c.name, what): value for c in counts for what, value, _ in c.ratios}
    exceptions = [
        {**entry, "ratio": ratios.get((entry["op"], entry["what"]), entry["ratio"])}
        for entry in budgets["exceptions"]
    ]
    return {**budgets, "exceptions": exceptions}


def architectures(budgets: Budgets, half: Half) -> set[str]:
    """Those that there are budgets for."""
    return {architecture for of_kernel in budgets[half].values() for architecture in of_kernel}


def resource_misses(budgets: Budgets, half: Half, measured: Measured) -> Iterator[str]:
    """What is worse than its budget, or has none; a line each."""
    for architecture, found in measured.items():
        for kernel, resources in found.items():
            where = f"{kernel}, {architecture}"
            budget = budgets[half].get(str(kernel), {}).get(architecture)
            if budget is None:
                yield f"{where}: has no budget"
                continue
            misses = [
                *_memory_misses(budgets, kernel, architecture, resources),
                *_mma_misses(budgets, kernel, architecture, resources),
                *_budget_misses(budget, resources),
            ]
            yield from (f"{where}: {miss}" for miss in misses)
    there = {str(kernel) for found in measured.values() for kernel in found}
    for name in budgets[half].keys() - there if measured else ():
        yield f"{name}: has a budget but is not there"


def _listed(budgets: Budgets, section: str, kernel: Kernel, architecture: str) -> Any | None:
    """The exception of this section for a kernel on an architecture."""
    for entry in budgets[section]:
        if (entry["kernel"], entry["architecture"]) == (str(kernel), architecture):
            return entry
    return None


def _memory_misses(
    budgets: Budgets, kernel: Kernel, architecture: str, resources: Resources
) -> Iterator[str]:
    """Spills and local memory, if none are listed, and more shared memory than there is."""
    listed = _listed(budgets, "spilling", kernel, architecture)
    allowed = 0 if listed is None else listed["spills"]
    if resources.spills > allowed:
        yield f"{resources.spills} spills, allowed {allowed}"
    elif resources.spills < allowed:
        yield f"is listed with {allowed} spills but has {resources.spills}"
    if resources.stack and not allowed:
        yield f"{resources.stack} bytes of local memory, allowed 0"
    if (shared := resources.shared + resources.dynamic) > SHARED[architecture]:
        yield f"{shared} bytes of shared memory, there are {SHARED[architecture]}"


PROMISED = f"{TRITON}modulated_conv"
"""The kernels that must use an architecture's own tensor-core instructions start so."""


def _mma_misses(
    budgets: Budgets, kernel: Kernel, architecture: str, resources: Resources
) -> Iterator[str]:
    """Other tensor-core instructions than are promised or listed."""
    if not kernel.name.startswith(PROMISED) or kernel.dtype not in ("float16", "bfloat16"):
        return
    promised, used = MMA_FAMILIES[architecture], resources.mma_family
    listed = _listed(budgets, "other_mma", kernel, architecture)
    if listed is not None and used == promised:
        yield f"is listed with {listed['family'] or 'no mma'} but uses {used}"
    elif used != promised and (listed is None or used != listed["family"]):
        yield f"uses {used or 'no mma'}, promised {promised}"


def _budget_misses(budget: Mapping[str, int], resources: Resources) -> Iterator[str]:
    """More registers, or less of the rest."""
    if resources.registers > budget["registers"]:
        yield f"{resources.registers} registers, allowed {budget['registers']}"
    for what, least in budget.items():
        found = getattr(resources, what)
        if what != "registers" and found is not None and found < least:
            yield f"{what} {found}, at least {least}"


def count_misses(budgets: Budgets, half: Half, counts: Iterable[Counted]) -> Iterator[str]:
    """Ratios beyond their limit or the value listed for them, and exceptions without need; a line each."""
    excused = {
        (e["op"], e["what"]): e["ratio"]
        for e in budgets["exceptions"]
        if e["op"].startswith(TRITON) == (half == "triton")
    }
    for count in counts:
        for what, ratio, line in count.ratios:
            limit = budgets["limits"][what]
            listed = excused.pop((count.name, what), None)
            if ratio > max(limit, listed or 0):
                at = f" at {line}" if line else ""
                yield f"{count.name}: {what} ÷ ideal is {ratio}{at}, allowed {listed or limit}"
            elif listed is not None and ratio <= limit:
                yield f"{count.name}: {what} is listed as an exception but is {ratio}"
    for name, what in excused:
        yield f"{name}: {what} is listed as an exception but not counted"

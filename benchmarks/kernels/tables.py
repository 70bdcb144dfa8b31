"""The measurements as Markdown, and the parts of docs/kernels.md that are made of them."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.kernels.budgets import TRITON, Budgets, Half, Measured
from benchmarks.kernels.cases import LAYOUTS
from benchmarks.kernels.counts import Counts, Line
from benchmarks.kernels.resources import Kernel, Resources
from benchmarks.kernels.triton_counts import TritonCounts

DOCUMENT = Path(__file__).parents[2] / "docs" / "kernels.md"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _family(kernel: Kernel) -> tuple[str, str, str]:
    """Name, element type, and what of the instance decides how memory is accessed or tiles are cut."""
    accesses = ("vectors", "elements", "columns", "channels")
    words = [word for word in kernel.instance.split() if word in accesses or "×" in word]
    if kernel.name.startswith(TRITON):
        words = [word for word in kernel.instance.split() if word in LAYOUTS]
    return kernel.name, kernel.dtype, " ".join(words)


def span(values: Iterable[int], unit: str = "") -> str:
    """The least and the most of them, if there are any."""
    values = [*values]
    if not values:
        return "–"
    low, *_, high = sorted(values * 2)
    return f"{low}{unit}" if low == high else f"{low}–{high}{unit}"


def resources_table(measured: Measured, every: bool = False) -> str:
    """Kernels by element type and way to memory, a span over the instances of each; `every`: by instance."""
    rows: dict[tuple[str, str, str], dict[str, list[Resources]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for architecture, found in measured.items():
        for kernel, resources in found.items():
            row = (kernel.name, kernel.dtype, kernel.instance) if every else _family(kernel)
            rows[row][architecture].append(resources)
    heads = ["kernel", "type", "instances", *(f"registers {a}" for a in measured), "spills"]
    occupied = [a for a, found in measured.items() if any(r.blocks for r in found.values())]
    heads += ["shared KB", "16-byte loads", "stores", "mma", *(f"occupancy {a}" for a in occupied)]
    lines = []
    for (name, dtype, instance), by_architecture in rows.items():
        per_architecture = [by_architecture[a] for a in measured]
        all_of_them = [r for resources in per_architecture for r in resources]
        count = max(map(len, per_architecture))
        lines.append(
            [
                name.removeprefix(TRITON),
                dtype,
                instance if every else f"{count} {instance}".strip(),
                *(span(r.registers for r in resources) for resources in per_architecture),
                span(r.spills for r in all_of_them),
                span(-(-(r.shared + r.dynamic) // 1024) for r in all_of_them),
                span(r.loads for r in all_of_them),
                span(r.stores for r in all_of_them),
                _mma(all_of_them),
                *(_occupancy(by_architecture[a]) for a in occupied),
            ]
        )
    return markdown(heads, lines)


def _mma(resources: Iterable[Resources]) -> str:
    """Tensor-core instructions, by family."""
    by_family: dict[str, list[int]] = defaultdict(list)
    for found in resources:
        if found.mma:
            by_family[found.mma_family].append(found.mma)
    return ", ".join(f"{family} {span(n)}" for family, n in by_family.items()) or "0"


def _occupancy(resources: Iterable[Resources]) -> str:
    return span((round(100 * r.occupancy) for r in resources if r.occupancy is not None), " %")


def triton_counts_table(counts: Iterable[TritonCounts]) -> str:
    """Ops by layout."""
    lines = [
        [count.op, count.layout, f"{count.once:.2f}", f"{count.asked:.2f}"]
        for count in sorted(counts, key=lambda c: (c.layout, c.op))
    ]
    return markdown(["op", "layout", "bytes", "bytes asked for"], lines)


def counts_table(counts: Iterable[Counts]) -> str:
    """Ops by layout, the element types side by side."""
    by_problem = groupby(
        sorted(counts, key=lambda c: (c.layout, c.op)), key=lambda c: (c.op, c.layout)
    )
    lines = []
    for (op, layout), group in by_problem:
        types = list(group)
        cells = [
            [f"{c.bytes:.2f}" for c in types],
            [_ratio(c.sectors) for c in types],
            [_ratio(c.wavefronts) for c in types],
        ]
        names = " / ".join(c.dtype for c in types)
        lines.append([op, layout, names, *(" / ".join(cell) for cell in cells)])
    heads = ["op", "layout", "types", "bytes", "sectors", "wavefronts"]
    return markdown(heads, lines)


COUNTS: dict[Half, Callable[..., str]] = {
    "cuda": counts_table,
    "triton": triton_counts_table,
}


def _ratio(line: Line | None) -> str:
    return "–" if line is None else f"{line.ratio:.2f}"


def exceptions_table(budgets: Budgets) -> str:
    """What the budgets allow beyond their limits, and why."""
    lines = [
        [f"{e['kernel']}, {e['architecture']}", f"{e['spills']} spills", e["why"]]
        for e in budgets["spilling"]
    ]
    lines += [
        [f"{e['kernel']}, {e['architecture']}", e["family"] or "no mma", e["why"]]
        for e in budgets["other_mma"]
    ]
    lines += [[e["op"], f"{e['what']} {e['ratio']:.2f}", e["why"]] for e in budgets["exceptions"]]
    return markdown(["where", "value", "why"], lines)


def part(text: str, name: str) -> str:
    """What stands between the markers of this name."""
    match = re.search(_between(name), text, re.DOTALL)
    assert match is not None, f"{DOCUMENT.name} has no part {name}"
    return match[2].strip()


def with_part(text: str, name: str, content: str) -> str:
    """The document with this content between the markers."""
    part(text, name)
    return re.sub(
        _between(name), lambda m: f"{m[1]}{content}\n{m[3]}", text, count=1, flags=re.DOTALL
    )


def _between(name: str) -> str:
    return rf"(<!-- {name}[^>]*-->\n)(.*?)(<!-- end of {name} -->)"

"""Rows as text and as Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from benchmarks.rows import Row

HEADS = (
    "contestant",
    "ms [20 %, 80 %]",
    "times as fast [20 %, 80 %]",
    "peak MiB",
    "GB/s, of a copy, of an equal copy",
    "GFLOP/s, of a product",
)


def cells(row: Row) -> list[str]:
    """What a table says of a row, under `HEADS`."""
    name = row.contestant
    if row.kind == "model" and row.dtype != "float32":
        name += f", {row.dtype}"
    if row.seconds is None:
        return [name, row.error, "", "", "", ""]
    assert row.seconds_low is not None and row.seconds_high is not None
    time = f"{_ms(row.seconds)} [{_ms(row.seconds_low)}, {_ms(row.seconds_high)}]"
    ratio = memory = bandwidth = rate = ""
    if row.ratio is not None:
        ratio = f"{row.ratio:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"
    if row.memory is not None:
        memory = f"{row.memory / 2**20:.1f}"
        memory += "" if row.memory_ratio is None else f" ({row.memory_ratio:.2f})"
    if row.bandwidth is not None:
        bandwidth = f"{row.bandwidth / 1e9:.1f}"
        shares = (row.of_copy, row.of_equal_copy)
        bandwidth += "".join("" if share is None else f", {share:.0%}" for share in shares)
    if row.rate is not None:
        rate = f"{row.rate / 1e9:.1f}"
        rate += "" if row.of_matmul is None else f", {row.of_matmul:.0%}"
    return [name, time, ratio, memory, bandwidth, rate]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def races(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows that are compared with each other, which lie next to each other, under what they have in common."""
    for race, members in groupby(rows, key=lambda r: r.race):
        yield race, list(members)


_WIDTHS = (20, 29, 26, 16, 24, 14)


def heading() -> str:
    """Over the text of all."""
    return f"  {_aligned(HEADS)}"


def text(row: Row) -> str:
    """A row as a line."""
    if row.outcome == "failed":
        return f"  {row.contestant:<{_WIDTHS[0]}}FAILED, not timed: {row.error}"
    return f"  {_aligned(cells(row))}".rstrip()


def _aligned(values: Sequence[str]) -> str:
    return "  ".join(f"{v:<{w}}" for v, w in zip(values, _WIDTHS, strict=True)).rstrip()


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    every = [[*heads], ["---"] * len(heads), *([*line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def markdown_rows(rows: Sequence[Row]) -> str:
    """All rows in one table, the race in the first column."""
    lines = [
        [name if i == 0 else "", *cells(row)]
        for name, members in races(rows)
        for i, row in enumerate(members)
    ]
    return markdown(["problem", *HEADS], lines)

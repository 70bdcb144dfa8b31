"""How time and memory grow with the number of pixels, with the batch and with threads."""

import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.measure import CHECKED, Settings, operator_rows
from benchmarks.rates import last_cache
from benchmarks.rows import Row
from gpseg.selftest.problems import FAMILIES
from gpseg.selftest.timing import Direction, serving_backends

SIZES = (32, 64, 128, 256, 384, 512, 768, 1024)
"""Pixels a side, at batch 1; more of them where data leaves the caches, which is what counts."""
BATCHES = (1, 2, 4, 8, 16, 32)
BATCH_SIZE = 64
"""Pixels a side where the batch grows."""
THREAD_SIZE = 256
"""Pixels a side where threads grow."""
WORSE_THAN_LINEAR = 1.05
"""An exponent in pixels above this is marked."""


@dataclass(frozen=True)
class Growth:
    """One law: quantity ~ variable ^ exponent.

    Args:
        family, contestant, direction: what grows, see `gpseg.selftest.problems.FAMILIES`.
        quantity: seconds or bytes.
        variable: pixels, batch or threads.
        exponent: by least squares in the logarithms; None with fewer than three points.
        beyond_cache: the same of the points that move more bytes than the last cache holds.
        marked: it grows worse than linearly in pixels beyond the cache.
    """

    family: str
    contestant: str
    direction: str
    quantity: str
    variable: str
    exponent: float | None
    beyond_cache: float | None = None
    marked: bool = False


def exponent(points: Sequence[tuple[float, float]], least: int = 3) -> float | None:
    """The slope of log y over log x by least squares; None if at fewer than `least` x there is a point that has
    logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in logs}) < least:
        return None
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def thread_counts() -> list[int]:
    """Powers of two up to this machine's cores."""
    cores = os.cpu_count() or 1
    return [2**i for i in range(cores.bit_length()) if 2**i <= cores]


def growth_rows(
    families: Sequence[str],
    directions: Sequence[Direction],
    dtype: torch.dtype,
    layout: str,
    settings: Settings,
    sizes: Sequence[int] = SIZES,
    batches: Sequence[int] = BATCHES,
) -> Iterator[Row]:
    """Measure families of problems at every size, batch and number of threads.

    What can't be right at the smallest size is not timed at any; the larger ones are taken on trust, as a reference for
    them in float64 would take minutes.

    Args:
        families: of `gpseg.selftest.problems.FAMILIES`.
        directions: forward, backward.
        dtype, layout: of the images.
        settings: how; its threads are those of all but the last part. Without names of contestants it is the
            backend that serves by itself.
        sizes: pixels a side, at batch 1.
        batches: at `BATCH_SIZE` pixels a side.
    """
    names = settings.contestants or tuple(serving_backends()[:1])
    grid = [(size, 1, settings.threads) for size in sizes]
    grid += [(BATCH_SIZE, n, settings.threads) for n in batches]
    grid += [(THREAD_SIZE, 1, n) for n in thread_counts()] if sizes == SIZES else []
    for family in families:
        right = set()
        for row in operator_rows(
            FAMILIES[family](min(sizes), 1),
            [d for d in CHECKED if d in directions],
            dtype,
            layout,
            replace(settings, contestants=names, seconds=0.0, memory=False),
        ):
            if row.outcome == "failed":
                yield replace(row, kind="growth", problem=family, size=min(sizes), batch=1)
            elif row.contestant in names:
                right.add(row.contestant)
        for size, batch, threads in dict.fromkeys(grid):
            yield from (
                replace(
                    row,
                    kind="growth",
                    race=f"{row.race}, {threads} threads",
                    problem=family,
                    size=size,
                    batch=batch,
                )
                for row in operator_rows(
                    FAMILIES[family](size, batch),
                    directions,
                    dtype,
                    layout,
                    replace(settings, threads=threads),
                    trusted=right,
                )
            )


def laws(rows: Sequence[Row], device: torch.device) -> list[Growth]:
    """The exponents in pixels, batch and threads of rows that `growth_rows` gave."""
    cache = last_cache(device)
    growth = [r for r in rows if r.kind == "growth" and r.outcome == "timed"]
    found = []
    for key in dict.fromkeys((r.problem, r.contestant, r.direction) for r in growth):
        own = [r for r in growth if (r.problem, r.contestant, r.direction) == key]
        threads = statistics.mode(r.threads for r in own)
        most = [r for r in own if r.threads == threads]
        by_size = [r for r in most if r.batch == 1]
        by_batch = [r for r in most if r.size == BATCH_SIZE]
        by_threads = [r for r in own if r.size == THREAD_SIZE and r.batch == 1]
        for quantity, of in (("time", "seconds"), ("memory", "memory")):
            pixels = [(float(r.size or 0) ** 2, getattr(r, of) or 0, r.moved or 0) for r in by_size]
            beyond = exponent([(x, y) for x, y, moved in pixels if moved > cache])
            found.append(
                Growth(
                    *key,
                    quantity,
                    "pixels",
                    exponent([(x, y) for x, y, _ in pixels]),
                    beyond,
                    beyond is not None and beyond > WORSE_THAN_LINEAR,
                )
            )
            batch = exponent([(r.batch or 0, getattr(r, of) or 0) for r in by_batch])
            found.append(Growth(*key, quantity, "batch", batch))
        scaling = [(r.threads, r.seconds or 0) for r in by_threads]
        found.append(Growth(*key, "time", "threads", exponent(scaling, least=2)))
    return found


_COLUMNS = (
    ("time", "pixels"),
    ("memory", "pixels"),
    ("time", "batch"),
    ("memory", "batch"),
    ("time", "threads"),
)
HEADS = (
    "family",
    "contestant",
    "direction",
    *(f"{quantity} over {variable}" for quantity, variable in _COLUMNS),
    "",
)


def lines(laws: Sequence[Growth]) -> list[list[str]]:
    """What a table says of laws, under `HEADS`: exponents, those beyond the cache in brackets."""
    table = []
    for key in dict.fromkeys((law.family, law.contestant, law.direction) for law in laws):
        own = [law for law in laws if (law.family, law.contestant, law.direction) == key]
        by_column = {(law.quantity, law.variable): law for law in own}
        cells = [_exponents(by_column.get(column)) for column in _COLUMNS]
        worse = [law.quantity for law in own if law.marked]
        mark = f"worse than linear in pixels: {' and '.join(worse)}" if worse else ""
        table.append([*key, *cells, mark])
    return table


def _exponents(law: Growth | None) -> str:
    if law is None or law.exponent is None:
        return ""
    beyond = "" if law.beyond_cache is None else f" ({law.beyond_cache:.2f})"
    return f"{law.exponent:.2f}{beyond}"

"""The page's pictures, as SVG."""

import io
import statistics
from collections.abc import Iterator, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.growth import BATCH_SIZE
from benchmarks.rows import Row

_COLOURS = {
    "textbook": "#8c8c8c",
    "compiled": "#b8862b",
    "grouped": "#8a5aa8",
    "eager": "#4a9db0",
    "cpp": "#3257a8",
    "cuda": "#3c8d5f",
    "triton": "#c8553d",
}
_LINES = (*_COLOURS.values(), "#c05a8c")


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gpseg"}):
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _colour(contestant: str) -> str:
    return _COLOURS.get(contestant, "#c05a8c")


def ratios(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """How many times as fast as the textbook everybody is: a title and a picture for each kind of problem."""
    for kind, heading in (
        ("operator", "Operators"),
        ("part", "Parts of operators"),
        ("model", "Whole models"),
    ):
        own = [r for r in rows if r.kind == kind and r.ratio is not None]
        own = [r for r in own if r.contestant != "textbook"]
        if own:
            yield f"{heading}: times as fast as the textbook", _svg(_bars(own))


def _bars(rows: Sequence[Row]) -> Figure:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.race, []).append(row)
    height = sum(len(g) + 1 for g in groups.values())
    figure = Figure(figsize=(9.5, 0.8 + 0.19 * height), layout="constrained")
    axes = figure.subplots()
    y, ticks = 0.0, {}
    for name, group in groups.items():
        ticks[name] = y + (len(group) - 1) / 2
        for row in group:
            assert row.ratio is not None and row.ratio_low is not None
            assert row.ratio_high is not None
            shade = 0.55 if row.kind == "model" and row.dtype != "float32" else 1.0
            axes.barh(y, row.ratio - 1, left=1, color=_colour(row.contestant), alpha=shade)
            axes.plot([row.ratio_low, row.ratio_high], [y, y], color="#23262b", linewidth=0.8)
            name = row.contestant + ("" if shade == 1 else f" {row.dtype}")
            axes.annotate(
                f" {name} {row.ratio:.2g}×",
                (max(row.ratio_high, 1), y),
                va="center",
                fontsize=6.5,
            )
            y += 1
        y += 1
    axes.axvline(1, color=_colour("textbook"), linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.xaxis.set_minor_formatter("")
    right = max((r.ratio_high or 1) for r in rows)
    axes.set_xlim(min(0.8, *((r.ratio_low or 1) * 0.8 for r in rows)), max(2, right * 2.2))
    axes.set_yticks([*ticks.values()], [*ticks], fontsize=7)
    axes.set_ylim(y - 0.5, -1)
    _plain(axes)
    return figure


def rooflines(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Operations a second over operations a byte, under what the copy and the matrix product reached."""
    own = [r for r in rows if r.seconds and r.moved and r.arithmetic and r.copy]
    own = [r for r in own if r.kind in ("operator", "part")]
    for dtype in dict.fromkeys(r.dtype for r in own):
        points = [r for r in own if r.dtype == dtype]
        products = [r.matmul for r in points if r.matmul]
        yield (
            f"Roofline, {dtype}",
            _svg(_roofline(points, statistics.median(products) if products else None)),
        )


def _roofline(rows: Sequence[Row], product: float | None) -> Figure:
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axes = figure.subplots()
    copy = statistics.median(r.copy for r in rows if r.copy)
    places = [(r.arithmetic or 1) / (r.moved or 1) for r in rows]
    ends = [min(places) / 2, max(places) * 2]
    xs = [ends[0] * (ends[1] / ends[0]) ** (i / 100) for i in range(101)]
    roof = [min(x * copy, product or float("inf")) / 1e9 for x in xs]
    axes.plot(xs, roof, color="#23262b", linewidth=1.2)
    axes.annotate(
        f"copy {copy / 1e9:.1f} GB/s"
        + (f", product {product / 1e9:.0f} GFLOP/s" if product else ""),
        (xs[30], roof[30]),
        xytext=(-8, 8),
        textcoords="offset points",
        ha="right",
        fontsize=7.5,
    )
    for contestant in dict.fromkeys(r.contestant for r in rows):
        of = [r for r in rows if r.contestant == contestant]
        axes.scatter(
            [(r.arithmetic or 1) / (r.moved or 1) for r in of],
            [(r.arithmetic or 1) / (r.seconds or 1) / 1e9 for r in of],
            s=22,
            color=_colour(contestant),
            label=contestant,
            alpha=0.85,
        )
    best: dict[str, Row] = {}
    for row in rows:
        key = f"{row.problem} {row.direction}"
        if key not in best or (row.seconds or 0) < (best[key].seconds or 0):
            best[key] = row
    for key, row in best.items():
        place = (
            (row.arithmetic or 1) / (row.moved or 1),
            (row.arithmetic or 1) / (row.seconds or 1) / 1e9,
        )
        axes.annotate(key, place, xytext=(4, 3), textcoords="offset points", fontsize=5.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte that has to be moved")
    axes.set_ylabel("GFLOP/s")
    axes.legend(fontsize=7.5, frameon=False)
    _plain(axes)
    return figure


def growth(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Time and memory over pixels and over batch."""
    own = [r for r in rows if r.kind == "growth" and r.seconds]
    if not own:
        return
    threads = statistics.mode(r.threads for r in own)
    own = [r for r in own if r.threads == threads]
    for direction in dict.fromkeys(r.direction for r in own):
        of = [r for r in own if r.direction == direction]
        figure = Figure(figsize=(9.5, 7), layout="constrained")
        for axes, (quantity, variable) in zip(
            figure.subplots(2, 2).flat,
            (("time", "pixels"), ("time", "batch"), ("memory", "pixels"), ("memory", "batch")),
            strict=True,
        ):
            _curves(axes, of, quantity, variable)
        figure.axes[0].legend(fontsize=7, frameon=False)
        yield f"Growth, {direction}, {of[0].dtype}, {threads} threads", _svg(figure)


def _curves(axes: Axes, rows: Sequence[Row], quantity: str, variable: str) -> None:
    names = list(dict.fromkeys((r.problem, r.contestant) for r in rows))
    for i, (family, contestant) in enumerate(names):
        points = []
        for r in rows:
            if (r.problem, r.contestant) != (family, contestant):
                continue
            y = (r.seconds or 0) * 1e3 if quantity == "time" else (r.memory or 0) / 2**20
            if variable == "pixels" and r.batch == 1 and y:
                points.append((float(r.size or 0) ** 2, y))
            elif variable == "batch" and r.size == BATCH_SIZE and y:
                points.append((float(r.batch or 0), y))
        if points:
            xs, ys = zip(*sorted(set(points)), strict=True)
            axes.plot(
                xs,
                ys,
                ".-",
                color=_LINES[i % len(_LINES)],
                linewidth=1,
                label=f"{family}, {contestant}",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(variable, fontsize=8)
    axes.set_ylabel("ms" if quantity == "time" else "peak MiB", fontsize=8)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=7)
    axes.grid(True, axis="both", color="#e2e2dc", linewidth=0.6)
    axes.set_axisbelow(True)

"""The report of a run: one HTML file that needs nothing else, no other file and no network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from gpseg.atomic import replacing
from gpseg.data import Classes
from gpseg.evaluation.metrics import Score, percent

_LARGEST = 320  # pixels; larger pictures are shrunk, or a report of 1024 px images has 50 MB
_LARGEST_GRID = 1024
_SMALLEST = 160  # pixels; smaller pictures are shown enlarged, their pixels square
LINES = ("#3257a8", "#c8553d", "#3c8d5f", "#8a5aa8", "#b8862b", "#4a9db0", "#8c8c8c", "#c05a8c")
_BAR = r"\|"  # a bar that doesn't end a column in Markdown
_NO_CURVES = ("step", "s_per_step", "s_per_kimg", "memory_gib")


@dataclass(frozen=True)
class Example:
    """One image of the report, in several views.

    Args:
        label: why it is shown, such as "worst"; may be empty.
        name: the image's name.
        pictures: uint8 [3, r, r] by column title, columns in the same order in every example.
        miou: the image's own mIoU, 0..1; None if it has no target.
    """

    label: str
    name: str
    pictures: Mapping[str, Tensor]
    miou: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of a report, with its texts as they are to be read.

    Args:
        title: its heading.
        header: titles of the columns; the first one holds names.
        rows: as many texts each.
        strong: names of the rows that stand out.
        hint: what the reader has to know of it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Collection[str] = ()
    hint: str = ""

    def markdown(self) -> str:
        """The table with its heading and hint, as Markdown."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        table = "\n".join(
            f"| {' | '.join(text.replace('|', _BAR) for text in line)} |" for line in lines
        )
        return "\n\n".join(part for part in (f"## {self.title}", self.hint, table) if part)


@dataclass(frozen=True)
class Report:
    """What a report shows; whatever is empty is left out.

    Args:
        title: the heading.
        lead: a sentence under it.
        classes: the part classes; None where there are no scores.
        grids: pictures of many images, uint8 [3, H, W], with what they show.
        history: the same images as training went on, uint8 [3, H, W], with when.
        scores: test scores by name: read-outs, floor, rivals.
        chosen: the name in `scores` that counts.
        floor: the name in `scores` that it is held against.
        tables: what else was measured.
        plots: figures with their titles.
        examples: test images.
        legend: colours (0..255) of the examples' pictures, by what they mean.
        ramp: the target T_a of one image, uint8 [3, r, r], with its a.
        curves: entries of metrics.jsonl.
        step: what an entry's step is divided by, and what that is called.
        config: the run's options; nested ones are shown with dots.
        notes: sentences that the reader should not miss.
    """

    title: str
    lead: str
    classes: Classes | None = None
    grids: Sequence[tuple[str, Tensor]] = ()
    history: Sequence[tuple[str, Tensor]] = ()
    scores: Mapping[str, Score] = field(default_factory=dict)
    chosen: str | None = None
    floor: str | None = None
    tables: Sequence[Table] = ()
    plots: Sequence[tuple[str, Figure]] = ()
    examples: Sequence[Example] = ()
    legend: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    ramp: Sequence[tuple[float, Tensor]] = ()
    curves: Sequence[Mapping[str, float]] = ()
    step: tuple[float, str] = (1, "step")
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write a report; an older one stays until the new one is whole.

    Args:
        path: the HTML file, in an existing folder.
        report: what it shows.

    Raises:
        RunError: if the disk is full.
    """
    html = _render(report)
    with replacing(path) as temporary:
        # names of files that are no UTF-8 are shown with what is none of it escaped
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")


def _render(report: Report) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    environment.filters["picture"] = _picture
    environment.filters["grid"] = _grid
    environment.filters["signed"] = signed
    source = resources.files("gpseg.evaluation").joinpath("report.html").read_text("utf-8")
    chosen = report.scores[report.chosen] if report.chosen else None
    floor = report.scores[report.floor] if report.floor else None
    return environment.from_string(source).render(
        report=report,
        chosen=chosen,
        floor=floor,
        others=[name for name in report.scores if name not in (report.chosen, report.floor)],
        ranking=sorted(report.scores.items(), key=lambda item: -item[1].miou),
        columns=list(report.examples[0].pictures) if report.examples else [],
        plots=[(title, _png(figure)) for title, figure in report.plots],
        curves=[(title, _png(figure)) for title, figure in _curves(report)],
        config=list(_flat(report.config)),
    )


def signed(difference: float) -> str:
    """Write a difference of IoUs in percent points, with a sign."""
    if math.isnan(difference):
        return percent(difference)
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class _Picture:
    source: str
    pixelated: bool


def _grid(pixels: Tensor) -> _Picture:
    """Embed a picture of many images, uint8 [3, H, W]."""
    return _picture(pixels, _LARGEST_GRID)


def _picture(pixels: Tensor, at_most: int = _LARGEST) -> _Picture:
    """Embed a picture, uint8 [3, H, W]."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    largest = max(image.size)
    if largest > at_most:
        image = image.reduce(-(-largest // at_most))
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return _Picture(_data_url(stream.getvalue()), pixelated=largest < _SMALLEST)


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


@dataclass(frozen=True)
class _Plot:
    title: str
    label: str
    names: tuple[str, ...]
    scale: float = 1
    logarithmic: bool = False

    def holds(self, name: str) -> bool:
        """Whether a name, or what it starts with, is listed."""
        return any(name == own or name.startswith(f"{own}_") for own in self.names)


_PLOTS = (
    _Plot("Sliced Wasserstein distance to real images, x1000", "swd", ("swd",), logarithmic=True),
    _Plot("Fréchet distance at 8 x 8 pixels", "frechet_8", ("frechet_8",), logarithmic=True),
    _Plot("Coverage, and distance of nearest images", "1 as real images", ("coverage", "nearest")),
    _Plot("Probability of augmentation", "p", ("augment",)),
    _Plot("Mean sign of the discriminator's logits", "sign", ("sign",)),
    _Plot("Ramp a, share of the part map", "a", ("a",)),
    _Plot("Validation mIoU", "mIoU, %", ("val",), scale=100),
)


def _curves(report: Report) -> Iterator[tuple[str, Figure]]:
    """Plot what was logged, each kind for itself; what is of no kind is a loss."""
    logged = dict.fromkeys(name for entry in report.curves for name in entry)
    names = [name for name in logged if name not in _NO_CURVES]
    losses = tuple(name for name in names if not any(plot.holds(name) for plot in _PLOTS))
    for plot in (_Plot("Losses", "loss", losses, logarithmic=True), *_PLOTS):
        shown = [name for name in names if plot.holds(name)]
        if shown:
            yield plot.title, _plot(report, shown, plot)


def _plot(report: Report, names: Sequence[str], plot: _Plot) -> Figure:
    entries = report.curves
    unit, unit_name = report.step
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(names):
        points = [
            (entry["step"] / unit, plot.scale * entry[name]) for entry in entries if name in entry
        ]
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps,
            values,
            color=LINES[index % len(LINES)],
            linestyle="-" if index < len(LINES) else "--",
            marker="o" if len(points) < 20 else None,
            markersize=3.5,
            linewidth=1.5,
            label=name.removeprefix("val_"),
        )
    positive = all(entry[name] > 0 for entry in entries for name in names if name in entry)
    if plot.logarithmic and positive:
        axes.set_yscale("log")
    axes.set_xlabel(unit_name)
    axes.set_ylabel(plot.label)
    axes.grid(color="#e4e4df", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axes.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", dpi=170)
    return _data_url(stream.getvalue())


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, "-" if value is None else str(value)

"""From the cells of a comparison to results.json, results.md and report.html."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import gpseg
from gpseg.atomic import replacing
from gpseg.data import Reading
from gpseg.errors import InputError
from gpseg.evaluation.cells import PLAIN, Cell, Setting
from gpseg.evaluation.claims import Claim, judge, paired
from gpseg.evaluation.comparison import CONFIDENCE, RESAMPLES, Interval
from gpseg.evaluation.jitter import ELSEWHERE, KINDS
from gpseg.evaluation.methods import FLOOR, METHODS, OURS
from gpseg.evaluation.metrics import counted, finite, percent, pooled_iou
from gpseg.evaluation.other import OTHER, OtherCollection
from gpseg.evaluation.pictures import IGNORED, colour_mask, telling_examples
from gpseg.evaluation.report import LINES, Example, Report, Table, signed, write_report
from gpseg.evaluation.results import Held, load_held

SMALL_SHARE = 0.02
"""A class with a smaller share of the labelled pixels is a small part."""

_DAMAGED = [name for name, kind in KINDS.items() if not kind.foreign]
_FOREIGN = [name for name, kind in KINDS.items() if kind.foreign]
_ALONE = "no-unlabelled"
_WITHOUT = (_ALONE, "unet")
"""Ours without unlabelled images in tuning, and what has no generator either."""


class Summary:
    """Cells, arranged to be read by line (a method, or a read-out of ours) and number of shots.

    Args:
        cells: the cells, failed ones among them.
        setting: what they have in common.

    Raises:
        InputError: no cell is finished, or the data set isn't what it was.
    """

    def __init__(self, cells: Sequence[Cell], setting: Setting) -> None:
        self.setting = setting
        self.failed = [cell for cell in cells if cell.failed]
        self.cells = [cell for cell in cells if not cell.failed]
        if not self.cells:
            raise InputError("no cell of the comparison is finished; there is nothing to report")
        self.parts = setting.open_data()
        self.classes = self.parts.classes
        self.shots = sorted({cell.key.shots for cell in self.cells})
        self.other: OtherCollection | None = setting.open_other(self.classes)
        self.stems: list[str] = self.cells[0].facts["images"]
        if any(cell.facts["images"] != self.stems for cell in self.cells):
            raise InputError(
                f"{setting.splits.parent}: cells were scored on different images; start anew"
            )

    @cached_property
    def lines(self) -> list[str]:
        """Methods in their order, ours followed by its read-outs."""
        there = {row for cell in self.cells for row in cell.rows}
        read_outs = sorted(row for row in there if row.startswith(f"{OURS}-"))
        wanted = [line for name in METHODS for line in [name, *(read_outs if name == OURS else [])]]
        return [line for line in wanted if line in there]

    @cached_property
    def held(self) -> Held:
        """The images scored on."""
        return load_held(self.parts, self.stems, self.cells[0].facts["resolution"])

    @cached_property
    def small(self) -> list[int]:
        """Ids of the classes of small parts."""
        counts = torch.bincount(self.held.masks.flatten().long(), minlength=256)
        counts = counts[: self.classes.num_classes]
        return [i for i, count in enumerate(counts.tolist()) if count < SMALL_SHARE * counts.sum()]

    @cached_property
    def devices(self) -> list[str]:
        """What cells were computed on, most cells first."""
        return [
            name for name, _ in Counter(cell.facts["device"] for cell in self.cells).most_common()
        ]

    @property
    def others(self) -> list[int]:
        """Ids of the other classes."""
        return [i for i in range(self.classes.num_classes) if i not in self.small]

    def found(self, line: str, shots: int) -> dict[int, Cell]:
        """Finished cells by draw."""
        cells = (cell for cell in self.cells if cell.key.shots == shots and line in cell.rows)
        return {cell.key.draw: cell for cell in sorted(cells, key=lambda cell: cell.key)}

    def counts(self, line: str, shots: int, kind: str = PLAIN) -> dict[int, Tensor]:
        """Confusions [N, K, K] by draw."""
        by_draw = {draw: c.counts(line, kind) for draw, c in self.found(line, shots).items()}
        return {draw: counts for draw, counts in by_draw.items() if counts is not None}

    def mious(
        self, line: str, shots: int, kind: str = PLAIN, classes: Sequence[int] | None = None
    ) -> dict[int, float]:
        """mIoU by draw, over some of the classes or all."""
        wanted = slice(None) if classes is None else list(classes)
        return {
            draw: pooled_iou(counts)[wanted].nanmean().item()
            for draw, counts in self.counts(line, shots, kind).items()
        }

    def changes(
        self, line: str, other: str, shots: int, kind: str = PLAIN, other_kind: str = PLAIN
    ) -> list[float]:
        """mIoU of one line less that of another, on the draws that both have."""
        a, b = self.mious(line, shots, kind), self.mious(other, shots, other_kind)
        return [a[draw] - b[draw] for draw in a if draw in b]

    @cached_property
    def claims(self) -> list[Claim]:
        """The claims, judged."""
        return judge(self.counts, self.shots, self.small, self.others)

    @cached_property
    def differences(self) -> dict[str, dict[str, dict[int, Interval]]]:
        """What ours is above every other line, by kind of image, that line and shots."""
        return {kind: self._above(self.lines, kind) for kind in (PLAIN, OTHER)}

    @cached_property
    def brought(self) -> dict[str, dict[str, dict[int, Interval]]]:
        """What ours is above itself without unlabelled images, and above what has no generator, by kind of image."""
        found = {kind: self._above(_WITHOUT, kind) for kind in (PLAIN, ELSEWHERE, OTHER)}
        return {kind: by_line for kind, by_line in found.items() if by_line}

    @cached_property
    def alone(self) -> dict[str, dict[int, Interval]]:
        """What ours without unlabelled images is above rivals that learn no masks from them, by line and shots."""
        rivals = [
            name
            for name, method in METHODS.items()
            if method.kind == "rival" and not name.endswith("-unlabelled")
        ]
        return self._above(rivals, PLAIN, ours=_ALONE)

    def _above(
        self, lines: Sequence[str], kind: str, ours: str = OURS
    ) -> dict[str, dict[int, Interval]]:
        found: dict[str, dict[int, Interval]] = {}
        for line in lines:
            for shots in self.shots if line != ours else ():
                interval = paired(partial(self.counts, kind=kind), ours, line, shots)
                if interval is not None:
                    found.setdefault(line, {})[shots] = interval
        return found


def write_summary(out: Path, cells: Sequence[Cell], setting: Setting) -> None:
    """Write results.json, results.md and report.html.

    Args:
        out: the comparison's folder.
        cells: its cells.
        setting: what they have in common.

    Raises:
        InputError: no cell is finished, or the data set isn't what it was.
        RunError: the disk is full.
    """
    summary = Summary(cells, setting)
    tables, notes = _tables(summary), _notes(summary)
    with replacing(out / "results.json") as temporary:
        temporary.write_text(json.dumps(_results(summary), indent=1) + "\n")
    with replacing(out / "results.md") as temporary:
        texts = [f"# {_TITLE}", _lead(summary), *notes, *(table.markdown() for table in tables)]
        temporary.write_text("\n\n".join(texts) + "\n")
    known = [summary.classes, *([summary.other.classes] if summary.other else [])]
    colours = {part.name: part.color for classes in reversed(known) for part in classes.classes}
    report = Report(
        title=_TITLE,
        lead=_lead(summary),
        notes=notes,
        plots=[("mIoU by labelled images: mean and standard deviation over draws", _plot(summary))],
        tables=tables,
        examples=_examples(summary),
        legend={**colours, "ignored": IGNORED},
        config={"gpseg": gpseg.__version__, **dataclasses.asdict(setting)},
    )
    write_report(out / "report.html", report)


_TITLE = "Part segmentation from few labels, compared"


def _lead(summary: Summary) -> str:
    setting = summary.setting
    seen = "" if setting.images_seen is None else f", pre-trained on {setting.images_seen:,} images"
    return (
        f"{setting.data.name}: {len(summary.stems)} {setting.split} images of "
        f"{summary.cells[0].facts['resolution']} px, {summary.classes.num_classes} classes; generator "
        f"{setting.generator_sha256[:12]}{seen}."
    )


def _notes(summary: Summary) -> list[str]:
    notes = []
    if summary.setting.split == "val":
        notes.append(
            "Scored on validation images, by which read-outs are chosen too: good for choosing settings, not a result."
        )
    if summary.setting.classes is not None:
        notes.append(f"Masks are read as {summary.parts.reading}.")
    if draws := _few_draws(summary):
        notes.append(draws)
    versions = {cell.facts["gpseg"] for cell in summary.cells}
    if len(versions) > 1:
        notes.append(
            f"Cells were computed by different versions of gpseg: {', '.join(sorted(versions))}."
        )
    notes += [f"Failed: {cell.key}: {cell.failed}" for cell in summary.failed]
    return notes


def _few_draws(summary: Summary) -> str | None:
    draws = max(len(summary.found(line, k)) for line in summary.lines for k in summary.shots)
    if draws > 1:
        return None
    return "One draw of labelled images: intervals cover the choice of test images only, not that of labelled ones."


def _tables(summary: Summary) -> list[Table]:
    tables = [_claims(summary)] if OURS in summary.lines else []
    for shots in summary.shots:
        tables += [_scores(summary, shots), _by_class(summary, shots)]
    if summary.differences[PLAIN]:
        tables.append(_differences(summary, PLAIN, "Differences, paired"))
    if summary.alone:
        tables.append(_alone(summary))
    if summary.other is not None:
        tables += [_on_other(summary, summary.other, shots) for shots in summary.shots]
    if summary.differences[OTHER]:
        tables.append(_differences(summary, OTHER, "Differences on the other collection, paired"))
    if summary.setting.jitter:
        tables += [_robustness(summary, shots) for shots in summary.shots]
        tables += [_elsewhere(summary, shots) for shots in summary.shots]
    if {*summary.brought} - {PLAIN}:
        tables.append(_brought(summary))
    return tables


def _claims(summary: Summary) -> Table:
    rows = []
    for claim in summary.claims:
        rows.append([claim.text, claim.verdict])
        rows += [
            [f"· {e.what}", "not measured" if e.interval is None else _interval(e.interval)]
            for e in claim.evidence
        ]
    return Table(
        "Claims",
        ["claim, and the differences of mIoU that decide it", "points"],
        rows,
        strong=[claim.text for claim in summary.claims],
        hint="A claim holds if the whole interval of each of its differences lies above zero.",
    )


def _scores(summary: Summary, shots: int) -> Table:
    rows = []
    for line in summary.lines:
        cells = [*summary.found(line, shots).values()]
        if not cells:
            continue
        # what devices take can't be averaged
        timed = [cell for cell in cells if cell.facts["device"] == summary.devices[0]]
        rows.append(
            [
                line,
                str(len(cells)),
                _mean(summary.mious(line, shots).values()),
                _mean(summary.changes(line, FLOOR, shots), signed),
                _mean(summary.mious(line, shots, classes=summary.small).values())
                if summary.small
                else "-",
                _mean(c.facts["val_miou"][line] for c in cells if c.facts["val_miou"]),
                _number(timed, "train_seconds", "{:.0f}"),
                _number(timed, "peak_memory_bytes", "{:.2f}", 2**30),
                _number(timed, "images_per_second", "{:.0f}"),
            ]
        )
    small = ", ".join(summary.classes.names[i] for i in summary.small) or "none"
    first, *more = summary.devices
    memory = "the whole process, with Python and torch"
    if first.startswith("cuda"):
        memory = "what torch had in use on the GPU"
    where = ""
    if more:
        where = f" Some cells were computed on {' and '.join(more)}; the last three columns are of those on {first}."
    return Table(
        counted(shots, "labelled image"),
        [
            "method",
            "draws",
            "mIoU, %",
            "over the floor",
            "small parts",
            "validation",
            "training, s",
            "memory, GiB",
            "images/s",
        ],
        rows,
        strong=[OURS],
        hint=(
            f"Mean ± standard deviation over draws. Small parts: classes with less than {100 * SMALL_SHARE:g} % of the "
            f"labelled pixels ({small}). Memory: the peak of {memory}. Images a second in "
            f"prediction, as measured in passing; read-outs share their method's.{where}"
        ),
    )


def _by_class(summary: Summary, shots: int) -> Table:
    rows = []
    for line in summary.lines:
        found = summary.counts(line, shots).values()
        if found:
            ious = torch.stack([pooled_iou(counts) for counts in found]).nanmean(0)
            rows.append([line, *map(percent, ious.tolist())])
    return Table(
        f"By class, {counted(shots, 'labelled image')}",
        ["IoU, %", *summary.classes.names],
        rows,
        strong=[OURS],
    )


def _differences(summary: Summary, kind: str, title: str) -> Table:
    rows = []
    for line, by_shots in summary.differences[kind].items():
        rows.append([f"{OURS} − {line}", *_by_shots(summary, by_shots)])
    return Table(
        title,
        ["points of mIoU", *(counted(k, "shot") for k in summary.shots)],
        rows,
        hint=(
            f"In brackets, percentile intervals of {100 * CONFIDENCE:g} % from {RESAMPLES} resamples of draws and of test "
            "images together. With five draws such intervals are a little narrow: in simulations they held the truth in 88 "
            "of 100 cases, with three in 80, with ten in 92."
        ),
    )


def _alone(summary: Summary) -> Table:
    return Table(
        "Tuning alone, without what unlabelled images bring",
        ["points of mIoU", *(counted(k, "shot") for k in summary.shots)],
        [
            [f"{_ALONE} − {line}", *_by_shots(summary, by_shots)]
            for line, by_shots in summary.alone.items()
        ],
        hint=(
            "Neither side learns masks, colours or pasted parts from unlabelled images; the generator, and the encoder that finds "
            "its codes for a pixel classifier, have seen them."
        ),
    )


def _on_other(summary: Summary, other: OtherCollection, shots: int) -> Table:
    rows = []
    for line in summary.lines:
        counts = [*summary.counts(line, shots, OTHER).values()]
        if counts:
            above = _mean(summary.changes(line, FLOOR, shots, OTHER, OTHER), signed)
            ious = torch.stack([pooled_iou(c) for c in counts]).nanmean(0).tolist()
            mious = summary.mious(line, shots, OTHER).values()
            rows.append([line, str(len(counts)), _mean(mious), above, *map(percent, ious)])
    return Table(
        f"On another collection, {counted(shots, 'labelled image')}",
        ["method", "draws", "mIoU, %", "over the floor", *other.classes.names],
        rows,
        strong=[OURS],
        hint=(
            f"{other.parts.root.name}: {len(other.stems)} images, of which nothing was trained on. What a model finds is read as "
            f"{other.reading}."
        ),
    )


def _robustness(summary: Summary, shots: int) -> Table:
    rows = []
    for line in summary.lines:
        if summary.found(line, shots):
            changes = [
                _mean(summary.changes(line, line, shots, kind=kind), signed) for kind in _DAMAGED
            ]
            rows.append([line, _mean(summary.mious(line, shots).values()), *changes])
    return Table(
        f"On images moved or damaged, {counted(shots, 'labelled image')}",
        ["method", "unchanged, %", *_DAMAGED],
        rows,
        strong=[OURS],
        hint=f"Points of mIoU by which scores change. {_legend(_DAMAGED)}",
    )


def _elsewhere(summary: Summary, shots: int) -> Table:
    def score(line: str, kind: str) -> str:
        miou = _mean(summary.mious(line, shots, kind).values())
        above = summary.changes(line, FLOOR, shots, kind, kind) if line != FLOOR else []
        return f"{miou} ({signed(statistics.mean(above))})" if above else miou

    kinds = [PLAIN, *_FOREIGN]
    return Table(
        f"As if from another collection, {counted(shots, 'labelled image')}",
        ["mIoU, %", "unchanged", *_FOREIGN],
        [
            [line, *(score(line, kind) for kind in kinds)]
            for line in summary.lines
            if summary.found(line, shots)
        ],
        strong=[OURS],
        hint=(
            "In brackets, how far above the floor on the same images, in points: where images move, the floor falls too. "
            f"{_legend(_FOREIGN)}"
        ),
    )


_BROUGHT = {
    PLAIN: "unchanged",
    ELSEWHERE: "as if from another collection",
    OTHER: "the other collection",
}


def _brought(summary: Summary) -> Table:
    rows = [
        [f"{OURS} − {line}, {_BROUGHT[kind]}", *_by_shots(summary, by_line[line])]
        for line in _WITHOUT
        for kind, by_line in summary.brought.items()
        if line in by_line
    ]
    return Table(
        "What the unlabelled images bring elsewhere",
        ["points of mIoU", *(counted(k, "shot") for k in summary.shots)],
        rows,
        hint=(
            "Paired, with intervals as above. no-unlabelled is ours without unlabelled images in tuning (its generator has "
            "seen them); unet has seen none at all."
        ),
    )


def _legend(kinds: Sequence[str]) -> str:
    return f"{'; '.join(f'{kind}: {KINDS[kind].what}' for kind in kinds)}."


def _by_shots(summary: Summary, found: Mapping[int, Interval]) -> list[str]:
    return [_interval(found[k]) if k in found else "-" for k in summary.shots]


def _mean(values: Iterable[float], write: Callable[[float], str] = percent) -> str:
    """Mean ± sample standard deviation in percent, "-" of nothing."""
    values = [*values]
    if not values:
        return "-"
    mean = write(statistics.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {percent(statistics.stdev(values))}"


def _number(cells: Sequence[Cell], fact: str, form: str, unit: float = 1) -> str:
    values = [cell.facts[fact] for cell in cells if cell.facts[fact] is not None]
    return form.format(statistics.mean(values) / unit) if values else "-"


def _interval(interval: Interval) -> str:
    ends = ", ".join(signed(end) for end in (interval.low, interval.high))
    return f"{signed(interval.value)} [{ends}]"


def _plot(summary: Summary) -> Figure:
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    lines = [line for line in summary.lines if line in METHODS]
    for index, line in enumerate(lines):
        # Side by side, so that error bars don't hide each other.
        aside = 0.4 * (index / max(1, len(lines) - 1) - 0.5)
        points = [
            (place + aside, [100 * miou for miou in summary.mious(line, shots).values()])
            for place, shots in enumerate(summary.shots)
            if summary.found(line, shots)
        ]
        axes.errorbar(
            [x for x, _ in points],
            [statistics.mean(values) for _, values in points],
            [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points],
            label=line,
            color=LINES[index % len(LINES)],
            linestyle={"ours": "-", "rival": "-", "control": "--", "floor": ":"}[
                METHODS[line].kind
            ],
            linewidth=2.4 if line == OURS else 1.3,
            marker="o",
            markersize=4.5,
            capsize=3,
        )
    axes.set_xticks(range(len(summary.shots)), [str(shots) for shots in summary.shots])
    axes.set_xlim(-0.5, len(summary.shots) - 0.5)
    axes.set_xlabel("labelled images")
    axes.set_ylabel("mIoU, %")
    axes.grid(axis="y", color="#e4e4df", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _examples(summary: Summary) -> list[Example]:
    plain = Reading.plain(summary.classes)
    examples = []
    for shots in summary.shots:
        examples += _telling(summary, shots, PLAIN, summary.held, plain)
    if summary.other is not None:
        held = summary.other.held(summary.cells[0].facts["resolution"])
        for shots in summary.shots:
            examples += _telling(summary, shots, OTHER, held, summary.other.reading)
    return examples


def _telling(
    summary: Summary, shots: int, kind: str, held: Held, reading: Reading
) -> list[Example]:
    """The worst, median and best image of ours, or else of the first method, in the terms of their own masks."""
    lines = [line for line in summary.lines if line in METHODS]
    reference = OURS if OURS in lines else lines[0]
    draws = summary.counts(reference, shots, kind)
    if not draws:
        return []
    draw = min(draws)
    there = [line for line in lines if draw in summary.counts(line, shots, kind)]
    masks = {line: summary.found(line, shots)[draw].masks(line, kind) for line in there}
    ranked = torch.from_numpy(reading.read(masks[reference].numpy()))
    where = f"{'other collection, ' if kind == OTHER else ''}{counted(shots, 'shot')}"
    examples = []
    for label, index, miou in telling_examples(ranked, held.masks, reading.classes, each=1):
        pictures = {
            "input": held.images[index],
            "target": colour_mask(held.masks[index], reading.classes),
            **{line: colour_mask(masks[line][index], summary.classes) for line in masks},
        }
        examples.append(Example(f"{label}, {where}", held.stems[index], pictures, miou))
    return examples


def _results(summary: Summary) -> dict[str, Any]:
    return {
        "gpseg": gpseg.__version__,
        "options": summary.setting.options,
        "generator": {
            "sha256": summary.setting.generator_sha256,
            "images_seen": summary.setting.images_seen,
        },
        "small_parts": [summary.classes.names[i] for i in summary.small],
        "cells": [_row(summary, cell, line) for cell in summary.cells for line in cell.rows],
        "failed": [{**dataclasses.asdict(c.key), "reason": c.failed} for c in summary.failed],
        "differences": _intervals(summary.differences),
        "alone": _intervals({PLAIN: summary.alone}),
        "brought": _intervals(summary.brought),
        "claims": [
            {
                "claim": claim.text,
                "verdict": claim.verdict,
                "evidence": [dataclasses.asdict(e) for e in claim.evidence],
            }
            for claim in (summary.claims if OURS in summary.lines else [])
        ],
    }


def _intervals(
    found: Mapping[str, Mapping[str, Mapping[int, Interval]]],
) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "line": line, "shots": shots, **dataclasses.asdict(interval)}
        for kind, by_line in found.items()
        for line, by_shots in by_line.items()
        for shots, interval in by_shots.items()
    ]


def _row(summary: Summary, cell: Cell, line: str) -> dict[str, Any]:
    kept = (
        "seed",
        "readout",
        "device",
        "train_seconds",
        "seconds",
        "peak_memory_bytes",
        "images_per_second",
    )
    key = cell.key
    counts = cell.counts(line)
    assert counts is not None
    ious = pooled_iou(counts)
    changed = {kind: cell.counts(line, kind) for kind in (*KINDS, OTHER)}
    facts: Mapping[str, Any] = cell.facts
    return {
        **dataclasses.asdict(key),
        "line": line,
        "split": facts["split"],
        "miou": finite(ious.nanmean()),
        "small_parts": finite(ious[summary.small].nanmean()),
        "per_class": {
            name: finite(iou) for name, iou in zip(summary.classes.names, ious, strict=True)
        },
        "validation": facts["val_miou"] and facts["val_miou"][line],
        "changed": {
            kind: finite(pooled_iou(counts).nanmean())
            for kind, counts in changed.items()
            if counts is not None
        },
        **{name: facts[name] for name in kept},
    }

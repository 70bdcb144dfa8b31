"""From the cells of a comparison to results.json, results.md and report.html."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import gpseg
from gpseg.atomic import replacing
from gpseg.data import Reading
from gpseg.evaluation.cells import PLAIN, Cell, Setting
from gpseg.evaluation.comparison import Interval
from gpseg.evaluation.jitter import KINDS
from gpseg.evaluation.methods import METHODS, OURS
from gpseg.evaluation.metrics import counted, finite, pooled_iou
from gpseg.evaluation.other import OTHER
from gpseg.evaluation.pictures import IGNORED, colour_mask, telling_examples
from gpseg.evaluation.report import LINES, Example, Report, write_report
from gpseg.evaluation.results import Held
from gpseg.evaluation.summary import Summary
from gpseg.evaluation.tables import tables_of

_TITLE = "Part segmentation from few labels, compared"


def write_outcome(out: Path, cells: Sequence[Cell], setting: Setting) -> None:
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
    tables, notes = tables_of(summary), _notes(summary)
    with replacing(out / "results.json") as temporary:
        temporary.write_text(json.dumps(_results(summary), indent=1) + "\n", encoding="utf-8")
    with replacing(out / "results.md") as temporary:
        texts = [f"# {_TITLE}", _lead(summary), *notes, *(table.markdown() for table in tables)]
        temporary.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
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

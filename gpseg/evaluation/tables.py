"""The tables of a comparison, and the texts that stand in them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from gpseg.evaluation.cells import PLAIN, Cell
from gpseg.evaluation.comparison import CONFIDENCE, RESAMPLES, Interval
from gpseg.evaluation.jitter import ELSEWHERE, KINDS
from gpseg.evaluation.methods import FLOOR, OURS
from gpseg.evaluation.metrics import counted, percent, pooled_iou
from gpseg.evaluation.other import OTHER, OtherCollection
from gpseg.evaluation.report import Table, signed
from gpseg.evaluation.summary import ALONE, SMALL_SHARE, WITHOUT, Summary

_DAMAGED = [name for name, kind in KINDS.items() if not kind.foreign]
_FOREIGN = [name for name, kind in KINDS.items() if kind.foreign]
_BROUGHT = {
    PLAIN: "unchanged",
    ELSEWHERE: "as if from another collection",
    OTHER: "the other collection",
}


def tables_of(summary: Summary) -> list[Table]:
    """All that there is something to say in, in the order in which they are read.

    Args:
        summary: the cells.
    """
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
            [f"{ALONE} − {line}", *_by_shots(summary, by_shots)]
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


def _brought(summary: Summary) -> Table:
    rows = [
        [f"{OURS} − {line}, {_BROUGHT[kind]}", *_by_shots(summary, by_line[line])]
        for line in WITHOUT
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

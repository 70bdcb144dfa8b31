"""The cells of a comparison, arranged to be read by line (a method, or a read-out of ours) and number of shots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from gpseg.errors import InputError
from gpseg.evaluation.cells import PLAIN, Cell, Setting
from gpseg.evaluation.claims import Claim, judge, paired
from gpseg.evaluation.comparison import Interval
from gpseg.evaluation.jitter import ELSEWHERE
from gpseg.evaluation.methods import METHODS, OURS
from gpseg.evaluation.metrics import pooled_iou
from gpseg.evaluation.other import OTHER, OtherCollection
from gpseg.evaluation.results import Held, load_held

SMALL_SHARE = 0.02
"""A class with a smaller share of the labelled pixels is a small part."""

ALONE = "no-unlabelled"
WITHOUT = (ALONE, "unet")
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
        found = {kind: self._above(WITHOUT, kind) for kind in (PLAIN, ELSEWHERE, OTHER)}
        return {kind: by_line for kind, by_line in found.items() if by_line}

    @cached_property
    def alone(self) -> dict[str, dict[int, Interval]]:
        """What ours without unlabelled images is above rivals that learn no masks from them, by line and shots."""
        rivals = [
            name
            for name, method in METHODS.items()
            if method.kind == "rival" and not name.endswith("-unlabelled")
        ]
        return self._above(rivals, PLAIN, ours=ALONE)

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

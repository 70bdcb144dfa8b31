"""What the comparison is for: the claims of the method, each with the differences that decide it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpseg.evaluation.comparison import Interval, Term, contrast
from gpseg.evaluation.metrics import counted

Measured = Callable[[str, int], Mapping[int, Tensor]]
"""Confusions [N, K, K] by draw, of a line of the comparison at a number of shots; empty where nothing was measured."""


@dataclass(frozen=True)
class Evidence:
    """A difference that has to be above zero for a claim to hold; its interval is None if it wasn't measured."""

    what: str
    interval: Interval | None


@dataclass(frozen=True)
class Claim:
    """A claim and its evidence."""

    text: str
    evidence: Sequence[Evidence]

    @property
    def verdict(self) -> str:
        """Whether it holds: "holds", "does not hold", each perhaps with its limits, or "not measured"."""
        intervals = [e.interval for e in self.evidence if e.interval is not None]
        if not intervals:
            return "not measured"
        words = ["holds" if all(i.above_zero for i in intervals) else "does not hold"]
        if len(intervals) < len(self.evidence):
            words.append("as far as measured")
        if min(i.draws for i in intervals) < 2:
            words.append("on one draw")
        return ", ".join(words)


@dataclass(frozen=True)
class Line:
    """A line of the comparison with a sign, to be summed.

    Args:
        sign: 1 or −1.
        name: a method, or one of its read-outs.
        shots: number of labelled images.
        classes: ids of the classes that count; None for all.
    """

    sign: int
    name: str
    shots: int
    classes: Sequence[int] | None = None


def total(measured: Measured, lines: Sequence[Line]) -> Interval | None:
    """Sum lines over the draws that all of them have; None if there are none.

    Args:
        measured: the measurements.
        lines: what to sum.
    """
    found = [measured(line.name, line.shots) for line in lines]
    draws = sorted(set.intersection(*(set(by_draw) for by_draw in found)))
    if not draws:
        return None
    return contrast(
        [
            Term(line.sign, torch.stack([by_draw[draw] for draw in draws]), line.classes)
            for line, by_draw in zip(lines, found, strict=True)
        ]
    )


def paired(measured: Measured, a: str, b: str, shots: int) -> Interval | None:
    """Difference of two lines at the same number of shots."""
    return total(measured, [Line(1, a, shots), Line(-1, b, shots)])


def judge(
    measured: Measured, shots: Sequence[int], small: Sequence[int], others: Sequence[int]
) -> list[Claim]:
    """Judge the claims of the method.

    Args:
        measured: the measurements.
        shots: numbers of labelled images, rising, at least one.
        small: ids of the classes of small parts.
        others: ids of the other classes.

    Returns:
        The claims.
    """

    def against(rival: str) -> list[Evidence]:
        return [
            Evidence(f"gpseg − {rival}, {counted(k, 'shot')}", paired(measured, "gpseg", rival, k))
            for k in shots
        ]

    return [
        Claim(
            "Tuning the generator beats a classifier on its frozen features",
            against("pixel-classifier"),
        ),
        Claim(
            "Progressive beats direct fine-tuning, most at the fewest labels",
            [*against("direct"), _most_at_the_fewest(measured, shots[0], shots[-1])],
        ),
        Claim(
            "Two streams beat one, most on small parts",
            [
                *against("one-stream"),
                *against("no-crossing"),
                *(_most_on_small_parts(measured, k, small, others) for k in shots),
            ],
        ),
        Claim("A random generator does not match", against("random-init")),
        Claim(
            "One label worth five: gpseg at 1 shot is above a U-Net at 5",
            [
                Evidence(
                    "gpseg, 1 shot − unet, 5 shots",
                    total(measured, [Line(1, "gpseg", 1), Line(-1, "unet", 5)]),
                )
            ],
        ),
    ]


def _most_at_the_fewest(measured: Measured, few: int, many: int) -> Evidence:
    lines = [Line(1, "gpseg", few), Line(-1, "direct", few)]
    lines += [Line(-1, "gpseg", many), Line(1, "direct", many)]
    return Evidence(
        "gpseg − direct, at the fewest labels less at the most",
        total(measured, lines) if few < many else None,
    )


def _most_on_small_parts(
    measured: Measured, shots: int, small: Sequence[int], others: Sequence[int]
) -> Evidence:
    lines = [Line(1, "gpseg", shots, small), Line(-1, "one-stream", shots, small)]
    lines += [Line(-1, "gpseg", shots, others), Line(1, "one-stream", shots, others)]
    return Evidence(
        f"gpseg − one-stream, small parts less others, {counted(shots, 'shot')}",
        total(measured, lines) if small and others else None,
    )

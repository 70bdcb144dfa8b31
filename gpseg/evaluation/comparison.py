"""Differences between methods on the same draws and the same images, with an interval.

Draws of training images and test images are both samples, and both are resampled (Owen, *The pigeonhole bootstrap*, 2007): a
resample takes draws with replacement, and one set of images with replacement for all of them, because every draw is scored on
the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Term:
    """A mean of mIoUs over draws, in a sum of such.

    Args:
        sign: what it is multiplied by.
        counts: a method's confusions on the same images after each draw, [D, N, K, K].
        classes: ids of the classes that count; None for all.
    """

    sign: float
    counts: Tensor
    classes: Sequence[int] | None = None


@dataclass(frozen=True)
class Interval:
    """A difference of mIoUs and where it lies with 95 % confidence.

    Args:
        value: the difference, 1 being 100 percent points.
        low: lower end of the interval.
        high: upper end.
        draws: number of draws; with a single one the interval says nothing of other draws.
        images: number of images.
    """

    value: float
    low: float
    high: float
    draws: int
    images: int

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.high < 0


def contrast(terms: Sequence[Term], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """A sum of mean mIoUs with its percentile interval.

    Args:
        terms: what to sum, such as one method plus and another minus; of the same draws and images.
        resamples: number of resamples.
        seed: decides them; the same for the same numbers of draws and images.

    Returns:
        The sum and its interval.
    """
    draws, images = terms[0].counts.shape[:2]
    assert all(term.counts.shape[:2] == (draws, images) for term in terms)
    random = np.random.default_rng(seed)
    image_weights = _weights(random, images, resamples)
    draw_weights = _weights(random, draws, resamples) / draws
    value, values = 0.0, torch.zeros(resamples, dtype=torch.float64)
    for term in terms:
        whole = torch.ones(1, images, dtype=torch.float64)
        value += term.sign * _mious(term, whole).mean().item()
        values += term.sign * (_mious(term, image_weights) * draw_weights).sum(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values.numpy(), [tail, 1 - tail])
    return Interval(value, float(low), float(high), draws, images)


def _weights(random: np.random.Generator, count: int, resamples: int) -> Tensor:
    """How often each of `count` things is taken: float64 [resamples, count]."""
    taken = random.multinomial(count, np.full(count, 1 / count), size=resamples)
    return torch.from_numpy(taken).double()


def _mious(term: Term, image_weights: Tensor) -> Tensor:
    """mIoU by resample and draw, [B, D], of images that count so often, [B, N]."""
    counts = term.counts.double()
    intersection = counts.diagonal(dim1=2, dim2=3)
    union = counts.sum(2) + counts.sum(3) - intersection
    pooled = [torch.einsum("bn,dnk->bdk", image_weights, x) for x in (intersection, union)]
    iou = pooled[0] / pooled[1]
    if term.classes is not None:
        iou = iou[..., list(term.classes)]
    return iou.nanmean(2)

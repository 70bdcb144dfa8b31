"""mIoU, and the floor that a score must be read beside."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpseg.data import Classes
from gpseg.errors import InputError


@dataclass(frozen=True)
class Score:
    """Intersection over union, pooled over a set of images.

    Args:
        miou: mean over the classes that occur, background included, 0..1; nan if nothing is
            labelled.
        per_class: 0..1 by class name; nan for a class that is neither predicted nor there.
    """

    miou: float
    per_class: dict[str, float]


def score(predicted: Tensor, target: Tensor, classes: Classes) -> Score:
    """Score predicted masks: each class's intersection and union are summed over all images first.

    Args:
        predicted: class ids [N, H, W], integer.
        target: class ids and `classes.ignore_index` [N, H, W], integer; ignored pixels don't count.
        classes: the classes.

    Returns:
        The score.

    Raises:
        InputError: if the shapes differ.
    """
    iou = pooled_iou(confusions(predicted, target, classes))
    return Score(iou.nanmean().item(), dict(zip(classes.names, iou.tolist(), strict=True)))


def finite(value: float | Tensor) -> float | None:
    """A number for JSON, which has no nan: None for that."""
    number = float(value)
    return number if math.isfinite(number) else None


def confusions(predicted: Tensor, target: Tensor, classes: Classes) -> Tensor:
    """Count how often which class is taken for which, image by image.

    Args:
        predicted: class ids [N, H, W], integer.
        target: class ids and `classes.ignore_index` [N, H, W], integer; ignored pixels don't count.
        classes: the classes.

    Returns:
        int64 [N, K, K]: pixels of an image, by their class and by the one predicted.

    Raises:
        InputError: the shapes differ, or there is an id of no class.
    """
    if predicted.shape != target.shape:
        raise InputError(
            f"predicted masks {list(predicted.shape)} and target masks {list(target.shape)} "
            "differ in shape; fit both to the same square"
        )
    k = classes.num_classes
    counts = torch.zeros(len(target), k, k, dtype=torch.int64)
    for p, t, count in zip(predicted, target, counts, strict=True):
        valid = t != classes.ignore_index
        pairs = torch.stack([t[valid].long(), p[valid].long()])
        if pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < k:
            raise InputError(
                f"masks of ids {pairs.min()} to {pairs.max()} and {k} classes: ids must be 0 to {k - 1}, or "
                f"{classes.ignore_index} where a pixel doesn't count"
            )
        count.copy_(torch.bincount(pairs[0] * k + pairs[1], minlength=k * k).view(k, k))
    return counts


def pooled_iou(counts: Tensor) -> Tensor:
    """IoU by class [K], intersections and unions summed over images first.

    Args:
        counts: [N, K, K] as `confusions` gives them.

    Returns:
        float64 [K], 0..1; nan for a class that is neither predicted nor there.
    """
    pooled = counts.sum(0)
    intersection = pooled.diagonal().double()
    return intersection / (pooled.sum(0) + pooled.sum(1) - intersection)  # 0 / 0 is nan


def majority_mask(masks: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Let the training masks vote on every pixel.

    Args:
        masks: class ids and `ignore_index` [k, H, W], integer.
        num_classes: number of classes, background included.
        ignore_index: id of pixels that don't vote.

    Returns:
        uint8 [H, W]: the id with the most votes, the lowest on a tie, 0 where nobody votes.
    """
    ids = torch.arange(num_classes, device=masks.device)
    votes = torch.stack([((masks == i) & (masks != ignore_index)).sum(0) for i in ids])
    # argmax may return any of several equal votes, so the tie is broken in the votes themselves.
    ranked = votes * num_classes - ids[:, None, None]
    return ranked.argmax(0).to(torch.uint8)


def majority_score(masks: Tensor, target: Tensor, classes: Classes) -> Score:
    """Score the floor: every image predicted by the majority of the training masks, unseen.

    Args:
        masks: training masks [k, H, W], integer.
        target: test masks [N, H, W], integer.
        classes: the classes.

    Returns:
        The score.
    """
    majority = majority_mask(masks, classes.num_classes, classes.ignore_index)
    return score(majority.expand_as(target), target, classes)


def percent(value: float) -> str:
    """Write an IoU for reading: in percent with one decimal, "-" for nan."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def counted(count: int, noun: str) -> str:
    """Write a number of things: "1 shot", "5 shots"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"

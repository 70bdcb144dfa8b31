"""How far the segmentation stream's target has moved from the image to the part map."""

import math
from typing import Literal

import torch
from torch import Tensor

Ramp = Literal["linear", "cosine", "staircase", "direct", "fixed"]

STAIRS = 5


def ramp(
    shape: Ramp, progress: float, *, start: float = 0.0, end: float = 0.7, fixed: float = 0.5
) -> float:
    """The share a of the part map in the target.

    Args:
        shape: "linear", "cosine" or "staircase" rise from 0 to 1; the controls are "direct", 1 from the start, and
            "fixed", the same value throughout.
        progress: share of the training done, 0 … 1.
        start: share of the training after which a begins to rise.
        end: share of the training after which a is 1, no less than `start`.
        fixed: the value of "fixed".

    Returns:
        a, 0 … 1.
    """
    if shape == "direct":
        return 1.0
    if shape == "fixed":
        return fixed
    if not start <= progress < end:
        return float(progress >= end)
    t = (progress - start) / (end - start)
    if shape == "cosine":
        return 0.5 - 0.5 * math.cos(math.pi * t)
    if shape == "staircase":
        return math.floor(t * STAIRS) / STAIRS
    return t


def interpolated_target(images: Tensor, masks: Tensor, palette: Tensor, a: float) -> Tensor:
    """T_a = (1 − a)·x + a·P[y], the segmentation stream's target.

    Args:
        images: x [N, 3, r, r], −1 … 1.
        masks: y [N, r, r], class ids below K; other ids (ignore) count as class 0, to be left out by the caller.
        palette: P [K, 3], −1 … 1.
        a: 0 gives the image, 1 the part map in colours.

    Returns:
        [N, 3, r, r].
    """
    known = torch.where(masks < len(palette), masks, 0).long()
    return torch.lerp(images, palette[known].permute(0, 3, 1, 2), a)


def learning_rate(progress: float, *, warmup: float = 0.03, hold: float = 0.6) -> float:
    """Factor on the learning rate: a short rise, a plateau, a cosine fall to 0 at progress 1."""
    if progress < warmup:
        return progress / warmup
    if progress < hold:
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (progress - hold) / (1 - hold))

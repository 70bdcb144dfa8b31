"""Masks as pictures."""

import numpy as np
import torch
from torch import Tensor

from gpseg.data import Classes

IGNORED = (160, 160, 160)
RIGHT = (244, 244, 241)
WRONG = (203, 36, 49)


def colour_mask(mask: Tensor, classes: Classes) -> Tensor:
    """Paint a mask in its classes' colours, ignored pixels grey.

    Args:
        mask: class ids and `classes.ignore_index` [H, W], integer.
        classes: the classes.

    Returns:
        uint8 [3, H, W].
    """
    table = torch.tensor(IGNORED, dtype=torch.uint8).repeat(256, 1)
    table[: classes.num_classes] = torch.from_numpy(np.array(classes.colors, dtype=np.uint8))
    return table[mask.cpu().long()].permute(2, 0, 1)


def error_map(predicted: Tensor, target: Tensor, classes: Classes) -> Tensor:
    """Paint where a prediction is wrong: red; nearly white where it is right, grey where ignored.

    Args:
        predicted: class ids [H, W], integer.
        target: class ids and `classes.ignore_index` [H, W], integer.
        classes: the classes.

    Returns:
        uint8 [3, H, W].
    """
    table = torch.tensor([RIGHT, WRONG, IGNORED], dtype=torch.uint8)
    kind = (predicted != target).long()
    kind[target == classes.ignore_index] = 2
    return table[kind.cpu()].permute(2, 0, 1)

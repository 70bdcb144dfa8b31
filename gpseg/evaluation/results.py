"""What a segmenter is scored on, and what comes out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from gpseg.data import Classes, PartFolder
from gpseg.evaluation.metrics import Score, score
from gpseg.models.segmenter import READOUTS, Segmenter, mean_with_mirrored

BATCH = 16

Split = Literal["test", "val"]
"""Which labelled images are scored on; settings are chosen on val."""


@dataclass(frozen=True)
class Held:
    """Labelled images that are scored on, not trained on.

    Args:
        stems: names, in order.
        images: uint8 [N, 3, r, r].
        masks: uint8 [N, r, r] of class ids and the ignore index.
    """

    stems: list[str]
    images: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Result:
    """What a run ends with; scores are None where the data set holds no test images.

    Args:
        folder: the run folder.
        readout: the default read-out.
        readouts: test score by read-out.
        floor: the majority mask's test score.
        rivals: test scores of what was trained to compare with.
    """

    folder: Path
    readout: str
    readouts: dict[str, Score] | None
    floor: Score | None
    rivals: dict[str, Score]


def load_held(parts: PartFolder, stems: list[str], resolution: int) -> Held:
    """Read labelled images of a data set, fitted to a square; there may be none."""
    if not stems:
        nothing = torch.empty(0, 3, resolution, resolution, dtype=torch.uint8)
        return Held([], nothing, nothing[:, 0])
    images = torch.stack([parts.image(stem, resolution) for stem in stems])
    return Held(stems, images, torch.stack([parts.mask(stem, resolution) for stem in stems]))


class Predictor(Protocol):
    """What a training gives."""

    def probabilities(self, images: Tensor, /) -> Tensor:
        """Class probabilities [N, K, r, r] of uint8 images [N, 3, r, r]."""


class Mirrored:
    """Predicts the mean with what is made of mirrored images, as segmenters do, by a predictor that doesn't.

    Args:
        predictor: what predicts.
        classes: the classes.
    """

    def __init__(self, predictor: Predictor, classes: Classes) -> None:
        self._predictor = predictor
        self._classes = classes

    def probabilities(self, images: Tensor, /) -> Tensor:
        """Class probabilities [N, K, r, r] of uint8 images [N, 3, r, r]."""
        own, mirrored = (self._predictor.probabilities(x) for x in (images, images.flip(3)))
        return mean_with_mirrored(own, mirrored, self._classes)


def masks_by(predictor: Predictor, images: Tensor) -> Tensor:
    """Masks uint8 [N, r, r] of uint8 images [N, 3, r, r]."""
    masks = [predictor.probabilities(batch).argmax(1).cpu() for batch in images.split(BATCH)]
    return torch.cat(masks).to(torch.uint8)


def predictions(segmenter: Segmenter, images: Tensor, *, flip: bool = True) -> dict[str, Tensor]:
    """Masks uint8 [N, r, r] by read-out, of uint8 images [N, 3, r, r]; `flip` as `Segmenter.outputs` takes it."""
    found: dict[str, list[Tensor]] = {name: [] for name in READOUTS}
    for batch in images.split(BATCH):
        for name, probabilities in segmenter.outputs(batch, flip=flip).probabilities.items():
            found[name].append(probabilities.argmax(1).to(torch.uint8).cpu())
    return {name: torch.cat(masks) for name, masks in found.items()}


def choose_readout(segmenter: Segmenter, val: Held) -> None:
    """Make the read-out that is better on validation images the default; without any, change nothing."""
    if val.stems:
        scores = readout_scores(segmenter, val)
        segmenter.readout = max(READOUTS, key=lambda name: scores[name].miou)


def readout_scores(segmenter: Segmenter, held: Held) -> dict[str, Score]:
    """Score each read-out on held-out images."""
    predicted = predictions(segmenter, held.images)
    return {name: score(masks, held.masks, segmenter.classes) for name, masks in predicted.items()}

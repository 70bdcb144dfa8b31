"""What the report of a training run shows: masks as pictures, telling examples, the ramp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpseg.data import Classes
from gpseg.evaluation.metrics import Score, counted, score
from gpseg.evaluation.report import Example, Report
from gpseg.evaluation.results import Held, Result, predictions
from gpseg.models.segmenter import Segmenter, to_float, to_uint8
from gpseg.training.batches import TrainingSet
from gpseg.training.run_folder import RunFolder
from gpseg.training.schedules import interpolated_target

IGNORED = (160, 160, 160)
RIGHT = (244, 244, 241)
WRONG = (203, 36, 49)
FLOOR = "majority mask (floor)"
_RAMP = (0.0, 0.25, 0.5, 0.75, 1.0)
_LABELLED_ROWS = 4  # examples shown of training images where there are no test images


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


def telling_examples(
    predicted: Tensor, target: Tensor, classes: Classes, each: int = 2
) -> list[tuple[str, int, float]]:
    """Choose the worst, the median and the best images by their own mIoU.

    Args:
        predicted: class ids [N, H, W], integer.
        target: class ids and `classes.ignore_index` [N, H, W], integer.
        classes: the classes.
        each: number of images of each kind, where there are that many.

    Returns:
        Label, index and mIoU, worst first; images without labelled pixels are left out.
    """
    own = [score(p[None], t[None], classes).miou for p, t in zip(predicted, target, strict=True)]
    order = sorted((index for index, miou in enumerate(own) if miou == miou), key=own.__getitem__)
    middle = max(0, (len(order) - each) // 2)
    labels = {
        **dict.fromkeys(order[middle : middle + each], "median"),
        **dict.fromkeys(order[-each:], "best"),
        **dict.fromkeys(order[:each], "worst"),
    }
    if len(order) < 3:
        labels = dict.fromkeys(order, "test")
    return [(labels[index], index, own[index]) for index in order if index in labels]


def training_report(
    result: Result,
    folder: RunFolder,
    segmenter: Segmenter,
    training: TrainingSet,
    test: Held,
    config: Mapping[str, Any],
) -> Report:
    """Put together the report of a training run.

    Args:
        result: its scores.
        folder: its folder.
        segmenter: what came out.
        training: what it learned from.
        test: test images; may be none.
        config: its options.

    Returns:
        The report.
    """
    classes = training.classes
    shots, resolution = len(training.images), segmenter.resolution
    notes = []
    if not test.stems:
        notes.append(
            "The data set holds no test images, so there is no score: the examples below are the "
            "labelled images that were trained on, and look better than any others will. With 8 or "
            "more labelled images some are held out."
        )
    scores: dict[str, Score] = {}
    if result.readouts is not None and result.floor is not None:
        scores = {f"{name} read-out": s for name, s in result.readouts.items()}
        scores |= {**result.rivals, FLOOR: result.floor}
    return Report(
        title=f"Part segmentation from {counted(shots, 'labelled image')}",
        lead=(
            f"{config.get('data') or 'drawn faces'}, {classes.num_classes} classes, "
            f"{resolution} x {resolution} pixels; {len(training.unlabelled)} unlabelled images; "
            f"run {folder.path}"
        ),
        classes=classes,
        scores=scores,
        chosen=f"{result.readout} read-out" if scores else None,
        floor=FLOOR if scores else None,
        examples=_examples(segmenter, training, test),
        legend={
            **dict(zip(classes.names, classes.colors, strict=True)),
            "ignored": IGNORED,
            "error": WRONG,
        },
        ramp=_ramp(segmenter, training),
        curves=folder.metrics(),
        config=config,
        notes=notes,
    )


def _examples(segmenter: Segmenter, training: TrainingSet, test: Held) -> list[Example]:
    rows: list[tuple[str, int, float | None]]
    if not test.stems:
        images, masks = training.images[:_LABELLED_ROWS], training.masks[:_LABELLED_ROWS]
        rows = [("training", index, None) for index in range(len(images))]
        names = [f"image {index + 1}" for index in range(len(images))]
    else:
        images, masks, names = test.images, test.masks, test.stems
        predicted = predictions(segmenter, images)[segmenter.readout]
        rows = [*telling_examples(predicted, masks, training.classes)]
    return [
        Example(label, names[index], _views(segmenter, images[index], masks[index]), miou=miou)
        for label, index, miou in rows
    ]


def _views(segmenter: Segmenter, image: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Show an image uint8 [3, r, r], its target [r, r] and all that the segmenter makes of it."""
    outputs = segmenter.outputs(image[None])
    predicted = outputs.probabilities[segmenter.readout][0].argmax(0).to(torch.uint8).cpu()
    classes = segmenter.classes
    return {
        "input": image,
        "target": colour_mask(target, classes),
        "prediction": colour_mask(predicted, classes),
        "errors": error_map(predicted, target, classes),
        "image stream": to_uint8(outputs.reconstruction[0]),
        "segmentation stream": to_uint8(outputs.colours[0]),
    }


def _ramp(segmenter: Segmenter, training: TrainingSet) -> list[tuple[float, Tensor]]:
    image, mask = to_float(training.images[:1]), training.masks[:1]
    palette = segmenter.model.palette.cpu()
    return [(a, to_uint8(interpolated_target(image, mask, palette, a)[0])) for a in _RAMP]

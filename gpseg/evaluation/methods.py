"""What is compared: gpseg, its controls, its rivals and the floor, each trained on the same task.

A control is gpseg with the options changed that its name is about. A method that ends with a `Segmenter` is scored with the
default read-out, which no validation image has chosen, and with each of the others besides. What a method predicts is the mean
with what it makes of the mirrored image, whichever method it is (but for the floor, which sees no image).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gpseg.data import Classes
from gpseg.evaluation.metrics import majority_mask
from gpseg.evaluation.results import Held, Mirrored, Predictor, masks_by, predictions
from gpseg.evaluation.rivals import (
    train_discriminator_classifier,
    train_encoder_decoder,
    train_pixel_classifier,
    train_unet,
)
from gpseg.models.segmenter import Segmenter
from gpseg.models.stylegan2 import Discriminator, Generator, NetworkConfig
from gpseg.training.batches import TrainingSet
from gpseg.training.device import choose_device
from gpseg.training.finetune import Finetuner, finetune
from gpseg.training.finetune_config import FinetuneConfig
from gpseg.training.run_folder import RunFolder

FLOOR = "majority"
OURS = "gpseg"


@dataclass(frozen=True)
class Task:
    """What a method is trained with.

    Args:
        training: labelled and unlabelled images.
        val: labelled images for choosing settings by; may be none.
        generator: pre-trained.
        discriminator: pre-trained with it.
        network: what both are built from.
        tuning: options of fine-tuning; seed and precision hold for every method.
        rival_steps: training steps of rivals; None for each one's own.
        device: where to train, as `gpseg.training.device.choose_device` takes it.
        folder: where logs of the training may go.
    """

    training: TrainingSet
    val: Held
    generator: Generator
    discriminator: Discriminator
    network: NetworkConfig
    tuning: FinetuneConfig
    rival_steps: int | None
    device: str
    folder: Path

    @property
    def rival_options(self) -> dict[str, Any]:
        """Keyword arguments that every rival's training takes."""
        steps = {} if self.rival_steps is None else {"steps": self.rival_steps}
        seed, precision = self.tuning.seed, self.tuning.precision
        return {**steps, "seed": seed, "precision": precision, "device": self.device}


@dataclass(frozen=True)
class Method:
    """One line of the comparison.

    Args:
        description: what it is, in a few words.
        kind: what it is there for.
        train: trains it.
    """

    description: str
    kind: Literal["floor", "rival", "control", "ours"]
    train: Callable[[Task], Predictor]


class Majority:
    """Predicts the most frequent class of the training masks at each pixel, whatever the image.

    Args:
        masks: training masks [k, r, r].
        classes: the classes.
    """

    def __init__(self, masks: Tensor, classes: Classes) -> None:
        mask = majority_mask(masks, classes.num_classes, classes.ignore_index)
        self._probabilities = F.one_hot(mask.long(), classes.num_classes).permute(2, 0, 1).float()

    def probabilities(self, images: Tensor, /) -> Tensor:
        """The same [K, r, r] of zeros and ones for each of N images."""
        return self._probabilities.expand(len(images), -1, -1, -1)


def masks_of(name: str, predictor: Predictor, images: Tensor) -> dict[str, Tensor]:
    """Predict images by a method; where it has several read-outs by each of them, and ours also without mirror images.

    Args:
        name: the method's name.
        predictor: what its training gave.
        images: uint8 [N, 3, r, r].

    Returns:
        uint8 [N, r, r] of class ids, by "name", "name-readout" (but for the default one) and "name-no-flip".
    """
    if isinstance(predictor, Segmenter):
        found = predictions(predictor, images)
        rows = {name: found.pop(predictor.readout)}
        rows |= {f"{name}-{readout}": masks for readout, masks in found.items()}
        if name == OURS:
            rows[f"{name}-no-flip"] = predictions(predictor, images, flip=False)[predictor.readout]
        return rows
    return {name: masks_by(predictor, images)}


def _majority(task: Task) -> Predictor:
    return Majority(task.training.masks, task.training.classes)


def _unet(task: Task, as_ours: bool) -> Predictor:
    learning = task.tuning if as_ours else None
    unet = train_unet(task.training, as_ours=learning, **task.rival_options)
    return Mirrored(unet, task.training.classes)


def _pixel_classifier(task: Task, skips: bool) -> Predictor:
    networks = task.generator, task.discriminator, task.network
    found = train_pixel_classifier(task.training, *networks, skips=skips, **task.rival_options)
    return Mirrored(found, task.training.classes)


def _encoder_decoder(task: Task, pretrained: bool, as_ours: bool = False) -> Predictor:
    found = train_encoder_decoder(
        task.training,
        task.discriminator,
        task.network,
        pretrained=pretrained,
        as_ours=task.tuning if as_ours else None,
        **task.rival_options,
    )
    return Mirrored(found, task.training.classes)


def _discriminator_classifier(task: Task) -> Predictor:
    networks = task.discriminator, task.network
    found = train_discriminator_classifier(task.training, *networks, **task.rival_options)
    return Mirrored(found, task.training.classes)


def _gpseg(task: Task, **changes: Any) -> Predictor:
    config = dataclasses.replace(task.tuning, **changes)
    torch.manual_seed(config.seed)
    trainer = Finetuner(
        config,
        task.training,
        task.generator,
        task.discriminator,
        task.network,
        choose_device(task.device),
    )
    with RunFolder.open(task.folder, "evaluate", dataclasses.asdict(config)) as folder:
        finetune(trainer, folder, lambda: False)
    return trainer.segmenter()


METHODS: Mapping[str, Method] = {
    FLOOR: Method("the training masks' vote; sees no image", "floor", _majority),
    "unet": Method("U-Net from scratch", "rival", partial(_unet, as_ours=False)),
    "unet-unlabelled": Method(
        "the same, learning from unlabelled images as ours does",
        "rival",
        partial(_unet, as_ours=True),
    ),
    "pixel-classifier": Method(
        "hypercolumns of the frozen generator, with an encoder's skips",
        "rival",
        partial(_pixel_classifier, skips=True),
    ),
    "pixel-classifier-w": Method(
        "hypercolumns of the frozen generator at codes found",
        "rival",
        partial(_pixel_classifier, skips=False),
    ),
    "discriminator-classifier": Method(
        "hypercolumns of the frozen discriminator", "rival", _discriminator_classifier
    ),
    "encoder-decoder": Method(
        "a U-Net on the discriminator's trunk", "rival", partial(_encoder_decoder, pretrained=True)
    ),
    "encoder-decoder-unlabelled": Method(
        "the same, learning from unlabelled images as ours does",
        "rival",
        partial(_encoder_decoder, pretrained=True, as_ours=True),
    ),
    "encoder-decoder-random": Method(
        "a U-Net of that form from random weights",
        "rival",
        partial(_encoder_decoder, pretrained=False),
    ),
    OURS: Method("two streams, progressive", "ours", _gpseg),
    "direct": Method("part map from the start", "control", partial(_gpseg, ramp="direct")),
    "fixed": Method("target halfway for good", "control", partial(_gpseg, ramp="fixed")),
    "one-stream": Method(
        "no image stream once the ramp starts",
        "control",
        partial(_gpseg, crossing=False, image_weight=0.0),
    ),
    "no-crossing": Method(
        "two streams that share the encoder alone", "control", partial(_gpseg, crossing=False)
    ),
    "no-unlabelled": Method(
        "labelled images alone", "control", partial(_gpseg, unlabelled_batch=0)
    ),
    "random-init": Method(
        "random generator and encoder", "control", partial(_gpseg, pretrained=False)
    ),
}
"""Every method by name, in the order in which tables show them."""

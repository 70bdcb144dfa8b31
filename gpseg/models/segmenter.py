"""A trained segmenter: networks, classes and default read-out, to predict with and to keep on disk."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from gpseg.data import Classes
from gpseg.errors import InputError
from gpseg.models.checkpoint import (
    SEGMENTER_STAGE,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    unreadable,
)
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.models.two_stream import TwoStream

Readout = Literal["palette", "classifier", "fusion"]
READOUTS: tuple[Readout, ...] = get_args(Readout)
"""Nearest palette colour; the classifier on the features; the mean of both probabilities."""
TEMPERATURE = 0.25
"""Of the palette read-out's softmax, in squared distance of colours that span −1 … 1."""


def checked_readout(name: str) -> str:
    """The name, if it is a read-out's.

    Raises:
        InputError: there is no such read-out.
    """
    if name not in READOUTS:
        raise InputError(f'read-out "{name}": give one of {", ".join(READOUTS)}')
    return name


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32, −1 … 1."""
    return images.float().mul_(2 / 255).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Images of −1 … 1 as uint8, rounded and clamped."""
    return images.float().add(1).mul(255 / 2).round().clamp(0, 255).to(torch.uint8)


def mean_with_mirrored(own: Tensor, mirrored: Tensor, classes: Classes) -> Tensor:
    """The mean of what was made of images and of their mirror images, whose left and right parts are exchanged.

    Args:
        own: probabilities [N, K, r, r] of the images.
        mirrored: the same of the mirror images.
        classes: the K classes.
    """
    swap = classes.swap_table()[: classes.num_classes].to(mirrored.device)
    return (own + mirrored.flip(3)[:, swap]) / 2


@dataclass(frozen=True)
class Outputs:
    """Everything a segmenter has to say of a batch.

    Args:
        reconstruction: the image stream's images [N, 3, r, r], about −1 … 1.
        colours: the segmentation stream's images [N, 3, r, r], about −1 … 1.
        probabilities: by read-out, [N, K, r, r], summing to 1 over K.
    """

    reconstruction: Tensor
    colours: Tensor
    probabilities: dict[str, Tensor]


class Segmenter:
    """Predicts part masks.

    Args:
        model: the networks, as a rule the running mean of the training.
        network: what they are built from.
        classes: the part classes.
        readout: the default read-out, one of `READOUTS`.
        dtype: dtype of the features.
    """

    def __init__(
        self,
        model: TwoStream,
        network: NetworkConfig,
        classes: Classes,
        readout: str = "fusion",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.network = network
        self.classes = classes
        self.readout = readout
        self.dtype = dtype

    @property
    def resolution(self) -> int:
        """Side of the images it takes."""
        return self.network.img_resolution

    @property
    def device(self) -> torch.device:
        """Where its networks are."""
        return self.model.palette.device

    @torch.no_grad()
    def outputs(self, images: Tensor, *, flip: bool = True) -> Outputs:
        """Run both streams and all read-outs.

        Args:
            images: [N, 3, r, r] on any device, uint8, or floating in −1 … 1.
            flip: whether probabilities are the mean with what the mirrored images give; twice the time.

        Returns:
            The results, on the segmenter's device.
        """
        images = images.to(self.device)
        x = images if images.is_floating_point() else to_float(images)
        found = self._outputs(x)
        if not flip:
            return found
        mirrored = self._outputs(x.flip(3)).probabilities
        means = {
            name: mean_with_mirrored(own, mirrored[name], self.classes)
            for name, own in found.probabilities.items()
        }
        return replace(found, probabilities=means)

    def _outputs(self, x: Tensor) -> Outputs:
        streams = self.model(x, dtype=self.dtype)
        palette_logits = self.model.palette_logits(streams.colours, TEMPERATURE)
        palette, classifier = (
            (logits - self.model.rarity[:, None, None]).softmax(1)
            for logits in (palette_logits, streams.logits)
        )
        probabilities = (palette, classifier, (palette + classifier) / 2)
        return Outputs(
            streams.reconstruction,
            streams.colours,
            dict(zip(READOUTS, probabilities, strict=True)),
        )

    def probabilities(
        self, images: Tensor, readout: str | None = None, *, flip: bool = True
    ) -> Tensor:
        """Class probabilities [N, K, r, r].

        Args:
            images: as `outputs` takes them.
            readout: one of `READOUTS`; None for the default one.
            flip: as `outputs` takes it.

        Raises:
            InputError: there is no such read-out.
        """
        readout = checked_readout(readout or self.readout)
        return self.outputs(images, flip=flip).probabilities[readout]

    def save(self, path: Path) -> None:
        """Write networks, classes, palette (K colours of −1 … 1) and read-out to one safetensors file, atomically.

        Raises:
            RunError: the disk is full.
        """
        config = {
            "network": asdict(self.network),
            "classes": self.classes.to_json(),
            # For those who read the header: the weights hold it too.
            "palette": self.model.palette.tolist(),
            "crossing": self.model.crossings is not None,
            "readout": self.readout,
        }
        save_checkpoint(path, self.model.state_dict(), SEGMENTER_STAGE, config)

    @classmethod
    def load(
        cls, path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "Segmenter":
        """Read what `save` wrote.

        Args:
            path: the file.
            device: where to put the networks.
            dtype: dtype of the features.

        Raises:
            InputError: the file is missing, damaged, or a checkpoint of another stage.
        """
        tensors, config = load_checkpoint(path, SEGMENTER_STAGE)
        try:
            network = NetworkConfig(**config["network"])
            classes = Classes.from_json(config["classes"])
            crossing, readout = config["crossing"], config["readout"]
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, f"its configuration can't be read ({error})") from error
        model = TwoStream(
            network.generator(),
            network.discriminator(),
            network,
            classes.num_classes,
            crossing=crossing,
        )
        load_weights(model, tensors, "", path)
        return cls(model.to(device), network, classes, readout, dtype)

"""A trained segmenter: networks, classes and default read-out, to predict with and to keep on disk."""

from dataclasses import asdict, dataclass
from pathlib import Path

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

READOUTS = ("palette", "classifier")
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
    """Predicts part masks in one pass.

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
        readout: str = "classifier",
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
    def outputs(self, images: Tensor) -> Outputs:
        """Run both streams and both read-outs.

        Args:
            images: uint8 [N, 3, r, r] on any device.

        Returns:
            The results, on the segmenter's device.
        """
        streams = self.model(to_float(images.to(self.device)), dtype=self.dtype)
        logits = {
            "palette": self.model.palette_logits(streams.colours, TEMPERATURE),
            "classifier": streams.logits,
        }
        return Outputs(
            streams.reconstruction,
            streams.colours,
            {name: x.softmax(1) for name, x in logits.items()},
        )

    def probabilities(self, images: Tensor, readout: str | None = None) -> Tensor:
        """Class probabilities [N, K, r, r] of uint8 images [N, 3, r, r] by a read-out; None: the default one.

        Raises:
            InputError: there is no such read-out.
        """
        return self.outputs(images).probabilities[checked_readout(readout or self.readout)]

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
